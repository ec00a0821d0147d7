"""Folders with tokenizer.model and broken files beside it. What is right is compared in tests/oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import sentencepiece_model, sentencepiece_pieces, write_json

import lowbit
from lowbit.sentencepiece import _packed_bytes, _packed_number

FAULTS: dict[str, tuple[bytes, dict[str, Any], type[lowbit.Error], str]] = {
    "table of characters": (
        _packed_bytes(3, _packed_bytes(2, b"\x05abc")),
        {},
        lowbit.FormatError,
        "what stands for it",
    ),
    "words": (_packed_bytes(2, _packed_number(3, 3)), {}, lowbit.UnsupportedError, "found model_type 3"),
    "hole": (b"", {"added_tokens": {"x": 9999}}, lowbit.FormatError, "added token 9999, expected ids in a row"),
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


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_folders(tmp_path: Path, fault: str) -> None:
    more, files, error, message = FAULTS[fault]
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(sentencepiece_pieces()) + more)
    for name, value in files.items():
        write_json(tmp_path / f"{name}.json", value)
    with pytest.raises(error, match=message):
        lowbit.load_tokenizer(tmp_path)
