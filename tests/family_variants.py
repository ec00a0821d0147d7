"""Checkpoints with what released models of each family have and others do not: the rows of data/variants.json.xz."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from tiny_checkpoint import edit_json, make_checkpoint, write_json

FORMATS = ["BF16", "F16", "F32", "Q8_0", "Q4_0", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_XS"]
#: Those that are made of files of F16 and F32 besides.
THROUGH = ["Q8_0", "Q4_K_M"]
LLAMA32_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


class Variant(NamedTuple):
    """Arguments of make_checkpoint, and what is changed afterwards."""

    arguments: dict[str, Any]
    without: tuple[str, ...] = ()  #: keys that config.json lacks
    files: dict[str, dict[str, Any] | None] = {}  # noqa: RUF012  changes of other JSON files; None: no such file
    pre: str = ""  #: tokenizer.ggml.pre, if it is not the tokenizer's usual one


def _variant(arch: str, *without: str, **arguments: Any) -> Variant:
    files, pre = arguments.pop("files", {}), arguments.pop("pre", "")
    return Variant({"arch": arch, "layers": 1, **arguments}, without, files, pre)


DIGITS_THEN_WORDS = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}

VARIANTS = {
    "llama-2-7b-chat-hf": _variant(
        "llama", "head_dim", "rope_theta", "num_key_value_heads", kv_heads=4, tokenizer="spm", old_config=True,
        dtype="F16", config={"rope_scaling": None}, seed=10,
        files={"tokenizer_config.json": {"add_prefix_space": None, "legacy": False}, "added_tokens.json": None},
    ),
    "Meta-Llama-3-8B": _variant(
        "llama", config={"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, seed=11
    ),
    "Llama-3.2-1B-Instruct": _variant(
        "llama", tied=True, old_config=True, shards=2, seed=12,
        config={"rope_theta": 5e5, "rope_scaling": LLAMA32_ROPE, "eos_token_id": [273, 274]},
    ),
    "llama-biased": _variant("llama", biases=True, config={"attention_bias": True}, seed=13),
    "TinyLlama-1.1B-Chat-v1.0": _variant(
        "llama", "head_dim", heads=8, kv_heads=1, head_dim=32, tokenizer="spm", old_config=True, dtype="F32", seed=14,
        config={"rope_scaling": None},
    ),
    "SmolLM2-135M-Instruct": _variant(
        "llama", "head_dim", tied=True, vocab=49152, hidden=96, ffn=128, heads=3, kv_heads=1, head_dim=32,
        tokenizer="qwen2", old_config=True, seed=15, config={"rope_scaling": None, "rope_interleaved": False},
        files={"tokenizer.json": {"pre_tokenizer": DIGITS_THEN_WORDS}}, pre="starcoder",  # splits alike
    ),
    "Mistral-7B-Instruct-v0.3": _variant("mistral", config={"sliding_window": None}, old_config=True, seed=16),
    "Mistral-Nemo-Base-2407": _variant(
        "mistral", tokenizer="llama-bpe", head_dim=32, shards=3, config={"sliding_window": None}, seed=17
    ),
    "Qwen2.5-7B": _variant("qwen2", "head_dim", tied=False, shards=2, old_config=True, dtype="F16", seed=18),
    "Qwen2.5-0.5B-Instruct": _variant(
        "qwen2", "head_dim", seed=19, config={"sliding_window": 32768, "max_window_layers": 21}, old_config=True
    ),
    "Qwen2.5-14B-yarn": _variant(
        "qwen2", tied=False, dtype="F32", old_config=True, seed=20, head_dim=32,
        config={"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    ),
    "Qwen3-8B": _variant("qwen3", tied=False, dtype="F16", shards=2, old_config=True, seed=21),
    "gemma-3-1b-it": _variant(
        "gemma3", "tie_word_embeddings", layers=7, hidden=128, ffn=128, old_config=True, dtype="F32", seed=22
    ),
    "gemma-3-270m": _variant("gemma3", dtype="F16", shards=2, seed=23, config={"final_logit_softcapping": 30.0}),
    "gemma-3-4b-it": _variant(
        "gemma3", nested="4", old_config=True, shards=2, seed=24,
        config={"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "eos_token_id": None},
    ),
    "gemma-3-4b-pt": _variant("gemma3", nested="5", seed=25),
}  # fmt: skip


def variant_source(folder: Path, name: str) -> Path:
    """The checkpoint of that name in VARIANTS, written into `folder`."""
    variant = VARIANTS[name]
    made = make_checkpoint(folder / name, **variant.arguments)
    config = json.loads((made / "config.json").read_text())
    write_json(made / "config.json", {key: value for key, value in config.items() if key not in variant.without})
    for file, changes in variant.files.items():
        if changes is None:
            (made / file).unlink()
        else:
            edit_json(made / file, changes)
    return made
