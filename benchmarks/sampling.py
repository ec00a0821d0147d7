"""Drawing a token from a vocabulary's logits, compared with the logits processors of transformers and torch.

Checked first: the processors leave every token that is drawn. Without models, the logits are 151,936 random numbers,
without and with six likely tokens. One thread.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
import transformers

import lowbit
from lowbit import _core

TEXT = "The old lighthouse keeper climbed the stairs and"
PLAIN: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 1": {},
    "top_p 0.95": {"top_p": 0.95},
    "top_p 0.95, temperature 0.7": {"top_p": 0.95, "temperature": 0.7},
    "top_p 0.95, temperature 5": {"top_p": 0.95, "temperature": 5.0},
    "min_p 0.05": {"min_p": 0.05},
    "top_k 40": {"top_k": 40},
    "greedy, penalty, 4,096 tokens": {"temperature": 0.0, "repetition_penalty": 1.1},
}


def random_logits() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    flat = (rng.standard_normal(151_936) * 3).astype(np.float32)
    peaked = flat.copy()
    peaked[rng.integers(0, len(peaked), 6)] = [22, 21, 20.5, 19, 18, 17]
    return {"random": flat, "random, peaked": peaked}


def model_logits(path: Path) -> np.ndarray:
    """The logits after a text."""
    model = lowbit.load(path)
    return model.logits(model.tokenizer.encode(TEXT))[-1]


def processors(options: dict[str, Any]) -> transformers.LogitsProcessorList:
    chosen: list[transformers.LogitsProcessor] = []
    if options["repetition_penalty"] != 1:
        chosen.append(transformers.RepetitionPenaltyLogitsProcessor(options["repetition_penalty"]))
    if options["temperature"] not in (0, 1):
        chosen.append(transformers.TemperatureLogitsWarper(options["temperature"]))
    if options["top_k"]:
        chosen.append(transformers.TopKLogitsWarper(options["top_k"]))
    if options["top_p"] < 1:
        chosen.append(transformers.TopPLogitsWarper(options["top_p"]))
    if options["min_p"]:
        chosen.append(transformers.MinPLogitsWarper(options["min_p"]))
    return transformers.LogitsProcessorList(chosen)


def run(name: str, logits: np.ndarray, changed: dict[str, Any], pairs: int) -> dict[str, Any]:
    options = {**PLAIN, **changed}
    seen = np.random.default_rng(1).integers(0, len(logits), 4096)
    sampler = _core.Sampler(**options, seed=1)
    sampler.accept(seen.tolist())
    process, ids, scores = processors(options), torch.from_numpy(seen)[None], torch.from_numpy(logits)[None]

    def peer() -> int:
        left = process(ids, scores)
        if options["temperature"] == 0:
            return int(left.argmax())
        return int(torch.multinomial(left.softmax(-1), 1))

    allowed = process(ids, scores)[0].numpy()
    for _ in range(100):
        token = sampler.sample(logits)
        assert token == allowed.argmax() or (options["temperature"] > 0 and np.isfinite(allowed[token])), token
    ours, theirs = harness.calls_for(lambda: sampler.sample(logits), 0.1), harness.calls_for(peer, 0.1)
    samples = harness.alternate(
        lambda: harness.time_calls(lambda: sampler.sample(logits), ours),
        lambda: harness.time_calls(peer, theirs),
        pairs=pairs,
    )
    return harness.comparison(name, 1, "tokens", *samples, vocabulary=len(logits))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="*", metavar="MODEL", help="use the logits of these models")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write facts, samples and ratios to OUT")
    parser.add_argument("--pairs", type=int, default=7, metavar="N", help="timed pairs [default: 7]")
    options = parser.parse_args()
    options.threads = 1
    torch.set_num_threads(1)
    peer = {
        "name": "transformers",
        "version": f"{transformers.__version__}, torch {torch.__version__}",
        "build": "wheel",
    }
    recorder = harness.Recorder("sampling", options, peer)
    given = {path.stem: model_logits(path) for path in options.models} or random_logits()
    for source, logits in given.items():
        for case, changed in CASES.items():
            recorder.add(run(f"{source}: {case}", logits, changed, options.pairs))
    recorder.finish()


if __name__ == "__main__":
    main()
