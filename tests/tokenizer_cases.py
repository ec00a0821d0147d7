"""Cut-down vocabularies and the ids that llama.cpp gives for them, from tests/make_tokenizer_reference.py."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from stored import stored

from lowbit.arch import architectures
from lowbit.tokenizer import to_gguf

REFERENCE = stored("tokenizers")

#: One vocabulary of each kind, for tests that take long.
KINDS = ("llama-bpe", "llama-spm", "phi-3", "gemma-4", "bert-bge", "nomic-bert-moe")


def tokenizer_metadata(folder: Path, config: dict[str, Any], arch: str, *more: Any) -> dict[str, Any]:
    """`to_gguf.tokenizer_metadata` with the rules of the architecture of that name."""
    return to_gguf.tokenizer_metadata(folder, config, architectures()[arch].tokenizer_rules, *more)


def metadata(name: str) -> dict:
    """Tokenizer metadata as a GGUF reader gives it: numeric arrays are ndarrays."""
    fields = dict(REFERENCE[name]["metadata"])
    for key, dtype in (("token_type", np.int32), ("scores", np.float32)):
        if f"tokenizer.ggml.{key}" in fields:
            fields[f"tokenizer.ggml.{key}"] = np.array(fields[f"tokenizer.ggml.{key}"], dtype)
    return fields


def normalized_llama(folder: Path, tokenizer_class: str, legacy: bool | None = None, model: bool = True) -> Path:
    """A folder as the first Llama 2's: its special tokens are marked `normalized`. model: with tokenizer.model."""
    from lowbit.tokenizer.to_hf import tokenizer_files

    _, files = tokenizer_files(metadata("llama-spm"), 128)
    definition = files["tokenizer.json"]
    for token in definition["added_tokens"]:
        token["normalized"] = True
    flags = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    roles = ("bos_token", "eos_token", "unk_token")
    config = {**files["tokenizer_config.json"], "tokenizer_class": tokenizer_class}
    config |= {role: {**flags, "content": config[role]} for role in roles} | (
        {} if legacy is None else {"legacy": legacy}
    )
    config["chat_template"] = LLAMA2_TEMPLATE
    for name, value in (("tokenizer.json", definition), ("tokenizer_config.json", config)):
        (folder / name).write_text(json.dumps(value))
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "vocab_size": len(metadata("llama-spm")["tokenizer.ggml.tokens"])})
    )
    if model:
        (folder / "tokenizer.model").write_bytes(files["tokenizer.model"])
    return folder


LLAMA2_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TURNS = [{"role": role, "content": text} for role, text in (("user", "hi"), ("assistant", "a b"), ("user", "c"))]
SPECIAL_TEXTS = (
    "hi there",
    "<s>hi",
    "hi<s>there</s> x",
    " <s>",
    "<s> hello </s>",
    "</s>\n<s>",
    " lead",
    "x<unk>y <unk>",
    "<s>[INST] a [/INST] b </s><s>[INST] c [/INST]",
)
