"""Hostile GGUF files: each is refused with a typed error that names the place, in bounded time and memory."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import gguf as peer
import numpy as np
import pytest

import lowbit

U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10
MAX = 2**64 - 1


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def entry(key: str | bytes, kind: int, payload: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + payload


def array(kind: int, count: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + payload


def info(
    name: str | bytes = "t", dims: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0, num_dims: int | None = None
) -> bytes:
    num_dims = len(dims) if num_dims is None else num_dims
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", num_dims, *dims, kind, offset)


def build(
    entries: tuple[bytes, ...] = (),
    infos: tuple[bytes, ...] = (),
    data: bytes = b"",
    num_entries: int | None = None,
    num_infos: int | None = None,
    alignment: int = 32,
    head: bytes = b"GGUF\3\0\0\0",
) -> bytes:
    """A file of these parts; the counts are the true ones unless others are given."""
    num_entries = len(entries) if num_entries is None else num_entries
    num_infos = len(infos) if num_infos is None else num_infos
    start = head + struct.pack("<QQ", num_infos, num_entries) + b"".join(entries) + b"".join(infos)
    return start + b"\0" * (-len(start) % alignment) + data


def aligned(value: int, kind: int = U32) -> bytes:
    return entry("general.alignment", kind, struct.pack("<Q" if kind == U64 else "<I", value))


class Case(NamedTuple):
    """A crafted file, the class of the error and what its message says."""

    name: str
    data: bytes
    message: str
    error: type[lowbit.Error] = lowbit.FormatError


FULL = entry("k", U32, b"\1\0\0\0")
VALID = build((FULL, entry("s", STRING, string("text"))), (info("a"), info("b", (2, 4), offset=32)), bytes(64))
UNSUPPORTED = lowbit.UnsupportedError

HEADER = [
    Case("empty file", b"", r"the file is empty: download it again"),
    Case("wrong magic", b"GGML\3\0\0\0" + bytes(16), r'magic at offset 0: expected "GGUF", found "GGML"'),
    Case("binary magic", b"\x80\n\3\1" + bytes(20), r'magic at offset 0: .*found "\\x80\\x0a\\x03\\x01"'),
    Case("version 0", build(head=b"GGUF\0\0\0\0"), r"version at offset 4: expected 2 or 3, found 0"),
    Case("version 1", build(head=b"GGUF\1\0\0\0"), r"version at offset 4: expected 2 or 3, found 1", UNSUPPORTED),
    Case("version 4", build(head=b"GGUF\4\0\0\0"), r"version at offset 4: expected 2 or 3, found 4", UNSUPPORTED),
    Case("big-endian", build(head=b"GGUF\0\0\0\3"), r"version at offset 4: this is a big-endian file", UNSUPPORTED),
    Case("no counts", b"GGUF\3\0\0\0", r"number of tensors at offset 8: expected 8 bytes, found 0"),
    Case("2^64 tensors", build(num_infos=MAX), r"number of tensors at offset 8: .* found 18446744073709551615"),
    Case(
        "2^63 tensors", build((FULL,), num_infos=2**63), r"number of tensors at offset 8: .* found 9223372036854775808"
    ),
    Case("2^64 keys", build(num_entries=MAX), r"number of keys at offset 16: .* found 18446744073709551615"),
    Case(
        "keys that overflow in bytes",
        build(num_entries=MAX // 13 + 2),
        r"number of keys at offset 16: expected at most",
    ),
    Case("one key too many", build((FULL,), num_entries=2), r"key at offset 41: expected a name, found an empty"),
    Case(
        "one tensor too many", build((), (info(),), num_infos=2), r"number of tensors at offset 8: expected at most 1"
    ),
]

KEYS = [
    Case("empty key", build((entry("", U32, bytes(4)),)), r"key at offset 24: expected a name, found an empty string"),
    Case(
        "key of 2^64 bytes",
        build((struct.pack("<QIQ", MAX, 0, 0),)),
        r"key at offset 32: expected 18446744073709551615 bytes",
    ),
    Case(
        "key that is not UTF-8",
        build((entry(b"k\xff", U32, bytes(4)),)),
        r'key at offset 24: expected UTF-8, found "k\\xff"',
    ),
    Case("key with a surrogate", build((entry(b"\xed\xa0\x80", U32, bytes(4)),)), r"key at offset 24: expected UTF-8"),
    Case("key with an overlong form", build((entry(b"\xc0\x80", U32, bytes(4)),)), r"key at offset 24: expected UTF-8"),
    Case(
        "key above U+10FFFF", build((entry(b"\xf4\x90\x80\x80", U32, bytes(4)),)), r"key at offset 24: expected UTF-8"
    ),
    Case("duplicate key", build((FULL, FULL)), r'name of key "k" at offset \d+: the key occurs twice'),
    Case(
        "value type 13",
        build((entry("k", 13, bytes(8)),)),
        r'type of key "k" at offset 33: .* from 0 to 12, found 13',
    ),
    Case("value type 2^32-1", build((entry("k", 2**32 - 1, bytes(8)),)), r'type of key "k" .* found 4294967295'),
    Case(
        "element type 13",
        build((entry("k", ARRAY, array(13, 1, b"1")),)),
        r'element type of key "k" at offset 37: .* found 13',
    ),
    Case(
        "bool 2",
        build((entry("k", BOOL, b"\2"),)),
        r'value of key "k" at offset 37: expected a bool, 0 or 1, found 2',
    ),
    Case(
        "bool array",
        build((entry("k", ARRAY, array(BOOL, 3, b"\0\1\xff")),)),
        r'value of key "k" at offset 51: .* found 255',
    ),
    Case(
        "number cut",
        build((entry("k", U64, b"\0"),), alignment=1),
        r'value of key "k" at offset 37: expected 1 elements',
    ),
    Case(
        "string of 2^64 bytes",
        build((entry("k", STRING, struct.pack("<Q", MAX)),)),
        r'value of key "k" at offset 45: expected',
    ),
    Case(
        "string that is not UTF-8",
        build((entry("k", STRING, string(b"\xff")),)),
        r'value of key "k" at offset 37: expected UTF-8',
    ),
    Case("line break in a bad key", build((entry(b"a\nb\xff", U32, bytes(4)),)), r'found "a\\x0ab\\xff"$'),
    Case(
        "a key that would drive a terminal",
        build((entry("a\x1b[2J\x9b31m\u202e\u2028\U000e0041é漢".encode() + b"\xff", U32, bytes(4)),)),
        r'found "a\\x1b\[2J\\x9b31m\\u202e\\u2028\\U000e0041é漢\\xff"$',
    ),
    Case(
        "a key of many characters that are escaped",
        build((entry(300 * b"\x01" + b"\xff", U32, bytes(4)),)),
        r'found "(\\x01){25}"\.\.\.$',
    ),
    Case(
        "array of 2^64 bytes",
        build((entry("k", ARRAY, array(U8, MAX)),)),
        r'value of key "k" at offset 49: expected 18446744073709551615 elements of type uint8',
    ),
    Case(
        "array that overflows",
        build((entry("k", ARRAY, array(U64, 2**61)),)),
        r'value of key "k" at offset 49: expected 2305843009213693952',
    ),
    Case(
        "array of 2^64 strings",
        build((entry("k", ARRAY, array(STRING, MAX, string("a"))),)),
        r'value of key "k" at offset \d+: expected',
    ),
    Case(
        "array with a string that is not UTF-8",
        build((entry("k", ARRAY, array(STRING, 2, string("a") + string(b"\xff"))),)),
        r'value of key "k" at offset 58: expected UTF-8',
    ),
    Case(
        "nested array",
        build((entry("k", ARRAY, array(ARRAY, 1, array(U8, 1, b"1"))),)),
        r'key "k" at offset 33: .*found an array of arrays',
        UNSUPPORTED,
    ),
    Case(
        "deeply nested array",
        build((entry("k", ARRAY, array(ARRAY, 1) * 10_000),)),
        r"found an array of arrays",
        UNSUPPORTED,
    ),
]

ALIGNMENT = [
    Case(
        f"alignment {value}",
        build((aligned(value),)),
        rf'"general.alignment" at offset \d+: expected a power of two .*found {value}$',
    )
    for value in (0, 1, 4, 24, 33, 2**22, 2**31, 2**32 - 1)
] + [
    Case("alignment uint64", build((aligned(32, U64),)), r'"general.alignment" .*expected a uint32, found uint64'),
    Case(
        "alignment array",
        build((entry("general.alignment", ARRAY, array(U32, 1, b" \0\0\0")),)),
        r"expected a uint32, found an array",
    ),
]

TENSORS = [
    Case(
        "name of 2^64 bytes",
        build((), (struct.pack("<QIQQQ", MAX, 1, 8, 0, 0),)),
        r"name of a tensor at offset 32: expected 18446744073709551615",
    ),
    Case(
        "name of 64 bytes",
        build((), (info("t" * 64),), bytes(32)),
        r"at offset 24: expected a name of at most 63 bytes, found 64",
    ),
    Case(
        "name that is not UTF-8",
        build((), (info(b"\xfe"),), bytes(32)),
        r'name of a tensor at offset 24: expected UTF-8, found "\\xfe"',
    ),
    Case(
        "duplicate tensor",
        build((), (info(), info(offset=32)), bytes(64)),
        r'info of tensor "t" .*the name occurs twice',
    ),
    Case(
        "no dimensions",
        build((), (info(dims=()),), bytes(32)),
        r'info of tensor "t" at offset 24: expected 1 to 4 dimensions, found 0',
    ),
    Case(
        "5 dimensions",
        build((), (info(dims=(1,) * 5),), bytes(32)),
        r'info of tensor "t" .*expected 1 to 4 dimensions, found 5',
    ),
    Case(
        "2^32 dimensions",
        build((), (info(num_dims=2**32 - 1),), bytes(32)),
        r"expected 1 to 4 dimensions, found 4294967295",
    ),
    Case(
        "product of 2^64",
        build((), (info(dims=(2**32, 2**32)),), bytes(32)),
        r'"t" .*product of dimensions overflows: \(4294967296, 4294967296\) of F32',
    ),
    Case(
        "product of 2^64+8",
        build((), (info(dims=(8, 2**61 + 1)),), bytes(32)),
        r'"t" .*product of dimensions overflows',
    ),
    Case("product of 2^63", build((), (info(dims=(2**63,)),), bytes(32)), r'"t" .*product of dimensions overflows'),
    Case(
        "product hidden by a zero",
        build((), (info(dims=(2**62, 2**62, 0)),), bytes(32)),
        r'"t" .*product of dimensions overflows',
    ),
    Case(
        "bytes of 2^64",
        build((), (info(dims=(2**62,)),), bytes(32)),
        r'"t" .*number of bytes overflows: \(4611686018427387904\) of F32',
    ),
    Case(
        "half a block",
        build((), (info(dims=(33, 2), kind=8),), bytes(96)),
        r'"t" .*block size .*does not divide the length of a row: \(33, 2\) of Q8_0',
    ),
    Case(
        "removed type",
        build((), (info(kind=4),), bytes(32)),
        r'info of tensor "t" at offset 24: expected a known tensor type, found 4 \(Q4_2\), which ggml removed in 2023',
        UNSUPPORTED,
    ),
    *(
        Case(
            f"withdrawn type {kind}",
            build((), (info(kind=kind),), bytes(32)),
            rf"found {kind} \({name}\), which ggml withdrew: it was {now} in another order; quantize",
            UNSUPPORTED,
        )
        for kind, name, now in (
            (31, "Q4_0_4_4", "Q4_0"),
            (32, "Q4_0_4_8", "Q4_0"),
            (33, "Q4_0_8_8", "Q4_0"),
            (36, "IQ4_NL_4_4", "IQ4_NL"),
            (37, "IQ4_NL_4_8", "IQ4_NL"),
            (38, "IQ4_NL_8_8", "IQ4_NL"),
        )
    ),
    Case(
        "unknown type",
        build((), (info(kind=2**32 - 1),), bytes(32)),
        r'tensor "t" .*expected a known tensor type, found 4294967295',
        UNSUPPORTED,
    ),
    Case("misaligned", build((), (info(offset=4),), bytes(64)), r'"t" .*expected data at a multiple of 32, found 4'),
    Case(
        "offset beyond the file",
        build((), (info(offset=64),), bytes(32)),
        r'data of tensor "t" .*expected 32 bytes from 64 on, found 32 bytes of data: the file is cut off',
    ),
    Case(
        "end beyond the file",
        build((), (info(dims=(9,)),), bytes(32)),
        r'data of tensor "t" .*expected 36 bytes from 0 on, found 32 bytes of data',
    ),
    Case(
        "end that overflows",
        build((), (info(offset=2**64 - 32),), bytes(32)),
        r'data of tensor "t" .*expected 32 bytes from 18446744073709551584 on',
    ),
    Case("no data", build((), (info(),), alignment=1), r'data of tensor "t" .*expected 32 bytes from 0 on, found 0'),
    Case(
        "same data",
        build((), (info("a"), info("b")), bytes(32)),
        r'data of tensor "b" .*overlaps the data of tensor "a"',
    ),
    Case(
        "overlap",
        build((), (info("a", (64,)), info("b", offset=32)), bytes(256)),
        r'data of tensor "b" .*overlaps the data of tensor "a"',
    ),
    Case(
        "overlap out of order",
        build((), (info("a", offset=32), info("b", (64,))), bytes(256)),
        r'data of tensor "a" .*overlaps the data of tensor "b"',
    ),
]

CASES = HEADER + KEYS + ALIGNMENT + TENSORS


def test_the_builder_makes_valid_files(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(VALID)
    file = lowbit.gguf.open(path)
    assert dict(file.metadata) == {"k": 1, "s": "text"}
    assert [tensor.shape for tensor in file.tensors.values()] == [(8,), (4, 2)]
    assert len(peer.GGUFReader(path).tensors) == 2


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_malformed(tmp_path: Path, case: Case) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(case.data)
    with pytest.raises(case.error, match=case.message) as caught:
        lowbit.gguf.open(path)
    assert type(caught.value) is case.error
    assert "bad.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", range(len(VALID)))
def test_every_prefix(tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(VALID[:length])
    with pytest.raises(lowbit.FormatError):
        lowbit.gguf.open(path)


def exercise(path: Path) -> bool:
    """Opens the file and looks at all of it. False if it was refused, with an error of lowbit's."""
    try:
        file = lowbit.gguf.open(path)
        for value in file.metadata.values():
            repr(value)
        for tensor in file.tensors.values():
            data = tensor.data if isinstance(tensor, lowbit.QTensor) else tensor
            data.tobytes()
    except lowbit.Error:
        return False
    return True


def rich_file(path: Path) -> bytes:
    """One value of most types, several tensors."""
    metadata = {
        "general.alignment": 16,
        "u8": np.uint8(1),
        "f64": np.float64(2),
        "bool": True,
        "text": "zażółć",
        "texts": ["a", "", "\U0001f600"],
        "numbers": np.arange(5, dtype=np.int16),
        "bools": np.array([True, False]),
    }
    tensors = {
        "f32": np.ones((3, 5), np.float32),
        "i8": np.ones((2, 1, 3), np.int8),
        "q8_0": lowbit.QTensor(np.ones((2, 34), np.uint8), "Q8_0"),
    }
    lowbit.gguf.write(path, metadata, tensors)
    return path.read_bytes()


@pytest.mark.parametrize("seed", range(8))
def test_random_damage(tmp_path: Path, seed: int) -> None:
    """Whatever bytes change, the file opens and reads to its end, or lowbit refuses it."""
    path = tmp_path / "x.gguf"
    original = rich_file(path)
    chance = random.Random(seed)
    opened = 0
    for _ in range(400):
        data = bytearray(original)
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(len(data))
            data[place] = chance.choice([0, 1, 127, 128, 255, data[place] ^ 1 << chance.randrange(8)])
        if chance.random() < 0.2:
            place = chance.randrange(len(data))
            data[place : place + chance.randint(0, 9)] = chance.randbytes(chance.randint(0, 9))
        path.write_bytes(data)
        opened += exercise(path)
    assert 0 < opened < 400


if Path("/proc/self/statm").exists():

    def test_memory_is_bounded(tmp_path: Path) -> None:
        """No count in a file makes lowbit ask for memory that the file's size does not justify."""
        import resource

        paths = [tmp_path / f"{index}.gguf" for index in range(len(CASES))]
        for path, case in zip(paths, CASES, strict=True):
            path.write_bytes(case.data)
        exercise(paths[0])
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        old = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (64 << 20), old[1]))
        try:
            assert not any(exercise(path) for path in paths)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, old)


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda path: None, "No such file"), (os.mkdir, "found a directory")]
    + ([(os.mkfifo, "found a device or pipe")] if hasattr(os, "mkfifo") else []),
)
def test_not_a_file(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    path = tmp_path / "x.gguf"
    make(path)
    with pytest.raises(lowbit.FileError, match=rf"x\.gguf: cannot open: .*{message}"):
        lowbit.gguf.open(path)


def test_what_is_odd_but_valid_opens(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    odd = {
        "nothing": build(),
        "no padding after the header": build((FULL,), alignment=1),
        "name of 63 bytes": build((), (info("t" * 63),), bytes(32)),
        "empty name": build((), (info(""),), bytes(32)),
        "gap and any order": build((), (info("a", offset=128), info("b")), bytes(160)),
        "no padding after the last tensor": build((), (info(dims=(1,)),), bytes(4)),
        "more data than tensors": build((), (info(),), bytes(100)),
        "dimension of zero": build((), (info("a", dims=(8, 0)), info("b")), bytes(32)),
        "empty arrays": build((entry("k", ARRAY, array(U8, 0)), entry("s", ARRAY, array(STRING, 0)))),
    }
    for name, data in odd.items():
        path.write_bytes(data)
        assert exercise(path), name


# Types of ggml that stand in files: plain numbers, and what lowbit has a codec for.
NUMBERS = {"F64", "I8", "I16", "I32", "I64"}
SIZES = {kind.name: (int(kind), *size) for kind, size in peer.GGML_QUANT_SIZES.items()}
SIZES["Q8_1"] = (9, 32, 36)  # 40 in releases of the package before ggml's two scales became half-precision there


@pytest.mark.parametrize("name", sorted(({known.name for known in lowbit.formats()} | NUMBERS) & set(SIZES)))
def test_every_type_has_its_true_size(tmp_path: Path, name: str) -> None:
    """As the gguf package knows it."""
    path = tmp_path / "x.gguf"
    kind, block_size, block_bytes = SIZES[name]
    path.write_bytes(build((), (info(dims=(block_size, 3), kind=kind),), bytes(3 * block_bytes)))
    file = lowbit.gguf.open(path)
    assert file.infos["t"] == ("t", (3, block_size), name)
    assert file.num_bytes("t") == 3 * block_bytes
    assert file.tensors["t"].shape == (3, block_size)
