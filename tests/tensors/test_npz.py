"""Packed tensors in .npz files: NumPy reads them, and nothing damaged is taken for one."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbit


@pytest.fixture
def w() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((4, 6, 64)).astype(np.float32)


def test_one_tensor(w: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "q"  # the name is taken as it is
    for q in (lowbit.quantize(w, "Q5_0"), lowbit.quantize(w, "Q8_0")[::2, 1::3], lowbit.quantize(w[0, 0], "Q4_1")):
        q.save(path)
        assert lowbit.QTensor.load(path) == q
        with np.load(path, allow_pickle=False) as file:
            np.testing.assert_array_equal(file["data"], q.data)
            assert str(file["format"]) == q.format
    assert [file.name for file in tmp_path.iterdir()] == ["q"]


def test_several_by_name(w: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "all.npz"
    tensors = {
        "blk.0.attn_q.weight": lowbit.quantize(w, "Q4_0"),
        "Ähnliches/\\ data": lowbit.quantize(w[:0], "Q8_0"),
        "x.data": lowbit.quantize(w.astype(ml_dtypes.bfloat16), "BF16"),
        "": lowbit.quantize(w[0], "F32"),
    }
    lowbit.save_npz(path, tensors)
    assert lowbit.load_npz(path) == tensors
    for name, q in tensors.items():
        assert lowbit.QTensor.load(path, name) == q
    with pytest.raises(lowbit.InputError, match="no packed tensor 'none'"):
        lowbit.QTensor.load(path, "none")
    # Arrays of somebody else stay what they are.
    with np.load(path) as file:
        np.savez(path, other=np.ones(3), **file)
    assert lowbit.load_npz(path) == tensors


def test_what_cannot_be_saved(w: np.ndarray, tmp_path: Path) -> None:
    q = lowbit.quantize(w, "Q4_0")
    for tensors, message in (
        ({"w": w}, "tensor 'w': expected a QTensor, got ndarray"),
        ({"a\0b": q}, "without NUL"),
        ({"\ud800": q}, "UTF-8 can encode"),
    ):
        with pytest.raises(lowbit.InputError, match=message):
            lowbit.save_npz(tmp_path / "x.npz", tensors)
    with pytest.raises(lowbit.FileError):
        q.save(tmp_path / "none" / "x.npz")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_what_was_there(w: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(b"before")

    def fail(file: io.RawIOBase, *_: object, **__: object) -> None:
        file.write(b"some")
        raise KeyboardInterrupt

    monkeypatch.setattr(np.lib.format, "write_array", fail)
    with pytest.raises(KeyboardInterrupt):
        lowbit.quantize(w, "Q4_0").save(path)
    assert path.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["x.npz"]


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


def archive(path: Path, members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def array(value: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, value, allow_pickle=True)
    return file.getvalue()


FORMAT = ("format.npy", array(np.array("Q8_0")))
DATA = ("data.npy", array(np.zeros((2, 34), np.uint8)))
DESCRIPTION = "{{'descr': '|u1', 'fortran_order': False, 'shape': {}, }}".format

HOSTILE = {
    "nothing": ([], lowbit.FormatError, "no packed tensors"),
    "no format": ([DATA], lowbit.FormatError, "has only one of data and format"),
    "no data": ([FORMAT], lowbit.FormatError, "has only one of data and format"),
    "unknown format": ([DATA, ("format.npy", array(np.array("Q9_9")))], lowbit.UnsupportedError, "Q9_9"),
    "format of bytes": ([DATA, ("format.npy", array(np.array(b"Q8_0")))], lowbit.FormatError, "name of a format"),
    "formats": ([DATA, ("format.npy", array(np.array(["Q8_0"])))], lowbit.FormatError, "name of a format"),
    "long format": ([DATA, ("format.npy", array(np.array("Q" * 999)))], lowbit.FormatError, "format name of"),
    "pickle": ([DATA, ("format.npy", array(np.array("Q8_0", object)))], lowbit.FormatError, "not an .npz file"),
    "pickled data": ([FORMAT, ("data.npy", array(np.array([1], object)))], lowbit.FormatError, "found object"),
    "floats": ([FORMAT, ("data.npy", array(np.zeros((2, 34))))], lowbit.FormatError, "found float64"),
    "scalar": ([FORMAT, ("data.npy", array(np.uint8(1)))], lowbit.FormatError, r"found uint8 \(\)"),
    "columns": ([FORMAT, ("data.npy", array(np.zeros((34, 34), np.uint8, "F")))], lowbit.FormatError, "in C order"),
    "half a block": ([FORMAT, ("data.npy", array(np.zeros((2, 33), np.uint8)))], lowbit.FormatError, "multiple of 34"),
    "no array": ([FORMAT, ("data.npy", b"It was the best of times")], lowbit.FormatError, "not an .npz file"),
    "version": ([FORMAT, ("data.npy", npy("", version=b"\x09\x00"))], lowbit.FormatError, "version"),
    "code": ([FORMAT, ("data.npy", npy("__import__('os')"))], lowbit.FormatError, "not an .npz file"),
    "huge": ([FORMAT, ("data.npy", npy(DESCRIPTION((1 << 40, 34))))], lowbit.FormatError, "expected 0 bytes"),
    "negative": ([FORMAT, ("data.npy", npy(DESCRIPTION((-1, -34)), bytes(34)))], lowbit.FormatError, "found uint8"),
    "huge and empty": ([FORMAT, ("data.npy", npy(DESCRIPTION((0, 34 << 70))))], lowbit.FormatError, "not an .npz"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(case: str, tmp_path: Path) -> None:
    members, kind, message = HOSTILE[case]
    path = archive(tmp_path / "x.npz", members)
    with pytest.raises(kind, match=f"^{re.escape(str(path))}: .*{message}"):
        lowbit.load_npz(path)


def test_other_hostile_files(tmp_path: Path) -> None:
    with pytest.raises(lowbit.UnsupportedError, match="the array is compressed"):
        lowbit.load_npz(archive(tmp_path / "x.npz", [FORMAT, DATA], zipfile.ZIP_DEFLATED))
    with pytest.warns(UserWarning):  # noqa: PT030 - the words are those of zipfile
        archive(tmp_path / "x.npz", [FORMAT, DATA, DATA])
    with pytest.raises(lowbit.FormatError, match="two arrays have the same name"):
        lowbit.load_npz(tmp_path / "x.npz")
    with pytest.raises(lowbit.FileError, match="No such file"):
        lowbit.load_npz(tmp_path / "none.npz")
    with pytest.raises(lowbit.FileError, match="/none"):
        lowbit.QTensor.load("/none/none")
    # A member that says it is larger than the file.
    data = bytearray(archive(tmp_path / "x.npz", [FORMAT, DATA]).read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = struct.pack("<II", (1 << 31) - 1, (1 << 31) - 1)
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(lowbit.FormatError, match=f"2147483647 bytes in a file of {len(data)}"):
        lowbit.load_npz(tmp_path / "x.npz")
    # A bit flipped in the bytes: the archive has their sum.
    data = bytearray(archive(tmp_path / "x.npz", [DATA, FORMAT]).read_bytes())
    data[200] ^= 1
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(lowbit.FormatError, match=r"not an \.npz file"):
        lowbit.load_npz(tmp_path / "x.npz")


WHOLE = io.BytesIO()
np.savez(WHOLE, data=np.arange(68, dtype=np.uint8).reshape(2, 34), format=np.array("Q8_0"))


CHANGES = st.lists(st.tuples(st.integers(0, len(WHOLE.getvalue()) - 1), st.integers(0, 255)), max_size=6)


@settings(max_examples=300, derandomize=True)
@given(CHANGES, st.integers(0, 40))
def test_damage_is_a_typed_error(tmp_path_factory, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(WHOLE.getvalue())
    for at, byte in changes:
        data[at] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(data[: len(data) - cut])
    with contextlib.suppress(lowbit.FormatError, lowbit.UnsupportedError):
        lowbit.load_npz(path)


def test_names_that_no_archive_has(tmp_path: Path) -> None:
    q = lowbit.quantize(np.ones((1, 256), np.float32), "Q8_0")
    longest = "a" * (65535 - len(".format.npy"))
    lowbit.save_npz(tmp_path / "q.npz", {longest: q})
    assert lowbit.load_npz(tmp_path / "q.npz") == {longest: q}
    for names in ([longest + "a"], ["good", "ä" * 32763], [3], [b"bytes"]):
        with pytest.raises(lowbit.InputError):
            lowbit.save_npz(tmp_path / "r.npz", dict.fromkeys(names, q))
        assert [path.name for path in tmp_path.iterdir()] == ["q.npz"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), lowbit.FileError("No space left on device")])
def test_an_interrupted_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    q = lowbit.quantize(np.ones((1, 256), np.float32), "Q8_0")
    lowbit.save_npz(tmp_path / "q.npz", {"old": q})

    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(np.lib.format, "write_array", fail)
    with pytest.raises((KeyboardInterrupt, lowbit.FileError)):
        lowbit.save_npz(tmp_path / "q.npz", {"new": q})
    assert [path.name for path in tmp_path.iterdir()] == ["q.npz"]
    assert list(lowbit.load_npz(tmp_path / "q.npz")) == ["old"]
