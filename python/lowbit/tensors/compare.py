"""`compare`: the error of packed weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lowbit import _core
from lowbit.base import arguments
from lowbit.base.dtypes import FLOAT_NAMES
from lowbit.base.errors import InputError
from lowbit.base.threads import num_threads
from lowbit.tensors.qtensor import QTensor, format_of
from lowbit.tensors.rows import matrices

__all__ = ["Comparison", "RowComparison", "compare"]


@dataclass(frozen=True, eq=False)
class RowComparison:
    """The figures of each row: float64 arrays of shape (...), the shape of the weights without the last axis."""

    rmse: npt.NDArray[np.float64]
    relative: npt.NDArray[np.float64]
    max: npt.NDArray[np.float64]
    snr: npt.NDArray[np.float64]

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RowComparison):
            return NotImplemented
        return all(np.array_equal(value, getattr(other, name)) for name, value in vars(self).items())


@dataclass(frozen=True)
class Comparison:
    """The error of packed weights q against the weights w: the result of `compare`.

    rmse: square root of the mean of (w - q)^2. relative: rmse over the square root of the mean of w^2; 0 if q equals w.
    max: the largest |w - q|. snr: signal-to-noise ratio in decibels, -20 log10(relative); infinite if q equals w.
    """

    rmse: float
    relative: float
    max: float
    snr: float
    rows: RowComparison


def compare(w: npt.ArrayLike, q: QTensor | npt.ArrayLike, *, threads: int | None = None) -> Comparison:
    """Compares `w` (..., K), an array-like as for `quantize`, with a QTensor or another array of the same shape.

    Computed in float64, a few rows at a time, without a decoded copy. NaN or infinity in either gives NaN or infinity.
    Raises InputError if the shapes differ or an argument is not an array of real numbers.
    """
    weights = arguments.floats("w", w, FLOAT_NAMES)
    if not isinstance(q, QTensor):
        floats = arguments.floats("q", q, FLOAT_NAMES)
        if floats.ndim == 0:
            raise InputError("q:", expected="at least one axis", found="a scalar")
        q = QTensor(np.ascontiguousarray(floats).view(np.uint8), format_of(floats))
    if weights.shape != q.shape:
        raise InputError("compare:", expected="w and q of one shape", found=f"{weights.shape} and {q.shape}")
    count = num_threads(threads)
    parts = [_core.compare_rows(a, data, q.format, count) for a, data in matrices(weights, q.data)]
    sums = np.concatenate(parts) if parts else np.empty((0, 3))
    rows = RowComparison(*(column.reshape(weights.shape[:-1]) for column in _figures(sums, weights.shape[-1])))
    squared, signal = sums[:, 0].sum(), sums[:, 1].sum()
    whole = np.array([[squared, signal, sums[:, 2].max(initial=0.0)]])
    rmse, relative, largest, snr = (float(column[0]) for column in _figures(whole, weights.size))
    return Comparison(rmse, relative, largest, snr, rows)


def _figures(sums: npt.NDArray[np.float64], num: int) -> tuple[npt.NDArray[np.float64], ...]:
    """RMSE, relative error, largest error and SNR. sums: (..., 3) squared error, squared weight, largest error of `num`
    weights."""
    squared, signal, largest = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(squared == 0, 0.0, np.sqrt(squared / signal))
        return np.sqrt(squared / max(1, num)), relative, largest, -20 * np.log10(relative)
