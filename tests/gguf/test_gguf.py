"""GGUF reading and writing, against the `gguf` package in both directions."""

from __future__ import annotations

import gc
import itertools
import os
import struct
from pathlib import Path
from typing import Any, ClassVar

import gguf as peer
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbit

SCALARS = {
    "a.u8": np.uint8(255),
    "a.i8": np.int8(-128),
    "a.u16": np.uint16(65535),
    "a.i16": np.int16(-32768),
    "a.u32": np.uint32(2**32 - 1),
    "a.i32": np.int32(-(2**31)),
    "a.u64": np.uint64(2**64 - 1),
    "a.i64": np.int64(-(2**63)),
    "a.f32": np.float32(1.1),
    "a.f64": np.float64(1.1),
    "a.true": np.bool_(True),
    "a.false": np.bool_(False),
    "a.string": "zażółć \U0001f600\0 gęślą",
    "a.empty": "",
}
ARRAYS = {
    f"b.{dtype.__name__}": np.array(values, dtype)
    for dtype, values in [
        (np.uint8, [0, 255]),
        (np.int8, [-128, 127]),
        (np.uint16, [0, 65535]),
        (np.int16, [-32768, 32767]),
        (np.uint32, [0, 2**32 - 1]),
        (np.int32, [-(2**31), 2**31 - 1]),
        (np.uint64, [0, 2**64 - 1]),
        (np.int64, [-(2**63), 2**63 - 1]),
        (np.float32, [1.1, -0.0, np.inf]),
        (np.float64, [1.1, -0.0, np.nan]),
        (np.bool_, [True, False, True]),
    ]
}
LISTS = {"c.strings": ["one", "", "\U0001f600 two", "x" * 300]}
METADATA: dict[str, Any] = {**SCALARS, **ARRAYS, **LISTS}


def make_tensors() -> dict[str, Any]:
    rng = np.random.default_rng(7)
    weights = rng.standard_normal((6, 64)).astype(np.float32)
    return {
        "f32": weights,
        "f16": weights.astype(np.float16),
        "bf16": weights.astype(ml_dtypes.bfloat16),
        "f64": weights.astype(np.float64),
        "i8": rng.integers(-128, 127, 33).astype(np.int8),
        "i16": rng.integers(-9, 9, (3, 5)).astype(np.int16),
        "i32": rng.integers(-9, 9, (2, 3, 5)).astype(np.int32),
        "i64": rng.integers(-9, 9, (2, 1, 3, 5)).astype(np.int64),
        "q8_0": lowbit.quantize(weights, "Q8_0"),
        "q8_0 stack": lowbit.quantize(rng.standard_normal((2, 3, 32)).astype(np.float32), "Q8_0"),
    }


def data_of(tensor: Any) -> np.ndarray:
    return tensor.data if isinstance(tensor, lowbit.QTensor) else tensor


def assert_same_value(ours: Any, expected: Any) -> None:
    if isinstance(expected, str | list):
        assert type(ours) is type(expected)
        assert ours == expected
    else:
        assert ours.dtype == expected.dtype
        np.testing.assert_array_equal(ours, expected)


def assert_same_tensors(ours: Any, expected: dict[str, Any]) -> None:
    assert list(ours) == list(expected)
    for name, tensor in expected.items():
        assert type(ours[name]) is type(tensor)
        assert ours[name].shape == tensor.shape
        assert data_of(ours[name]).dtype == data_of(tensor).dtype
        assert data_of(ours[name]).tobytes() == data_of(tensor).tobytes()
        if isinstance(tensor, lowbit.QTensor):
            assert ours[name].format == tensor.format


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "sample.gguf"
    lowbit.gguf.write(path, METADATA, make_tensors())
    return path


def write_with_peer(path: Path, metadata: dict[str, Any], tensors: dict[str, Any], **options: Any) -> None:
    """Writes typed metadata and tensors with the gguf package."""
    writer = peer.GGUFWriter(path, "llama", **options)
    types = peer.GGUFValueType
    for key, value in metadata.items():
        if isinstance(value, str):
            writer.add_key_value(key, value, types.STRING)
        elif isinstance(value, list):
            writer.add_key_value(key, value, types.ARRAY, sub_type=types.STRING)
        elif value.ndim:
            writer.add_key_value(key, value.tolist(), types.ARRAY, sub_type=types[value.dtype.name.upper()])
        else:
            writer.add_key_value(key, value.item(), types[value.dtype.name.upper()])
    for name, tensor in tensors.items():
        if isinstance(tensor, lowbit.QTensor):
            writer.add_tensor(name, tensor.data, raw_dtype=peer.GGMLQuantizationType[tensor.format])
        elif tensor.dtype == ml_dtypes.bfloat16:
            writer.add_tensor(name, tensor.view(np.uint8), raw_dtype=peer.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_peer_reads_what_we_write(sample: Path) -> None:
    reader = peer.GGUFReader(sample)
    keys = [key for key in reader.fields if not key.startswith("GGUF.")]
    assert keys == list(METADATA)
    for key, expected in METADATA.items():
        field = reader.fields[key]
        name = "string" if isinstance(expected, str | list) else expected.dtype.name
        assert field.types[-1].name.lower() == name
        assert (field.types[0] == peer.GGUFValueType.ARRAY) == (isinstance(expected, list) or np.ndim(expected) > 0)
        np.testing.assert_array_equal(field.contents(), expected)
    tensors = make_tensors()
    assert [tensor.name for tensor in reader.tensors] == list(tensors)
    for found in reader.tensors:
        expected = tensors[found.name]
        assert tuple(reversed(found.shape.tolist())) == expected.shape
        assert found.data.tobytes() == data_of(expected).tobytes()


def test_we_read_what_peer_writes(tmp_path: Path) -> None:
    path = tmp_path / "peer.gguf"
    write_with_peer(path, METADATA, make_tensors())
    with lowbit.gguf.open(path) as file:
        assert file.version == 3
        assert file.alignment == 32
        assert list(file.metadata) == ["general.architecture", *METADATA]
        for key, expected in METADATA.items():
            assert_same_value(file.typed(key), expected)
        assert_same_tensors(file.tensors, make_tensors())


def test_bytes_equal_the_peers(tmp_path: Path) -> None:
    write_with_peer(tmp_path / "peer.gguf", METADATA, make_tensors())
    lowbit.gguf.write(tmp_path / "ours.gguf", {"general.architecture": "llama", **METADATA}, make_tensors())
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "peer.gguf").read_bytes()


def test_round_trip_keeps_types_order_and_bytes(sample: Path, tmp_path: Path) -> None:
    with lowbit.gguf.open(sample) as file:
        for key, expected in METADATA.items():
            assert_same_value(file.typed(key), expected)
        assert_same_tensors(file.tensors, make_tensors())
        copy = tmp_path / "copy.gguf"
        lowbit.gguf.write(copy, {key: file.typed(key) for key in file.metadata}, file.tensors)
        size = lowbit.gguf.file_size({key: file.typed(key) for key in file.metadata}, file.infos.values())
    assert copy.read_bytes() == sample.read_bytes()
    assert size == sample.stat().st_size


def test_metadata_gives_plain_python_values(sample: Path) -> None:
    metadata = lowbit.gguf.open(sample).metadata
    for key, expected in SCALARS.items():
        plain = expected if isinstance(expected, str) else expected.item()
        assert type(metadata[key]) is type(plain)
        assert metadata[key] == plain
    assert metadata["c.strings"] == LISTS["c.strings"]
    array = metadata["b.int16"]
    assert array.dtype == np.int16
    assert not array.flags.writeable
    assert "a.u8" in metadata
    assert "none" not in metadata
    with pytest.raises(KeyError, match="none"):
        metadata["none"]


def test_python_values_get_the_documented_types(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    values = {
        "bool": True,
        "u32": 2**32 - 1,
        "u64": 2**32,
        "i32": -(2**31),
        "i64": -(2**31) - 1,
        "f32": 0.1,
        "none": [],
    }
    lowbit.gguf.write(path, values, {})
    file = lowbit.gguf.open(path)
    types = [np.bool_, np.uint32, np.uint64, np.int32, np.int64, np.float32]
    for (key, value), dtype in zip(values.items(), types, strict=False):
        assert_same_value(file.typed(key), dtype(value))
    assert file.metadata["none"] == []


def test_big_endian_and_strided_arrays_are_written_right(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    weights = np.arange(24, dtype=np.float32).reshape(4, 6)
    tensors = {"big": weights.astype(">f4"), "strided": weights[::2, ::-1], "transposed": weights.T}
    lowbit.gguf.write(path, {"k": np.array([1, 2], ">u4"), "s": np.arange(9)[::3]}, tensors)
    file = lowbit.gguf.open(path)
    np.testing.assert_array_equal(file.metadata["k"], [1, 2])
    np.testing.assert_array_equal(file.metadata["s"], [0, 3, 6])
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(file.tensors[name], tensor)


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_alignment(tmp_path: Path, alignment: int) -> None:
    path = tmp_path / "x.gguf"
    lowbit.gguf.write(path, {"general.alignment": alignment}, make_tensors())
    file = lowbit.gguf.open(path)
    assert file.alignment == alignment
    assert_same_tensors(file.tensors, make_tensors())
    offsets = [data_of(tensor).ctypes.data % alignment for tensor in file.tensors.values()]
    assert offsets == [0] * len(offsets)
    reader = peer.GGUFReader(path)
    assert [tensor.data.tobytes() for tensor in reader.tensors] == [
        data_of(t).tobytes() for t in make_tensors().values()
    ]


def test_version_2_reads_like_version_3(sample: Path) -> None:
    data = bytearray(sample.read_bytes())
    data[4] = 2
    sample.write_bytes(data)
    file = lowbit.gguf.open(sample)
    assert file.version == 2
    assert_same_tensors(file.tensors, make_tensors())


def test_zero_sized_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    tensors = {"a": np.zeros((0, 4), np.float32), "b": np.ones(3, np.float32), "c": np.zeros((4, 0), np.float32)}
    lowbit.gguf.write(path, {}, tensors)
    assert_same_tensors(lowbit.gguf.open(path).tensors, tensors)


def test_views_keep_the_map_alive_and_are_read_only(sample: Path) -> None:
    with lowbit.gguf.open(sample) as file:
        view = file.tensors["f32"]
        blocks = file.tensors["q8_0"].data
    del file
    sample.unlink()
    gc.collect()
    assert view.tobytes() == make_tensors()["f32"].tobytes()
    assert blocks.tobytes() == make_tensors()["q8_0"].data.tobytes()
    for array in (view, blocks):
        assert not array.flags.owndata
        with pytest.raises(ValueError):  # noqa: PT011 - the words are NumPy's
            array[0] = 0
        with pytest.raises(ValueError):  # noqa: PT011
            array.flags.writeable = True


def test_a_closed_file_says_so(sample: Path) -> None:
    with lowbit.gguf.open(sample) as file:
        pass
    with pytest.raises(lowbit.InputError, match=r"sample\.gguf: the file is closed"):
        file.tensors["f32"]
    with pytest.raises(lowbit.InputError, match="closed"):
        file.metadata["a.u8"]


def mapped_kilobytes(path: Path, field: str) -> int:
    """What the kernel counts for the maps of this file."""
    total = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith(field + ":"):
            total += int(line.split()[1])
    return total


def test_opening_a_large_file_touches_only_its_metadata(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    infos = [lowbit.gguf.TensorInfo(f"t{i}", (1 << 14, 1 << 14), "F32") for i in range(4)]
    header = lowbit.gguf.file_size({}, infos) - (4 << 30)
    info = b"".join(struct.pack("<Q2sIQQIQ", 2, t.name.encode(), 2, *t.shape, 0, i << 30) for i, t in enumerate(infos))
    path.write_bytes((b"GGUF" + struct.pack("<IQQ", 3, 4, 0) + info).ljust(header, b"\0"))
    os.truncate(path, header + (4 << 30))
    file = lowbit.gguf.open(path)
    tensor = file.tensors["t3"]
    assert tensor.shape == (1 << 14, 1 << 14)
    assert tensor[-1, -1] == 0
    if Path("/proc/self/smaps").exists():
        assert mapped_kilobytes(path, "Size") >= 4 << 20
        assert mapped_kilobytes(path, "Rss") < 8 << 10


class TestSplit:
    TENSORS: ClassVar = {f"t{i}": np.full((3, i + 1), i, np.float32) for i in range(6)}

    @pytest.fixture
    def shards(self, tmp_path: Path) -> list[Path]:
        write_with_peer(tmp_path / "m.gguf", {"k": "v"}, self.TENSORS, split_max_tensors=2)
        paths = sorted(tmp_path.glob("m-*.gguf"))
        assert [path.name for path in paths] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
        return paths

    @pytest.mark.parametrize("which", [0, 1, 2])
    def test_any_file_opens_the_whole(self, shards: list[Path], which: int) -> None:
        file = lowbit.gguf.open(shards[which])
        assert_same_tensors(file.tensors, self.TENSORS)
        assert file.metadata["k"] == "v"
        assert file.metadata["split.no"] == 0

    def test_missing_file_is_named(self, shards: list[Path]) -> None:
        shards[1].unlink()
        with pytest.raises(lowbit.FileError, match=r"m-00002-of-00003\.gguf: file 2 of 3 of a split model: "):
            lowbit.gguf.open(shards[0])

    def test_other_name_is_refused(self, shards: list[Path], tmp_path: Path) -> None:
        other = shards[1].rename(tmp_path / "other.gguf")
        with pytest.raises(lowbit.FormatError, match=r"expected a name that ends in \"-00002-of-00003\.gguf\""):
            lowbit.gguf.open(other)

    @pytest.mark.parametrize(
        ("which", "changes", "message"),
        [
            (1, {"split.no": np.uint16(2)}, r'key "split.no": expected 1, found 2'),
            (1, {"split.count": np.uint16(4)}, r'key "split.count": expected 3, found 4'),
            (1, {"split.count": "3"}, r'key "split.count": expected an integer, found string'),
            (1, {"split.no": None}, r'key "split.no": expected in a file of a split model'),
            (0, {"split.no": np.int32(-1)}, r'key "split.no": expected no negative number'),
            (0, {"split.no": np.uint16(3)}, r'key "split.no": expected less than 3, found 3'),
            (0, {"split.no": np.array([0, 0])}, r'key "split.no": expected an integer, found an array'),
            (0, {"split.tensors.count": np.int32(7)}, r'key "split.tensors.count": expected 6, .* found 7'),
            (0, {"split.tensors.count": None}, r'key "split.tensors.count"'),
        ],
    )
    def test_contradictions(self, shards: list[Path], which: int, changes: dict[str, Any], message: str) -> None:
        self.rewrite(shards[which], changes)
        with pytest.raises(lowbit.FormatError, match=message):
            lowbit.gguf.open(shards[0])

    def test_tensor_in_two_files(self, shards: list[Path]) -> None:
        data = shards[1].read_bytes()
        shards[1].write_bytes(data.replace(b"\2\0\0\0\0\0\0\0t3", b"\2\0\0\0\0\0\0\0t0"))
        with pytest.raises(lowbit.FormatError, match='tensor "t0" occurs in two files'):
            lowbit.gguf.open(shards[0])

    def rewrite(self, path: Path, changes: dict[str, Any]) -> None:
        """Writes the file again with some keys changed, or left out where the change is None."""
        reader = peer.GGUFReader(path)
        metadata: dict[str, Any] = {}
        for key, field in reader.fields.items():
            if not key.startswith("GGUF."):
                value = field.contents()
                metadata[key] = value if isinstance(value, str) else field.parts[-1][0]
        metadata.update(changes)
        tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
        del reader
        lowbit.gguf.write(path, {key: value for key, value in metadata.items() if value is not None}, tensors)


class TestWriter:
    INFOS = (
        lowbit.gguf.TensorInfo("a", (3, 5), "F32"),
        lowbit.gguf.TensorInfo("empty", (0, 5), "F32"),
        lowbit.gguf.TensorInfo("b", (2, 64), "Q8_0"),
        lowbit.gguf.TensorInfo("c", (7,), "I8"),
    )
    DATA = bytes(range(60)) + bytes(range(136)) + bytes(range(7))

    @settings(max_examples=50)
    @given(cuts=st.lists(st.integers(0, 203), max_size=8))
    def test_pieces_of_any_size(self, tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
        path = tmp_path_factory.mktemp("pieces") / "x.gguf"
        edges = [0, *sorted(cuts), len(self.DATA)]
        with lowbit.gguf.Writer(path, {}, self.INFOS) as writer:
            for begin, end in itertools.pairwise(edges):
                writer.write(self.DATA[begin:end])
        tensors = lowbit.gguf.open(path).tensors
        assert b"".join(data_of(tensors[info.name]).tobytes() for info in self.INFOS) == self.DATA
        assert path.stat().st_size == lowbit.gguf.file_size({}, self.INFOS)

    def test_too_few_bytes(self, tmp_path: Path) -> None:
        writer = lowbit.gguf.Writer(tmp_path / "x.gguf", {}, self.INFOS)
        writer.write(self.DATA[:100])
        with pytest.raises(lowbit.InputError, match='tensor "b": expected 136 bytes, got 40'):
            writer.finish()
        assert os.listdir(tmp_path) == []
        with pytest.raises(lowbit.InputError, match="closed"):
            writer.write(b"")

    def test_too_many_bytes(self, tmp_path: Path) -> None:
        writer = lowbit.gguf.Writer(tmp_path / "x.gguf", {}, self.INFOS)
        with pytest.raises(lowbit.InputError, match="2 bytes more than the 4 tensors have"):
            writer.write(self.DATA + b"xx")
        assert os.listdir(tmp_path) == []

    def test_nothing_appears_before_the_end(self, tmp_path: Path) -> None:
        path = tmp_path / "x.gguf"
        path.write_text("before")
        with lowbit.gguf.Writer(path, {}, self.INFOS) as writer:
            writer.write(self.DATA)
            assert path.read_text() == "before"
        assert path.read_bytes()[:4] == b"GGUF"
        assert os.listdir(tmp_path) == ["x.gguf"]

    def test_an_exception_leaves_what_was_there(self, tmp_path: Path) -> None:
        path = tmp_path / "x.gguf"
        path.write_text("before")
        with pytest.raises(KeyboardInterrupt), lowbit.gguf.Writer(path, {}, self.INFOS):
            raise KeyboardInterrupt
        assert path.read_text() == "before"
        assert os.listdir(tmp_path) == ["x.gguf"]

    def test_an_open_map_survives_replacement(self, sample: Path) -> None:
        view = lowbit.gguf.open(sample).tensors["f32"]
        lowbit.gguf.write(sample, {}, {})
        assert view.tobytes() == make_tensors()["f32"].tobytes()

    @pytest.mark.parametrize(
        ("metadata", "infos", "message"),
        [
            ({"": 1}, [], r'key "": expected a name'),
            ({"k" * 65536: 1}, [], r"key .* too long \(65536 of at most 65535 bytes\)"),
            ({"k\ud800": 1}, [], r"key .*expected a name that UTF-8 can encode"),
            ({7: 1}, [], r"key 7: expected a name"),
            ({"k": "\ud800"}, [], r'key "k": expected strings that UTF-8 can encode'),
            ({"k": ["a", "\ud800"]}, [], r'key "k": expected strings that UTF-8 can encode'),
            ({"k": 2**64}, [], r"key k: expected an integer of at most 64 bits"),
            ({"k": -(2**63) - 1}, [], r"key k: expected an integer of at most 64 bits"),
            ({"k": 1e39}, [], r"key k: 1e\+39 exceeds float32"),
            ({"k": [1, 2]}, [], r"key k: expected .*got list"),
            ({"k": None}, [], r"key k: expected .*got NoneType"),
            ({"k": np.zeros((2, 2))}, [], r"key k: expected an array of one axis, got shape"),
            ({"k": np.float16(1)}, [], r'key "k": GGUF metadata has no type for float16'),
            ({"k": np.complex64(1)}, [], r'key "k": GGUF metadata has no type for complex64'),
            ({"general.alignment": 0}, [], r'key "general.alignment": expected a power of two from 8 .*got 0'),
            ({"general.alignment": 24}, [], r'key "general.alignment": expected a power of two .*got 24'),
            ({"general.alignment": 2**31}, [], r'key "general.alignment": expected a power of two .*got 2147483648'),
            ({"general.alignment": np.int32(32)}, [], r'key "general.alignment": expected a uint32, got int32'),
            ({}, [("", (1,), "F32")], r'tensor "": expected a name'),
            ({}, [("t" * 64, (1,), "F32")], r"tensor .* too long \(64 of at most 63 bytes\)"),
            ({}, [("t", (1,), "F32"), ("t", (2,), "F32")], r'tensor "t": the name occurs twice'),
            ({}, [("t", (), "F32")], r'tensor "t" of F32: expected 1 to 4 dimensions'),
            ({}, [("t", (1, 1, 1, 1, 1), "F32")], r'tensor "t": expected 1 to 4 dimensions, got 5'),
            ({}, [("t", (-1,), "F32")], r"tensor t: size: expected 0 to 9223372036854775807, got -1"),
            ({}, [("t", (2**40, 2**40), "F32")], r'tensor "t" of F32: the product of dimensions overflows'),
            ({}, [("t", (2**61,), "F64")], r'tensor "t" of F64: the number of bytes overflows'),
            ({}, [("t", (2**61,), "I8"), ("u", (2**62,), "I8")], r'tensor "u" of I8: the size of the file overflows'),
            ({}, [("t", (2, 33), "Q8_0")], r'tensor "t" of Q8_0: the block size .* does not divide'),
            ({}, [("t", (1,), "Q9_9")], r"Q9_9"),
        ],
    )
    def test_bad_arguments(self, tmp_path: Path, metadata: Any, infos: Any, message: str) -> None:
        with pytest.raises(lowbit.InputError, match=message):
            lowbit.gguf.Writer(tmp_path / "x.gguf", metadata, infos)
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("tensor", [np.zeros(3, np.uint8), np.zeros(3, np.complex64), np.zeros(3, "V3")])
    def test_bad_tensors(self, tmp_path: Path, tensor: Any) -> None:
        with pytest.raises(lowbit.InputError, match="tensor t: expected a QTensor or an array of float32"):
            lowbit.gguf.write(tmp_path / "x.gguf", {}, {"t": tensor})

    @pytest.mark.parametrize("where", ["missing/x.gguf", "."])
    def test_impossible_targets(self, tmp_path: Path, where: str) -> None:
        with pytest.raises(lowbit.FileError, match=rf"^{tmp_path}.*: cannot write"):
            lowbit.gguf.write(tmp_path / where, {}, {})
        assert os.listdir(tmp_path) == []
