"""Packed tensors and formats are copied, pickled and sent to other processes as NumPy's arrays and dtypes are."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
from program import check

import lowbit

PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)
FORMATS = lowbit.formats()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_formats(protocol: int) -> None:
    for format, again in zip(FORMATS, pickle.loads(pickle.dumps(FORMATS, protocol)), strict=True):
        assert (again.name, again.ggml_type, again.block_size) == (format.name, format.ggml_type, format.block_size)
        assert again == format
        assert hash(again) == hash(format)
    assert b"_core" not in pickle.dumps(FORMATS[0], protocol)  # the public name, which stays


def test_formats_are_values() -> None:
    q4_k, q4_0 = lowbit.Format("q4_k"), lowbit.Format("Q4_0")
    assert q4_k == copy.copy(q4_k) == copy.deepcopy(q4_k)
    assert q4_k != q4_0
    assert q4_k != "Q4_K"
    assert len({*FORMATS, *lowbit.formats(), *copy.deepcopy(FORMATS)}) == len(FORMATS)
    assert {format: format.name for format in FORMATS}[q4_k] == "Q4_K"
    assert repr(q4_k) == "<Format Q4_K: 256 weights in 144 bytes>"
    assert repr(lowbit.Format("F32")) == "<Format F32: 1 weight in 4 bytes>"
    with pytest.raises(lowbit.InputError, match='unknown format "Q9_9"; known: F32, F16'):
        lowbit.Format("Q9_9")
    with pytest.raises(AttributeError):
        q4_k.block_size = 1  # type: ignore[misc]


@pytest.fixture
def w() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((4, 6, 64))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tensors(w: np.ndarray, protocol: int) -> None:
    q = lowbit.quantize(w, "Q5_0")
    for part in (q, q[1], q[::2, ::-3], q[2, 3], q[:0]):
        for each in (part, part.T):
            again = pickle.loads(pickle.dumps(each, protocol))
            assert type(again) is type(each)
            assert again == each
            np.testing.assert_array_equal(np.asarray(again), np.asarray(each))
    report = lowbit.compare(w, q)
    assert pickle.loads(pickle.dumps(report, protocol)) == copy.deepcopy(report) == report
    assert report != lowbit.compare(w[1:], q[1:])
    assert report.rows != lowbit.compare(w[1:], q[1:]).rows
    assert report.rows != lowbit.compare(w, -w).rows


def test_copies_have_bytes_of_their_own(w: np.ndarray) -> None:
    """As those of arrays; `copy.copy` of an array copies its values."""
    q = lowbit.quantize(w, "Q8_0")
    before = q.data.copy()
    copies = [q.copy(), copy.copy(q), copy.deepcopy(q), q[:, ::2].copy(), pickle.loads(pickle.dumps(q))]
    for each in copies:
        assert not np.shares_memory(each.data, q.data)
        assert each.data.flags.c_contiguous
    assert copies[3] == q[:, ::2]
    q.data[:] = 0
    for each in (*copies[:3], copies[4]):
        np.testing.assert_array_equal(each.data, before)
    a, b = copy.deepcopy([q, q])
    assert a is b


def test_bytes_out_of_band(w: np.ndarray) -> None:
    """Protocol 5 hands over the bytes of contiguous tensors where they lie."""
    q = lowbit.quantize(w, "Q8_0")
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(q, 5, buffer_callback=buffers.append)
    assert len(buffers) == 1
    assert len(pickled) < 300
    again = pickle.loads(pickled, buffers=buffers)
    assert again == q
    assert np.shares_memory(again.data, q.data)


def test_tensors_of_a_mapped_file(w: np.ndarray, tmp_path: Path) -> None:
    """The bytes are pickled, not the file's name."""
    q = lowbit.quantize(w, "Q4_0")
    lowbit.gguf.write(tmp_path / "x.gguf", {}, {"q": q})
    with lowbit.gguf.open(tmp_path / "x.gguf") as file:
        mapped = file.tensors["q"]
        assert not mapped.data.flags.writeable
        pickled = pickle.dumps(mapped)
        copied = mapped.copy()
    del mapped
    (tmp_path / "x.gguf").unlink()
    again = pickle.loads(pickled)
    assert again == copied == q
    assert again.data.flags.writeable
    assert copied.data.flags.writeable


def test_other_processes(tmp_path: Path) -> None:
    """Started anew ("spawn"), as multiprocessing does on Windows and macOS."""
    code = """
import multiprocessing, numpy as np, lowbit

w = np.random.default_rng(0).standard_normal((6, 256))
formats = [lowbit.Format(name) for name in ("Q8_0", "Q4_K")]
with multiprocessing.get_context("spawn").Pool(1) as pool:
    for q, format in zip(pool.starmap(lowbit.quantize, [(w, format) for format in formats]), formats):
        assert q == lowbit.quantize(w, format)
        assert (pool.apply(np.asarray, (q,)) == np.asarray(q)).all()
        assert pool.apply(lowbit.compare, (w, q)) == lowbit.compare(w, q)
print("same")
"""
    assert check(code) == "same\n"
