"""Symmetric int8 with one scale for each channel of a weight."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

#: Largest code: -128 is not used, so that a code and its negative are both valid.
LARGEST = 127
#: Scales that the search tries, relative to the one that holds the largest value: many near 1, since at 8 bits a
#: channel gains more by where its values fall between codes than by a cut of its largest.
_TRIED = (1.0, *(1.02 - 0.005 * step for step in range(17)), 0.9, 0.85, 0.8, 0.7, 0.6)
#: Weights of so many elements are searched at once: few enough for the cache.
_AT_ONCE = 1 << 18


class Channels(NamedTuple):
    """A quantized weight: `scales` has the shape of the codes, but 1 along the axes that share a scale."""

    codes: npt.NDArray[np.int8]
    scales: Floats
    error: float  #: the norm of the difference to the weight, relative to the weight's norm


def quantize_channels(
    weight: npt.NDArray[Any], shared: tuple[int, ...], search: bool, importance: npt.NDArray[Any] | None = None
) -> Channels | None:
    """The weight as int8 codes times scales, or None if a value is not finite. shared: axes that share a scale.

    search: scales with the smallest squared error of the weights, not those that hold the largest value of a channel.
    The error of no channel gets larger by it. importance: factors of the squared errors, as NumPy broadcasts them.
    """
    shared = tuple(axis % weight.ndim for axis in shared)
    kept = tuple(axis for axis in range(weight.ndim) if axis not in shared)
    moved = weight.transpose(kept + shared)
    channels = math.prod(moved.shape[: len(kept)])
    rows = np.ascontiguousarray(moved, np.float32).reshape(channels, -1)
    factors = None
    if importance is not None:
        wide = np.broadcast_to(importance.astype(np.float32), weight.shape).transpose(kept + shared)
        factors = np.ascontiguousarray(wide).reshape(rows.shape)
    codes = np.empty(rows.shape, np.int8)
    scales = np.ones(channels, np.float32)
    lost = total = 0.0
    step = max(1, _AT_ONCE // max(rows.shape[1], 1))
    for begin in range(0, channels if rows.size else 0, step):
        part = slice(begin, begin + step)
        if not np.isfinite(rows[part]).all():
            return None
        codes[part], scales[part] = _fitted(rows[part], search, None if factors is None else factors[part])
        difference = rows[part] - codes[part] * scales[part, None]
        lost += float(np.square(difference, dtype=np.float64).sum())
        total += float(np.square(rows[part], dtype=np.float64).sum())
    restored = codes.reshape(moved.shape).transpose(np.argsort(kept + shared))
    shape = tuple(1 if axis in shared else dim for axis, dim in enumerate(weight.shape))
    error = math.sqrt(lost / total) if total else 0.0
    return Channels(np.ascontiguousarray(restored), scales.reshape(shape), error)


def _fitted(rows: Floats, search: bool, factors: Floats | None) -> tuple[npt.NDArray[Any], Floats]:
    """Codes, as floats, and the scale of each row."""
    largest = np.abs(rows).max(axis=1)
    scales = (largest / np.float32(LARGEST)).astype(np.float32)
    scales[scales < np.finfo(np.float32).tiny] = 1
    codes = _rounded(rows, scales)
    if not search:
        return codes, scales
    found, fitted, least = codes, scales, _lost(rows, codes, scales, factors)
    for factor in _TRIED:
        tried = _rounded(rows, np.maximum(scales * np.float32(factor), np.finfo(np.float32).tiny))
        # The best scale for codes q of weights w is <w,q>/<q,q>.
        weighted = tried if factors is None else tried * factors
        square, product = np.einsum("ij,ij->i", tried, weighted), np.einsum("ij,ij->i", rows, weighted)
        scale = np.divide(product, square, out=scales.copy(), where=square > 0)
        lost = _lost(rows, tried, scale, factors)
        better = lost < least
        found = np.where(better[:, None], tried, found)
        fitted = np.where(better, scale, fitted).astype(np.float32)
        least = np.minimum(lost, least)
    return found, fitted


def _lost(rows: Floats, codes: Floats, scales: Floats, factors: Floats | None) -> Floats:
    difference = rows - codes * scales[:, None]
    weighted = difference if factors is None else difference * factors
    lost: Floats = np.einsum("ij,ij->i", difference, weighted)
    return lost


def _rounded(rows: Floats, scales: Floats) -> Floats:
    codes: Floats = np.clip(np.rint(rows / scales[:, None]), -LARGEST, LARGEST)
    return codes
