"""Folders with tokenizer.model and broken files beside it. What is right is compared in tests/oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import (
    byte_level_tokenizer,
    sentencepiece_model,
    sentencepiece_pieces,
    write_json,
    write_tokenizer,
)
from tokenizer_cases import tokenizer_metadata

import lowbit
from lowbit.tokenizer.naming import QWEN2
from lowbit.tokenizer.sentencepiece import _packed_bytes, _packed_number

FAULTS: dict[str, tuple[bytes, dict[str, Any], type[lowbit.Error], str]] = {
    "table of characters": (
        _packed_bytes(3, _packed_bytes(2, b"\x05abc")),
        {},
        lowbit.FormatError,
        ": tokenizer: ",
    ),
    "words": (_packed_bytes(2, _packed_number(3, 3)), {}, lowbit.UnsupportedError, "found model_type 3"),
    "hole": (b"", {"added_tokens": {"x": 9999}}, lowbit.FormatError, "added token 9999, expected consecutive ids"),
    "twice": (b"", {"added_tokens": {"the": 273}}, lowbit.FormatError, "'the' occurs more than once"),
    "list": (
        b"",
        {"tokenizer_config": {"added_tokens_decoder": [1]}},
        lowbit.FormatError,
        "_decoder: expected an object",
    ),
}


def test_tokenizer_model(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(sentencepiece_pieces()))
    tokenizer = lowbit.load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("the and", add_special_tokens=False)) == "the and"
    assert tokenizer.encode("the") == [tokenizer.bos_id, tokenizer.id("\u2581the")]


NAMES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "generation_config.json", "chat_template.jinja", "merges.txt", "vocab.json",
)  # fmt: skip
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4517152\n"


@pytest.mark.parametrize(("content", "kind"), [(POINTER, "git-lfs pointer"), ("<!doctype html><html></html>", "HTML")])
@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_something_else(tmp_path: Path, name: str, content: str, kind: str) -> None:
    """Clones without git-lfs, and pages of a server, for each file that a tokenizer is read of."""
    if name in ("merges.txt", "vocab.json"):
        model = byte_level_tokenizer(QWEN2, [], None)["model"]
        write_json(tmp_path / "vocab.json", model["vocab"])
        write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer"})
    else:
        write_tokenizer(tmp_path, "spm" if name == "tokenizer.model" else "llama-bpe")
    (tmp_path / name).write_text(content)
    with pytest.raises(lowbit.FormatError, match=f"{name}: this is an? {kind}"):
        lowbit.load_tokenizer(tmp_path)
    with pytest.raises(lowbit.FormatError, match=f"{name}: this is an? {kind}"):
        tokenizer_metadata(tmp_path, {}, "qwen2", 280, [])


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_folders(tmp_path: Path, fault: str) -> None:
    more, files, error, message = FAULTS[fault]
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(sentencepiece_pieces()) + more)
    for name, value in files.items():
        write_json(tmp_path / f"{name}.json", value)
    with pytest.raises(error, match=message):
        lowbit.load_tokenizer(tmp_path)
