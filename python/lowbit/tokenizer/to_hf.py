"""The tokenizer files of a Hugging Face folder, from GGUF metadata, for `lowbit export hf`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from lowbit.base.errors import FormatError
from lowbit.tokenizer.gguf import Vocab
from lowbit.tokenizer.load import Tokenizer, from_metadata
from lowbit.tokenizer.sentencepiece import USER_DEFINED, Piece, model_bytes
from lowbit.tokenizer.special import ADDED_ROLES
from lowbit.tokenizer.to_gguf import padding_text

__all__ = ["tokenizer_files"]


def tokenizer_files(metadata: Mapping[str, Any], context: int) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer, and file name -> JSON value or bytes. context: the model's context length.

    Raises as `lowbit.load_tokenizer` does.
    """
    tokenizer = from_metadata(metadata)
    files = {
        "tokenizer.json": _definition(tokenizer),
        "tokenizer_config.json": _config(tokenizer, metadata, context),
    }
    if metadata["tokenizer.ggml.model"] == "llama":
        files |= _sentencepiece(Vocab(metadata))
    return tokenizer, files


def _definition(tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer.json. Rows of the embedding without a token, which have a text in GGUF, are left out."""
    definition: dict[str, Any] = json.loads(tokenizer.backend.to_str())
    vocab = definition["model"]["vocab"]
    if isinstance(vocab, dict):  # a unigram model has a list, indexed by id
        definition["model"]["vocab"] = {text: i for text, i in vocab.items() if text != padding_text(i)}
    return definition


def _sentencepiece(vocab: Vocab) -> dict[str, Any]:
    """tokenizer.model with the scores (tokenizer.json cannot hold them) and the added tokens."""
    texts, scores, types = vocab.texts(), vocab.scores().tolist(), vocab.types.tolist()
    pieces = (Piece(text, score, kind) for text, score, kind in zip(texts, scores, types, strict=True))
    added = {text: i for i, (text, kind) in enumerate(zip(texts, types, strict=True)) if kind == USER_DEFINED}
    prefix = vocab.flag("tokenizer.ggml.add_space_prefix", True)
    return {"tokenizer.model": model_bytes(pieces, prefix), **({"added_tokens.json": added} if added else {})}


def _config(tokenizer: Tokenizer, metadata: Mapping[str, Any], context: int) -> dict[str, Any]:
    added = {f"add_{role}_token": metadata.get(f"tokenizer.ggml.add_{role}_token") for role in ADDED_ROLES}
    if (prefix := metadata.get("tokenizer.ggml.add_space_prefix")) is not None:
        added["add_prefix_space"] = prefix
    if wrong := [key for key, value in added.items() if isinstance(value, (list, np.ndarray))]:
        raise FormatError(
            f"tokenizer.ggml.{wrong[0]}:", key=f"tokenizer.ggml.{wrong[0]}", expected="a boolean", found="an array"
        )
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **tokenizer.special_tokens,
        **{key: bool(value) for key, value in added.items() if value is not None},
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    templates = tokenizer.chat_templates
    # Not in separate files: template names come from metadata and must not become paths.
    if templates.keys() == {"default"}:
        config["chat_template"] = templates["default"]
    elif templates:
        config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    return config
