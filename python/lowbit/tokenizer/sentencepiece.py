"""Reads and writes tokenizer.model, a SentencePiece model, without the sentencepiece or protobuf packages.

Field numbers of ModelProto that are read: pieces (1), each with text (1), score (2) and type (3); the fields of
trainer_spec (2) and normalizer_spec (3) that `Model` has. Other fields are skipped by their wire type. Input is
hostile: every length is checked against the remaining bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lowbit.base.errors import FormatError
from lowbit.base.files import read_bytes
from lowbit.base.foreign import named

MAX_FILE_BYTES = 256 << 20

#: Types of pieces; tokenizer.ggml.token_type has the same.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
#: The character for a space in pieces.
SPACE = "\u2581"

UNIGRAM, BPE = 1, 2

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


#: Messages of a model -> their name, and the fields that are read: number -> (name in `Model`, wire type).
_SPECS = {
    2: ("trainer_spec", {3: ("model_type", _VARINT), 24: ("space_suffix", _VARINT), 35: ("byte_fallback", _VARINT)}),
    3: (
        "normalizer_spec",
        {
            2: ("charsmap", _BYTES),
            3: ("add_dummy_prefix", _VARINT),
            4: ("remove_extra_whitespaces", _VARINT),
            5: ("escape_whitespaces", _VARINT),
        },
    ),
}


class Piece(NamedTuple):
    """One entry of the vocabulary."""

    text: str
    score: float
    type: int


class Model(NamedTuple):
    """The parameters in a tokenizer.model, with SentencePiece's defaults."""

    pieces: list[Piece]
    model_type: int = UNIGRAM
    byte_fallback: bool = False
    space_suffix: bool = False  #: a text gets its space at the end (treat_whitespace_as_suffix)
    charsmap: bytes = b""  #: of the normalizer (precompiled_charsmap)
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True


def _varint(data: memoryview, at: int, part: str = "") -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise FormatError(f"{part}broken number at offset {at}", offset=None if part else at)
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: memoryview, part: str = "") -> Iterator[tuple[int, int, Any]]:
    """(field number, wire type, value) of a message: an int, or the bytes as a memoryview."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at, part)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at, part)
            yield number, wire, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at, part)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise FormatError(f"{part}unknown wire type {wire} at offset {at}", offset=None if part else at)
        if size > len(data) - at:
            raise FormatError(
                f"{part}{size} bytes at offset {at}, {len(data) - at} are left", offset=None if part else at
            )
        yield number, wire, data[at : at + size]
        at += size


def _piece(data: memoryview, part: str = "") -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for number, wire, value in _fields(data, part):
        if number == 1 and wire == _BYTES:
            try:
                text = bytes(value).decode("utf-8")
            except UnicodeDecodeError:
                raise FormatError(f"{part}not UTF-8") from None
        elif number == 2 and wire == _FIXED32:
            score = struct.unpack("<f", value)[0]
        elif number == 3 and wire == _VARINT:
            kind = value
    if not NORMAL <= kind <= BYTE:
        raise FormatError(f"{part}unknown type {kind}")
    return Piece(text, score, kind)


def read_model(path: Path) -> Model:
    """A tokenizer.model. Raises FileError or FormatError."""
    with named(path):
        try:
            return _parsed(memoryview(read_bytes(path, MAX_FILE_BYTES)))
        except FormatError as error:
            error.about(path=path)
            raise


def _parsed(data: memoryview) -> Model:
    pieces: list[Piece] = []
    found: dict[str, Any] = {}
    for number, wire, value in _fields(data):
        if wire != _BYTES:
            continue
        if number == 1:
            pieces.append(_piece(value, f"piece {len(pieces)}: "))
        elif number in _SPECS:
            part, names = _SPECS[number]
            for field, kind, entry in _fields(value, f"{part}: "):
                if names.get(field, ("", -1))[1] == kind:
                    name = names[field][0]
                    found[name] = (bytes if kind == _BYTES else int if name == "model_type" else bool)(entry)
    if not pieces:
        raise FormatError("there are no pieces: the file is not a SentencePiece model")
    return Model(pieces, **found)


def model_bytes(pieces: Iterable[Piece], space_prefix: bool) -> bytes:
    """tokenizer.model of a BPE vocabulary with byte fallback. space_prefix: a text gets a leading space."""
    packed = b"".join(_packed_bytes(1, _packed_piece(piece)) for piece in pieces)
    trainer = _packed_number(3, 2) + _packed_number(35, 1)  # model_type BPE, byte_fallback
    # name, precompiled_charsmap: none, so that nothing is replaced; add_dummy_prefix, remove_extra_whitespaces
    normalizer = _packed_bytes(1, b"identity") + _packed_number(3, int(space_prefix)) + _packed_number(4, 0)
    return packed + _packed_bytes(2, trainer) + _packed_bytes(3, normalizer)


def _packed_piece(piece: Piece) -> bytes:
    score = _packed_varint(2 << 3 | _FIXED32) + struct.pack("<f", piece.score)
    return _packed_bytes(1, piece.text.encode()) + score + _packed_number(3, piece.type)


def _packed_bytes(number: int, data: bytes) -> bytes:
    return _packed_varint(number << 3 | _BYTES) + _packed_varint(len(data)) + data


def _packed_number(number: int, value: int) -> bytes:
    return _packed_varint(number << 3 | _VARINT) + _packed_varint(value)


def _packed_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
