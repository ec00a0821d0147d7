"""QTensor, the choice of SIMD target and of the number of threads."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import lowbit
from lowbit.base.threads import num_threads


@pytest.fixture
def w() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((4, 6, 64)).astype(np.float32)


def test_properties(w):
    q = lowbit.quantize(w, "q4_0")
    assert (q.format, q.shape, q.ndim, q.size) == ("Q4_0", (4, 6, 64), 3, w.size)
    assert q.data.shape == (4, 6, 36)
    assert q.nbytes == 4 * 6 * 36
    assert q.bits == 4.5
    assert len(q) == 4
    assert repr(q) == "QTensor((4, 6, 64), Q4_0, 864 B, 4.5 bits per weight)"
    assert repr(lowbit.QTensor(np.zeros((3, 36 << 18), np.uint8), "Q4_0")).endswith(
        "Q4_0, 27.0 MiB, 4.5 bits per weight)"
    )


def test_rows_are_views(w):
    """Slicing rows copies nothing, whatever the strides of what remains."""
    q = lowbit.quantize(w, "Q8_0")
    whole = q.dequantize()
    for index in (
        1,
        -1,
        slice(1, 3),
        slice(None, None, -2),
        (slice(None), 2),
        (slice(1), slice(None, None, 3)),
        (2, 5),
        ...,
        (),
        (..., slice(None)),
        (..., slice(None), slice(None)),
        (slice(1, 3), ...),
        (..., 2, slice(None)),
        (1, ..., slice(None)),
        (slice(None), slice(2, 4), slice(None)),
        (slice(None), slice(None), slice(None), ...),
        (2, 5, ...),
    ):
        part = q[index]
        assert np.shares_memory(part.data, q.data)
        assert part.format == "Q8_0"
        np.testing.assert_array_equal(part.dequantize(), whole[index])
    picked = np.array([3, 0, 3])
    np.testing.assert_array_equal(q[picked].dequantize(), whole[picked])
    mask = np.arange(24).reshape(4, 6) % 5 == 0
    np.testing.assert_array_equal(q[mask].dequantize(), whole[mask])
    np.testing.assert_array_equal(q[mask, ...].dequantize(), whole[mask])
    np.testing.assert_array_equal(q[picked, ..., :].dequantize(), whole[picked])
    row = q[0, 0]
    assert np.shares_memory(row[...].data, q.data)
    assert row[:].shape == (64,)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_dtypes(w, dtype):
    """Decoding to a narrow type is decoding and then rounding to nearest even, chunk for chunk."""
    w = np.tile(w.reshape(24, 64), (1, 800))  # more weights than one chunk
    q = lowbit.quantize(w, "Q8_0")
    decoded = q.dequantize(dtype)
    assert decoded.dtype == dtype
    np.testing.assert_array_equal(decoded.view(np.uint16), q.dequantize().astype(dtype).view(np.uint16))
    np.testing.assert_array_equal(lowbit.dequantize(q[::2], dtype=dtype), decoded[::2])


def test_dequantize_forms(w):
    q = lowbit.quantize(w, "Q5_1")
    expected = q.dequantize()
    np.testing.assert_array_equal(lowbit.dequantize(q), expected)
    np.testing.assert_array_equal(lowbit.dequantize(q, "q5_1"), expected)
    np.testing.assert_array_equal(lowbit.dequantize(q.data, "Q5_1"), expected)
    for arguments, message in (
        ((q, "Q4_0"), "expected Q5_1, the tensor's format, got 'Q4_0'"),
        ((q.data,), "format: expected the name of the format"),
        ((q.data[..., :47], "Q5_1"), "rows have 47 bytes, expected a multiple of 24 for Q5_1"),
        ((q.data.astype(np.int8), "Q5_1"), r"expected uint8 array of at least one axis, got int8 array"),
        (([1, 2], "Q5_1"), "got list"),
        ((q.data[..., ::2], "Q5_1"), "expected contiguous rows, got a stride of 2 bytes"),
    ):
        with pytest.raises(lowbit.InputError, match=message):
            lowbit.dequantize(*arguments)
    with pytest.raises(lowbit.InputError, match="dtype: expected float32, float16 or bfloat16, got float64"):
        lowbit.dequantize(q.data, "Q5_1", dtype=np.float64)


def test_error_in_unevenly_spaced_matrices(w):
    """Where the axes before the last cannot be joined, the error names the matrix too."""
    w[2, 3, 7] = np.nan
    with pytest.raises(lowbit.InputError, match=r"weight at row 15, column 7 is NaN"):
        lowbit.quantize(w, "Q8_0")
    with pytest.raises(lowbit.InputError, match=r"matrix \(3,\): weight at row 2, column 7 is NaN"):
        lowbit.quantize(w.transpose(1, 0, 2), "Q8_0")


def test_simd_targets():
    targets = lowbit.simd.targets()
    assert lowbit.simd.current() in targets
    before = lowbit.simd.current()
    for target in targets:
        with lowbit.simd.force(target):
            assert lowbit.simd.current() == target
            with lowbit.simd.force(targets[0]):
                assert lowbit.simd.current() == targets[0]
            assert lowbit.simd.current() == target
        assert lowbit.simd.current() == before
    lowbit.simd.force(targets[-1])
    assert lowbit.simd.current() == targets[-1]
    lowbit.simd.force(None)
    assert lowbit.simd.current() == before
    with pytest.raises(
        lowbit.InputError, match=f'SIMD target: expected one of {targets[0]}.* on this machine, got "MMX"'
    ):
        lowbit.simd.force("MMX")


def test_environment_decides(monkeypatch):
    """LOWBIT_SIMD is what force(None) goes back to; LOWBIT_THREADS what None means."""
    last = lowbit.simd.targets()[-1]
    before = lowbit.simd.current()
    monkeypatch.setenv("LOWBIT_SIMD", last)
    lowbit.simd.force(None)
    assert lowbit.simd.current() == last
    lowbit.simd.force(before)
    monkeypatch.delenv("LOWBIT_THREADS", raising=False)
    assert num_threads() >= 1
    monkeypatch.setenv("LOWBIT_THREADS", "3")
    assert num_threads() == 3
    assert num_threads(2) == 2
    for text in ("none", "-1", "2.5", "²"):
        monkeypatch.setenv("LOWBIT_THREADS", text)
        with pytest.raises(lowbit.InputError, match="LOWBIT_THREADS: expected a number of threads"):
            num_threads()
    monkeypatch.setenv("LOWBIT_THREADS", "0")
    with pytest.raises(lowbit.InputError, match="threads: expected 1 to 1024, got 0"):
        num_threads()


def test_equal(w):
    """By format, shape and bytes, whatever the strides."""
    q = lowbit.quantize(w, "Q8_0")
    same = lowbit.quantize(w, "Q8_0")
    assert q == same
    assert q[:, 1:3] == lowbit.QTensor(q.data[:, 1:3].copy(), "Q8_0")
    assert q.data.transpose(1, 0, 2).shape == (6, 4, 68)
    assert lowbit.QTensor(q.data.transpose(1, 0, 2), "Q8_0") == lowbit.quantize(w.transpose(1, 0, 2), "Q8_0")
    assert q[0, 0] == q[0, 0]
    assert q[:0] == q[2:2]
    same.data[3, 5, 67] ^= 1
    assert q != same
    assert q[:3] == same[:3]
    assert q != q[:3]
    assert (q != q.copy()) is False
    assert (q.T != q.copy().T) is False
    assert q != lowbit.QTensor(q.data.reshape(6, 4, 68), "Q8_0")
    assert q[:0] != q[:0, :1]
    # As many bytes a row, and the same bytes, but another format.
    zeros = np.zeros((2, 18), np.uint8)
    assert lowbit.QTensor(zeros, "Q4_0") != lowbit.QTensor(zeros, "IQ4_NL")
    assert q != w
    assert w != q
    assert q != "Q8_0"
    large = lowbit.QTensor(np.zeros((70000, 68), np.uint8), "Q8_0")  # more than one chunk
    other = lowbit.QTensor(large.data.copy(), "Q8_0")
    assert large == other
    other.data[-1, -1] = 1
    assert large != other


def test_no_hash_and_no_arithmetic(w):
    q = lowbit.quantize(w, "Q8_0")
    for packed in (q, q.T):
        with pytest.raises(TypeError):
            hash(packed)
    for operation in (np.add, np.multiply):
        with pytest.raises(TypeError):
            operation(w, q)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_output_arrays(w, dtype):
    w = w.astype(dtype)
    packed = np.full((2, 4, 6, 68), 7, np.uint8)
    q = lowbit.quantize(w, "Q8_0", out=packed[1])
    assert q.data.ctypes.data == packed[1].ctypes.data
    assert q == lowbit.quantize(w, "Q8_0")
    assert (packed[0] == 7).all()
    again = lowbit.quantize(-w, "q8_0", out=q)
    assert again.data.ctypes.data == q.data.ctypes.data
    np.testing.assert_array_equal(q.dequantize(), lowbit.quantize(-w, "Q8_0").dequantize())
    # Rows that are not evenly spaced, in and out.
    uneven = w.transpose(1, 0, 2)
    assert lowbit.quantize(uneven, "Q8_0", out=np.empty((6, 4, 68), np.uint8)) == lowbit.quantize(uneven, "Q8_0")
    out = np.empty(w.shape, dtype)
    assert q.dequantize(out=out) is out
    np.testing.assert_array_equal(out.view(np.uint8), q.dequantize(dtype).view(np.uint8))
    assert lowbit.dequantize(q.data, "Q8_0", out=out) is out
    assert lowbit.dequantize(q, dtype=dtype, out=out) is out
    assert q[::2].dequantize(out=out[:2]).base is not None
    np.testing.assert_array_equal(out[:2], q[::2].dequantize(dtype))


def test_outputs_that_do_not_fit(w):
    q = lowbit.quantize(w, "Q8_0")
    read_only = np.empty(w.shape, np.float32)
    read_only.flags.writeable = False
    unaligned = np.empty(w.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(w.shape)
    both = np.zeros(w.nbytes + q.nbytes, np.uint8)
    inside = both[: w.nbytes].view(np.float32).reshape(w.shape)
    for call, message in (
        (
            lambda: q.dequantize(out=np.empty((4, 6, 63), np.float32)),
            r"out: expected float32 array of shape \(4, 6, 64\)",
        ),
        (lambda: q.dequantize(out=np.empty(w.shape)), "dtype: expected float32, float16 or bfloat16, got float64"),
        (lambda: q.dequantize(np.float16, out=np.empty_like(w)), "out: expected float16 array"),
        (lambda: q.dequantize(out=np.empty((6, 4, 64), np.float32).transpose(1, 0, 2)), "C-contiguous"),
        (lambda: q.dequantize(out=read_only), "writable"),
        (lambda: q.dequantize(out=unaligned), "aligned"),
        (lambda: lowbit.quantize(w, "Q8_0", out=np.empty((4, 6, 67), np.uint8)), r"uint8 array of shape \(4, 6, 68\)"),
        (lambda: lowbit.quantize(w, "Q8_0", out=np.empty((4, 6, 68), np.int8)), "got int8 array"),
        (lambda: lowbit.quantize(w, "Q8_0", out=[1]), "got list"),
        (lambda: lowbit.quantize(w, "Q8_0", out=lowbit.quantize(w, "Q4_0")), "out: expected Q8_0, got Q4_0"),
        (lambda: lowbit.quantize(inside, "Q8_0", out=both[:1632].reshape(4, 6, 68)), "out: shares memory with w"),
        (
            lambda: lowbit.quantize(w, "Q8_0", imatrix=inside[0, 0], out=both[:1632].reshape(4, 6, 68)),
            "out: shares memory with imatrix",
        ),
        (
            lambda: lowbit.QTensor(both[:1632].reshape(4, 6, 68), "Q8_0").dequantize(out=inside),
            "out: shares memory with data",
        ),
    ):
        with pytest.raises(lowbit.InputError, match=message):
            call()
