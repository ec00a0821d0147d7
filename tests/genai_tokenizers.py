"""Tokenizers of onnxruntime-genai, from files that a test makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime_genai as og

MODEL = {
    "type": "decoder",
    "context_length": 64,
    "vocab_size": 1,
    "decoder": {"filename": "none.onnx", "head_size": 16},
}


def genai_tokenizer(folder: Path, definition: dict[str, Any], config: dict[str, Any]) -> Any:
    """A tokenizer from tokenizer.json and tokenizer_config.json. Raises what genai raises."""
    files = {
        "genai_config.json": {"model": MODEL},
        "tokenizer.json": definition,
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **config},
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    return og.Tokenizer(str(folder))


def genai_prompt(tokenizer: Any, inputs: dict[str, Any]) -> str | None:
    """The prompt for a template's inputs; None if genai fails."""
    tools = inputs.get("tools")
    try:
        return str(
            tokenizer.apply_chat_template(
                json.dumps(inputs["messages"]),
                tools=json.dumps(tools) if tools else None,
                add_generation_prompt=inputs["add_generation_prompt"],
            )
        )
    except (RuntimeError, UnicodeDecodeError):
        return None
