"""lowbit.compare against the same figures from NumPy's float64, and what it refuses."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import lowbit
from lowbit import _core

FORMATS = [f.name for f in lowbit.formats()]
# Sums of at most a few million terms in float64, in another order.
RELATIVE = 1e-12


def weights(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_is_definition(report: lowbit.Comparison, w: np.ndarray, decoded: np.ndarray) -> None:
    w, decoded = w.astype(np.float64), decoded.astype(np.float64)
    for found, axis in ((report, None), (report.rows, -1)):
        squared = ((w - decoded) ** 2).mean(axis=axis)
        relative = np.sqrt(squared / (w**2).mean(axis=axis))
        np.testing.assert_allclose(found.rmse, np.sqrt(squared), rtol=RELATIVE)
        np.testing.assert_allclose(found.relative, relative, rtol=RELATIVE)
        np.testing.assert_allclose(found.snr, -20 * np.log10(relative), rtol=RELATIVE)
        np.testing.assert_array_equal(found.max, np.abs(w - decoded).max(axis=axis))


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "F32"])
def test_figures_are_the_definition(simd, name: str) -> None:
    w = weights(37, 4352)  # more than one piece and one task
    w[:, 77] *= 9
    q = lowbit.quantize(w, name, imatrix=np.ones(w.shape[1]))
    report = lowbit.compare(w, q)
    assert_is_definition(report, w, q.dequantize())
    assert report.rows.rmse.shape == (37,)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_dtypes_and_strides(simd, dtype) -> None:
    w = weights(6, 4, 288).astype(dtype)
    for view in (w, w[::2], w[:, ::-1], w.transpose(1, 0, 2), w.T.swapaxes(0, 2), w[0, 0], np.asfortranarray(w[0])):
        view = view[..., : view.shape[-1] // 32 * 32] if view.shape[-1] >= 32 else view.swapaxes(-1, 0)
        q = lowbit.quantize(view, "Q8_0")
        assert_is_definition(lowbit.compare(view, q), view, q.dequantize())
    # Every other row of the packed ones.
    q = lowbit.quantize(w, "Q8_0")
    assert_is_definition(lowbit.compare(w[:, ::2], q[:, ::2]), w[:, ::2], q[:, ::2].dequantize())


def test_arrays_of_floats() -> None:
    w = weights(5, 33)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        assert_is_definition(lowbit.compare(w, w.astype(dtype)), w, w.astype(dtype))
    assert_is_definition(lowbit.compare(w, w[:, ::-1]), w, w[:, ::-1])


def test_nothing_lost_and_nothing_kept() -> None:
    w = weights(3, 64)
    w[1] = 0
    same = lowbit.compare(w, w)
    assert (same.rmse, same.relative, same.max, same.snr) == (0, 0, 0, np.inf)
    assert same.rows.relative.tolist() == [0, 0, 0]
    assert same.rows.snr.tolist() == [np.inf] * 3
    other = lowbit.compare(w, np.ones_like(w))
    assert other.rows.relative[1] == np.inf
    assert other.rows.snr[1] == -np.inf
    lost = lowbit.compare(w, np.zeros_like(w))
    assert (lost.relative, lost.snr) == (1, 0)


def test_not_a_number_is_seen(simd) -> None:
    """Wherever it stands; other rows are not touched."""
    for place in (0, 7, 63, 64, 66):
        for side in (0, 1):
            pair = [weights(3, 67), weights(3, 67, seed=2)]
            pair[side][1, place] = np.nan
            report = lowbit.compare(*pair)
            assert np.isnan([report.rmse, report.relative, report.max, report.snr]).all()
            for figures in vars(report.rows).values():
                assert np.isnan(figures).tolist() == [False, True, False]
    w = weights(2, 32)
    w[1, 3] = np.inf
    assert lowbit.compare(w, weights(2, 32)).max == np.inf


def test_threads_change_no_bit() -> None:
    w = weights(301, 512)
    q = lowbit.quantize(w, "Q4_K")
    one = lowbit.compare(w, q, threads=1)
    for threads in (2, 7):
        many = lowbit.compare(w, q, threads=threads)
        assert vars(many.rows)["rmse"].tobytes() == one.rows.rmse.tobytes()
        assert (many.rmse, many.snr) == (one.rmse, one.snr)


def test_empty() -> None:
    for shape in ((0, 64), (3, 0), (0, 2, 64), (2, 0, 64)):
        w = np.zeros(shape, np.float32)
        report = lowbit.compare(w, lowbit.quantize(w, "Q8_0"))
        assert (report.rmse, report.max) == (0, 0)
        assert report.rows.rmse.shape == shape[:-1]


def test_errors() -> None:
    w = weights(4, 64)
    q = lowbit.quantize(w, "Q8_0")
    for arguments, message in (
        ((w[:3], q), r"expected w and q of one shape, got \(3, 64\) and \(4, 64\)"),
        ((w[None], q), "of one shape"),
        ((w.astype(complex), q), "w: expected an array of real numbers, got complex128"),
        ((w, w.astype(object)), "q: expected an array of real numbers, got object"),
        ((np.float32(1), np.float32([1])), "of one shape"),
        ((np.float32(1), np.float32(1)), "q: expected at least one axis, got a scalar"),
    ):
        with pytest.raises(lowbit.InputError, match=message):
            lowbit.compare(*arguments)
    with pytest.raises(lowbit.InputError, match="threads: expected 1 to 1024"):
        lowbit.compare(w, q, threads=0)
    with pytest.raises(lowbit.InputError, match="expected 4 rows of 64 weights, got 4 rows of 32"):
        _core.compare_rows(w, q.data[:, :34], "Q8_0", 1)
