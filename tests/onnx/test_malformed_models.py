"""Hostile ONNX files: each is refused with a typed error that names the place, in bounded time and memory."""

from __future__ import annotations

import dataclasses
import os
import random
import struct
from pathlib import Path
from typing import NamedTuple

import pytest
from onnx_files import whole_model
from program import check

import lowbit
import lowbit.onnx

VARINT, FIXED64, BYTES, GROUP, END, FIXED32 = range(6)
MAX = 2**64 - 1
UNSUPPORTED = lowbit.UnsupportedError


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def tag(number: int, kind: int) -> bytes:
    return varint(number << 3 | kind)


def num(number: int, value: int) -> bytes:
    return tag(number, VARINT) + varint(value & MAX)


def sub(number: int, *parts: bytes | str) -> bytes:
    content = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
    return tag(number, BYTES) + varint(len(content)) + content


def model(*graph: bytes, more: bytes = b"") -> bytes:
    """The fields of the graph; `more`: of the model."""
    return num(1, 8) + sub(7, *graph) + sub(8, num(2, 17)) + more


def tensor(*fields: bytes, kind: int = 1, dims: tuple[int, ...] = (2,), name: str = "w") -> bytes:
    return sub(5, *(num(1, dim) for dim in dims), num(2, kind), sub(8, name), *fields)


def nested(depth: int) -> bytes:
    """Types inside types."""
    content = b""
    for _ in range(depth):
        content = sub(4, sub(1, content))
    return content


RAW = sub(9, bytes(8))
NODE = sub(1, sub(3, "n"), sub(4, "Op"))


class Case(NamedTuple):
    """A crafted file, the class of the error and what its message says."""

    name: str
    data: bytes
    message: str
    error: type[lowbit.Error] = lowbit.FormatError


WIRE = [
    Case("empty file", b"", "the file is empty: download it again"),
    Case("text", b"hello, this is some text", "ModelProto at offset 2: group 13 was not opened"),
    Case("field number 0", b"\x00\x01", "ModelProto at offset 0: field number 0 is not valid"),
    Case("field number 2^29", tag(2**29, VARINT) + b"\1", "field number 536870912 is not valid"),
    Case("field number 2^61", tag(2**61 - 1, VARINT) + b"\1", "field number 2305843009213693951 is not valid"),
    Case("wire type 6", b"\x0e\x01", "ModelProto at offset 0: field 1 has the unknown wire type 6"),
    Case("wire type 7", b"\xff\x01", "has the unknown wire type 7"),
    Case("endless varint", b"\x08" + b"\x80" * 11, "ModelProto at offset 1: a varint has more than 10 bytes"),
    Case("endless tag", b"\xff" * 20, "ModelProto at offset 0: a varint has more than 10 bytes"),
    Case("cut varint", b"\x08\x80", "ModelProto at offset 1: a varint goes beyond the end"),
    Case("no number", b"\x08", "ModelProto at offset 1: a varint goes beyond the end"),
    Case("length beyond the file", b"\x3a\x05\x0a", "field 7 has 5 bytes, but 1 are left"),
    Case("length of 2^64", b"\x3a" + varint(MAX), "field 7 has 18446744073709551615 bytes, but 0 are left"),
    Case(
        "length beyond the message", model(b"\x0a\x09"), r"GraphProto at offset 4: field 1 has 9 bytes, but 0 are left"
    ),
    Case("fixed32 cut", tag(99, FIXED32) + b"\0\0\0", "field 99 has 4 bytes, but 3 are left"),
    Case("fixed64 cut", tag(99, FIXED64) + b"\0", "field 99 has 8 bytes, but 1 are left"),
    Case("group without end", tag(99, GROUP) + b"\x08\x01", "group 99 has no end"),
    Case("end of no group", tag(99, END), "group 99 was not opened"),
    Case("end of another group", tag(99, GROUP) + tag(98, END), "group 99 is ended by the end of group 98"),
    Case("nested groups", tag(99, GROUP) * 101 + tag(99, END) * 101, "more than 100 nested groups"),
    Case("a million groups", tag(99, GROUP) * 10**6, "more than 100 nested groups"),
    Case(
        "number as a message", num(7, 1), "ModelProto at offset 0: field graph: expected a length and bytes, found a v"
    ),
    Case("message as a number", sub(1, b"ab"), "field ir_version: expected a varint, found a length and bytes"),
    Case(
        "float as a varint", model(sub(1, sub(5, num(2, 1)))), "AttributeProto .* field f: expected 4 bytes, found a v"
    ),
    Case(
        "string as fixed64", model(sub(1, tag(4, FIXED64) + bytes(8))), "field op_type: expected a length .*found 8 by"
    ),
    Case("group as a field", tag(7, GROUP) + tag(7, END), "field graph: expected a length and bytes, found a group"),
    Case("floats of 3 bytes", model(sub(1, sub(5, sub(7, b"abc")))), "field floats: 3 bytes are no multiple of 4"),
    Case("packed varint cut", model(sub(1, sub(5, sub(8, b"\x80")))), "AttributeProto .* a varint goes beyond the end"),
    Case("deep types", model(sub(11, sub(2, nested(60)))), "messages are nested deeper than 100", UNSUPPORTED),
    Case("very deep types", model(sub(11, sub(2, nested(3000)))), "messages are nested deeper than 100", UNSUPPORTED),
]

MODEL = [
    Case("no graph", num(1, 8), "the model has no graph"),
    Case("two graphs", model() + sub(7, b""), "ModelProto at offset .*: field graph: the field occurs twice"),
    Case("IR version 2", num(1, 2) + sub(7, b""), "IR version 2: expected 3 to 14", UNSUPPORTED),
    Case("IR version 15", num(1, 15) + sub(7, b""), "IR version 15: expected 3 to 14", UNSUPPORTED),
    Case("IR version -1", num(1, -1) + sub(7, b""), "IR version -1: expected 3 to 14", UNSUPPORTED),
    Case("no IR version", sub(7, b""), "IR version 0: expected 3 to 14", UNSUPPORTED),
    Case(
        "attribute twice",
        model(sub(1, sub(3, "n"), *[sub(5, sub(1, "a"))] * 2)),
        "node 'n': attribute 'a' occurs twice",
    ),
    Case("attribute of type 99", model(sub(1, sub(5, sub(1, "a"), num(20, 99)))), "attribute 'a': unknown type 99"),
    Case("attribute of type -1", model(sub(1, sub(5, num(20, -1)))), "attribute '': unknown type -1"),
    Case("millions of nodes", model(b"\x0a\x00" * 2**21), "more than 2097152 messages, strings and", UNSUPPORTED),
    Case("millions of names", model(sub(1, b"\x0a\x00" * 2**21)), "more than 2097152 messages, str", UNSUPPORTED),
    Case("millions of unknown fields", model() + b"\xf8\x07\1" * 2**21, "more than 2097152 messages", UNSUPPORTED),
    Case("millions of strings", model(tensor(b"\x32\x00" * 2**21, kind=8)), "more than 2097152 messages", UNSUPPORTED),
    Case(
        "millions of numbers",
        model(sub(1, sub(5, sub(8, bytes(2**25 + 1))))),
        "more than 33554432 numbers in lists",
        UNSUPPORTED,
    ),
]

TENSORS = [
    Case("name twice", model(tensor(RAW), tensor(RAW)), "initializer w occurs twice"),
    Case("negative size", model(tensor(dims=(-1,))), r"tensor w: the shape \[-1\] is not valid"),
    Case("size of -2^63", model(tensor(dims=(-(2**63),))), r"tensor w: the shape \[-9223372036854775808\] is not"),
    Case("product of 2^64", model(tensor(dims=(2**32, 2**32))), r"the shape \[4294967296, 4294967296\] is not valid"),
    Case("product of 2^126", model(tensor(dims=(2**62, 2, 2**62))), "tensor w: the shape .* is not valid"),
    Case("65 sizes", model(tensor(dims=(1,) * 65)), "tensor w: 65 dimensions, more than 64", UNSUPPORTED),
    Case("a million sizes", model(tensor(dims=(2**62,) * 10**6)), "1000000 dimensions, more than 64", UNSUPPORTED),
    Case("type 0", model(tensor(kind=0)), "tensor w: unknown element type 0", UNSUPPORTED),
    Case("type 29", model(tensor(kind=29)), "tensor w: unknown element type 29", UNSUPPORTED),
    Case("type -1", model(tensor(kind=-1)), "tensor w: unknown element type -1", UNSUPPORTED),
    Case("segment", model(tensor(sub(3, num(1, 0)))), "tensor w is stored in segments", UNSUPPORTED),
    Case("too few bytes", model(tensor(sub(9, bytes(7)))), r"tensor w: float32 \[2\]: expected 8 bytes, found 7"),
    Case("too many bytes", model(tensor(sub(9, bytes(9)))), r"tensor w: float32 \[2\]: expected 8 bytes, found 9"),
    Case("4 bits too few", model(tensor(sub(9, b"1"), kind=22, dims=(3,))), r"int4 \[3\]: expected 2 bytes, found 1"),
    Case("6 bits too few", model(tensor(sub(9, b"123"), kind=27, dims=(5,))), r"expected 4 bytes, found 3"),
    Case("exabytes", model(tensor(RAW, dims=(2**60,))), "expected 4611686018427387904 bytes, found 8"),
    Case("raw strings", model(tensor(RAW, kind=8)), "tensor w: expected strings in string_data, found raw_data"),
    Case("strings elsewhere", model(tensor(num(14, 1), kind=8)), "strings in string_data, found external_data"),
    Case("too few strings", model(tensor(sub(6, "a"), kind=8)), "tensor w: expected 2 strings, found 1"),
    Case("in an attribute", model(sub(1, sub(5, num(20, 4), sub(5, num(2, 0))))), "element type 0", UNSUPPORTED),
    Case("no tensor", model(sub(1, sub(5, sub(1, "a"), num(20, 4)))), "attribute 'a': no TENSOR in it"),
    Case("no graph in it", model(sub(1, sub(5, sub(1, "a"), num(20, 5)))), "attribute 'a': no GRAPH in it"),
    Case("no location", model(tensor(num(14, 1))), "the file '': expected a relative path inside the model's folder"),
]  # fmt: skip

#: Refused when they are looked at.
ELEMENTS = [
    Case("too few numbers", model(tensor(sub(4, bytes(4)))), r"tensor w: float32 \[2\]: expected 8 bytes, found 4"),
    Case("too many numbers", model(tensor(sub(4, bytes(12)))), r"tensor w: float32 \[2\]: expected 8 bytes, found 12"),
    Case("the wrong field", model(tensor(sub(10, bytes(16)))), r"tensor w: float32 \[2\]: expected 8 bytes, found 0"),
    Case("no elements", model(tensor()), "tensor w: .*expected 8 bytes, found 0"),
    Case(
        "cut numbers", model(tensor(sub(7, b"\1\x80"), kind=7)), "TensorProto at offset .* a varint goes beyond the end"
    ),
    Case("endless number", model(tensor(sub(7, b"\xff" * 30), kind=7)), "a varint has more than 10 bytes"),
    Case("hidden overflow", model(tensor(dims=(0, 2**62, 2**62))), r"tensor w: no array has the shape \[0, 4611"),
]

CASES = WIRE + MODEL + TENSORS
ROOM = 96 << 20


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("valid") / "m.onnx"
    lowbit.onnx.write(path, whole_model())
    return path.read_bytes()


def exercise(path: Path) -> bool:
    """Opens the model, looks at all of it, and encodes it anew. False if it was refused, with an error of lowbit's."""
    try:
        found = lowbit.onnx.open(path)
        for graph in found.graph.graphs():
            for each in graph.tensors.values():
                each.array.tobytes()
        lowbit.inspect(path)
        lowbit.onnx.write(path.with_suffix(".copy"), dataclasses.replace(found, producer="p"), external_data=False)
    except lowbit.Error:
        return False
    return True


def test_the_builder_makes_valid_files(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model(NODE, tensor(RAW)))
    found = lowbit.onnx.open(path)
    assert [node.op_type for node in found.nodes] == ["Op"]
    assert found.initializers["w"].tolist() == [0, 0]
    assert exercise(path)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_malformed(tmp_path: Path, case: Case) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(case.data)
    with pytest.raises(case.error, match=case.message) as caught:
        lowbit.onnx.open(path)
    assert type(caught.value) is case.error
    assert "bad.onnx" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", ELEMENTS, ids=[case.name for case in ELEMENTS])
def test_malformed_elements(tmp_path: Path, case: Case) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(case.data)
    found = lowbit.onnx.open(path)
    with pytest.raises(case.error, match=case.message):
        found.graph.tensors["w"].array.tolist()


def test_what_is_odd_but_valid_opens(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    odd = {
        "nothing": model(),
        "a field twice": model(sub(2, "a"), sub(2, "b")),
        "an unknown group": model() + tag(99, GROUP) + num(1, 1) + tag(98, GROUP) + tag(98, END) + tag(99, END),
        "100 groups": model() + tag(99, GROUP) * 100 + tag(99, END) * 100,
        "numbers of ten bytes": b"\x88\x80\x80\x80\x80\x80\x80\x80\x80\x00\x88\x80\x00" + sub(7, b""),
        "deep types": model(sub(11, sub(2, nested(48)))),
        "a node without outputs": model(
            sub(1, sub(4, "Constant"), sub(5, sub(1, "value"), num(20, 4), sub(5, num(2, 1))))
        ),
        "text that is no UTF-8": model(sub(1, sub(3, b"\xff\xfe"), sub(4, b"\xed\xa0\x80"))),
        "the graph first": sub(7, NODE) + num(1, 8),
        "32 sizes, as many as any NumPy has": model(tensor(sub(9, bytes(4)), dims=(1,) * 32)),
        "an empty tensor with large sizes": model(tensor(dims=(0, 2**40))),
        "a bool of 2": model(tensor(sub(9, b"\2\0"), kind=9)),
        "a type with two kinds": model(sub(11, sub(2, sub(1, num(1, 1)), sub(4, b"")))),
        "an unknown type of a value": model(sub(11, sub(1, "x"), sub(2, sub(1, num(1, 99))))),
    }
    for name, data in odd.items():
        path.write_bytes(data)
        assert exercise(path), name
        lowbit.onnx.write(tmp_path / "copy.onnx", lowbit.onnx.open(path))
        assert (tmp_path / "copy.onnx").read_bytes() == data, name


def test_every_prefix(tmp_path: Path, valid: bytes) -> None:
    """Behind the graph are a few small fields, between which a cut is not seen."""
    path = tmp_path / "cut.onnx"
    opened = []
    for length in range(len(valid)):
        path.write_bytes(valid[:length])
        if exercise(path):
            opened.append(length)
    assert len(opened) < 10
    assert all(length > len(valid) - 200 for length in opened)


@pytest.mark.parametrize("part", range(4))
def test_every_byte_changed(tmp_path: Path, valid: bytes, part: int) -> None:
    """Without the elements of the weights, of which each byte is valid."""
    weights = valid.index(struct.pack("<2f", 0, 1 / 7))
    path = tmp_path / "m.onnx"
    opened = 0
    places = [place for place in range(len(valid)) if not weights + 16 <= place < weights + 2000]
    for place in places[part::4]:
        for value in (valid[place] ^ 1, valid[place] ^ 0x80, 0xFF):
            path.write_bytes(valid[:place] + bytes([value]) + valid[place + 1 :])
            opened += exercise(path)
    assert 0 < opened < 3 * len(places[part::4])


@pytest.mark.parametrize("seed", range(4))
def test_random_damage(tmp_path: Path, valid: bytes, seed: int) -> None:
    path = tmp_path / "m.onnx"
    chance = random.Random(seed)
    opened = 0
    for _ in range(300):
        data = bytearray(valid)
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(len(data))
            data[place : place + chance.randint(0, 9)] = chance.randbytes(chance.randint(0, 9))
        path.write_bytes(data)
        opened += exercise(path)
    assert 0 < opened < 300


LIMITED = """
import resource, sys
from pathlib import Path
import lowbit.onnx

folder, room = Path(sys.argv[1]), int(sys.argv[2])
for path in sorted(folder.glob("*.onnx")):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + path.stat().st_size + room
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        model = lowbit.onnx.open(path)
        list(model.initializers.values())
    except lowbit.Error as error:
        print(path.name, type(error).__name__)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""

if Path("/proc/self/statm").exists():

    def test_memory_is_bounded(tmp_path: Path) -> None:
        """Nothing in a file makes lowbit ask for memory that the file's size does not justify."""
        cases = [*CASES, *ELEMENTS]
        for index, case in enumerate(cases):
            (tmp_path / f"{index:03d}.onnx").write_bytes(case.data)
        printed = check(LIMITED, tmp_path, ROOM).splitlines()
        assert printed == [f"{index:03d}.onnx {case.error.__name__}" for index, case in enumerate(cases)]

    def test_gigabytes_of_text(tmp_path: Path) -> None:
        """In sparse files: the texts are not read."""
        size = 3 << 30
        heads = {
            "name": tag(2, BYTES) + varint(size),
            "node": tag(1, BYTES) + varint(size + 6) + tag(3, BYTES) + varint(size),
        }
        for name, head in heads.items():
            path = tmp_path / f"{name}.onnx"
            path.write_bytes(num(1, 8) + tag(7, BYTES) + varint(len(head) + size) + head)
            os.truncate(path, path.stat().st_size + size)
        printed = check(LIMITED, tmp_path, ROOM).splitlines()
        assert printed == ["name.onnx UnsupportedError", "node.onnx UnsupportedError"]
