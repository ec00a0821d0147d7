"""QTensor, the choice of SIMD target and of the number of threads."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import lowbit
from lowbit.threads import num_threads


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
    assert repr(q) == "QTensor((4, 6, 64), Q4_0, 864 B, 4.5 bits a weight)"
    assert repr(lowbit.QTensor(np.zeros((3, 36 << 18), np.uint8), "Q4_0")).endswith(
        "Q4_0, 27.0 MiB, 4.5 bits a weight)"
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
    ):
        part = q[index]
        assert np.shares_memory(part.data, q.data)
        assert part.format == "Q8_0"
        np.testing.assert_array_equal(part.dequantize(), whole[index])
    picked = np.array([3, 0, 3])
    np.testing.assert_array_equal(q[picked].dequantize(), whole[picked])
    mask = np.arange(24).reshape(4, 6) % 5 == 0
    np.testing.assert_array_equal(q[mask].dequantize(), whole[mask])


def test_last_axis_is_not_indexed(w):
    q = lowbit.quantize(w, "Q8_0")
    for index in ((0, 0, 0), (slice(None), 1, slice(2)), None, ..., np.zeros((4, 6, 68), bool)):
        with pytest.raises(lowbit.InputError, match="QTensor: "):
            q[index]
    with pytest.raises(IndexError):
        q[4]


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
        ((q, "Q4_0"), "the tensor is Q5_1, got 'Q4_0'"),
        ((q.data,), "format: expected a name"),
        ((q.data, "Q5_1", np.float64), "dtype: expected float32, float16 or bfloat16, got float64"),
        ((q.data[..., :47], "Q5_1"), "rows have 47 bytes, expected a multiple of 24 for Q5_1"),
        ((q.data.astype(np.int8), "Q5_1"), r"expected uint8 array of at least one axis, got int8 array"),
        (([1, 2], "Q5_1"), "got list"),
        ((q.data[..., ::2], "Q5_1"), "expected contiguous rows, got a stride of 2 bytes"),
    ):
        with pytest.raises(lowbit.InputError, match=message):
            lowbit.dequantize(*arguments)


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
    with pytest.raises(lowbit.InputError, match=f"'MMX' is not one of this machine's: {targets[0]}"):
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
    with pytest.raises(lowbit.InputError, match="expected at least 1, got 0"):
        num_threads()
