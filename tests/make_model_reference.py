"""Writes data/bard_reference.npz: what transformers computes of the bard checkpoint in float32, for test_model.py.

Needs the extra `oracle`: python tests/make_model_reference.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
BARD = HERE.parent / "python" / "lowbit" / "data" / "bard"
TEXT = HERE.parent / "python" / "lowbit" / "data" / "bard-valid.txt"
#: Characters of the held-out text that each prompt consists of.
PROMPTS = ((0, 30), (1000, 1120), (5000, 5700))
NUM_GREEDY = 64
#: Of each position's logits, the largest and every so many of all are kept.
NUM_TOP, STEP = 24, 61


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BARD)
    model = AutoModelForCausalLM.from_pretrained(BARD, dtype=torch.float32).eval()
    text = TEXT.read_text(encoding="utf-8")
    arrays: dict[str, np.ndarray] = {}
    for i, (start, end) in enumerate(PROMPTS):
        ids = tokenizer(text[start:end], add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(ids).logits[0].numpy()
            longer = ids
            for _ in range(NUM_GREEDY):
                longer = torch.cat([longer, model(longer).logits[:, -1:].argmax(-1)], dim=1)
        greedy = longer[0, ids.shape[1] :]
        top = np.argsort(-logits, axis=1, kind="stable")[:, :NUM_TOP]
        arrays |= {
            f"{i}.ids": ids[0].numpy().astype(np.int32),
            f"{i}.greedy": greedy.numpy().astype(np.int32),
            f"{i}.top": top.astype(np.int32),
            f"{i}.top_logits": np.take_along_axis(logits, top, axis=1),
            f"{i}.some_logits": logits[:, ::STEP],
            f"{i}.range": np.ptp(logits, axis=1),
        }
    np.savez_compressed(HERE / "data" / "bard_reference.npz", **arrays)


if __name__ == "__main__":
    main()
