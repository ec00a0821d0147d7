"""`compare`: what quantization did to an array."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit import _core
from lowbit.base import arguments
from lowbit.base.errors import InputError
from lowbit.base.threads import num_threads
from lowbit.tensors.qtensor import QTensor, format_of, matrices

__all__ = ["Comparison", "RowComparison", "compare"]


@dataclass(frozen=True)
class RowComparison:
    """What `compare` finds for each row: float64 arrays (...) without the last axis."""

    rmse: npt.NDArray[np.float64]
    relative: npt.NDArray[np.float64]
    max: npt.NDArray[np.float64]
    snr: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """How far packed weights q are from the weights w, as `compare` finds.

    rmse: root of the mean of (w - q)^2. relative: the same over the root of the mean of w^2; 0 where nothing was lost.
    max: the largest |w - q|. snr: signal to noise in decibels, -20 log10 of relative; infinite where nothing was lost.
    """

    rmse: float
    relative: float
    max: float
    snr: float
    rows: RowComparison


def compare(w: npt.ArrayLike, q: QTensor | npt.NDArray[Any], threads: int | None = None) -> Comparison:
    """Compares `w` (..., K), float32, float16 or bfloat16 with any strides, with a QTensor or floats of its shape.

    Computed in float64, a few rows at a time: no decoded copy is made. NaN or an infinity in either gives NaN or
    infinity. Raises InputError for another dtype or shape.
    """
    weights = arguments.array("w", w)
    format = format_of(q)
    if not isinstance(q, QTensor):
        q = QTensor(np.ascontiguousarray(q).view(np.uint8), format)
    if weights.ndim == 0 or weights.shape != q.shape:
        raise InputError(f"compare: w {weights.shape} and q {q.shape} differ in shape")
    count = num_threads(threads)
    parts = [_core.compare_rows(a, data, format, count) for a, data in matrices(weights, q.data)]
    sums = np.concatenate(parts) if parts else np.empty((0, 3))
    rows = RowComparison(*(column.reshape(weights.shape[:-1]) for column in _figures(sums, weights.shape[-1])))
    squared, signal = sums[:, 0].sum(), sums[:, 1].sum()
    whole = np.array([[squared, signal, sums[:, 2].max(initial=0.0)]])
    rmse, relative, largest, snr = (float(column[0]) for column in _figures(whole, weights.size))
    return Comparison(rmse, relative, largest, snr, rows)


def _figures(sums: npt.NDArray[np.float64], num: int) -> tuple[npt.NDArray[np.float64], ...]:
    """RMSE, relative error, largest error and SNR of rows (squared error, squared weight, largest) of `num` weights."""
    squared, signal, largest = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(squared == 0, 0.0, np.sqrt(squared / signal))
        return np.sqrt(squared / max(1, num)), relative, largest, -20 * np.log10(relative)
