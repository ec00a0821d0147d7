"""Symmetric int8 with one scale for each channel of a weight."""

from __future__ import annotations

import math
from collections.abc import Iterator
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


class ChannelScales(NamedTuple):
    """How a weight is quantized. Arrays have the shape of the weight, but 1 along the axes that share a scale."""

    scales: Floats
    divisors: Floats  #: of the weights before they are rounded: the scales are fitted to the codes that these give
    error: float  #: the norm of the difference to the weight, relative to the weight's norm

    def codes(self, weight: npt.NDArray[Any]) -> npt.NDArray[np.int8]:
        """The int8 codes of the weight that was given to `quantize_channels`."""
        codes = np.empty(weight.shape, np.int8)
        divisors = np.broadcast_to(self.divisors, weight.shape)
        for part in _parts(weight.shape):
            codes[part] = _rounded(np.asarray(weight[part], np.float32), divisors[part])
        return codes


def quantize_channels(
    weight: npt.NDArray[Any], shared: tuple[int, ...], search: bool, importance: npt.NDArray[Any] | None = None
) -> ChannelScales | None:
    """The scales of a weight's int8 codes, or None if a value is not finite. shared: axes that share a scale.

    search: scales with the smallest squared error of the weights, not those that hold the largest value of a channel.
    The error of no channel gets larger by it. importance: factors of the squared errors, as NumPy broadcasts them.
    """
    shared = tuple(axis % weight.ndim for axis in shared)
    kept = tuple(axis for axis in range(weight.ndim) if axis not in shared)
    moved = weight.transpose(kept + shared)
    channels = math.prod(moved.shape[: len(kept)])
    rows = np.ascontiguousarray(moved, np.float32).reshape(channels, math.prod(moved.shape[len(kept) :]))
    factors = None
    if importance is not None:
        wide = np.broadcast_to(importance.astype(np.float32), weight.shape).transpose(kept + shared)
        factors = np.ascontiguousarray(wide).reshape(rows.shape)
    scales, divisors = np.ones(channels, np.float32), np.ones(channels, np.float32)
    lost = total = 0.0
    for part in _parts(rows.shape):
        if not np.isfinite(rows[part]).all():
            return None
        scales[part], divisors[part] = _fitted(rows[part], search, None if factors is None else factors[part])
        difference = rows[part] - _rounded(rows[part], divisors[part, None]) * scales[part, None]
        lost += float(np.square(difference, dtype=np.float64).sum())
        total += float(np.square(rows[part], dtype=np.float64).sum())
    shape = tuple(1 if axis in shared else dim for axis, dim in enumerate(weight.shape))
    error = math.sqrt(lost / total) if total else 0.0
    return ChannelScales(scales.reshape(shape), divisors.reshape(shape), error)


def _parts(shape: tuple[int, ...]) -> Iterator[slice]:
    """Parts of the first axis that have `_AT_ONCE` elements."""
    step = max(1, _AT_ONCE // max(math.prod(shape[1:]), 1))
    return (slice(begin, begin + step) for begin in range(0, shape[0] if math.prod(shape) else 0, step))


def _fitted(rows: Floats, search: bool, factors: Floats | None) -> tuple[Floats, Floats]:
    """The scale and the divisor of each row."""
    largest = np.abs(rows).max(axis=1)
    scales = (largest / np.float32(LARGEST)).astype(np.float32)
    scales[scales < np.finfo(np.float32).tiny] = 1
    if not search:
        return scales, scales
    found, fitted, least = scales, scales, _lost(rows, _rounded(rows, scales[:, None]), scales, factors)
    for factor in _TRIED:
        divisors = np.maximum(scales * np.float32(factor), np.finfo(np.float32).tiny)
        tried = _rounded(rows, divisors[:, None])
        # The best scale for codes q of weights w is <w,q>/<q,q>.
        weighted = tried if factors is None else tried * factors
        square, product = np.einsum("ij,ij->i", tried, weighted), np.einsum("ij,ij->i", rows, weighted)
        scale = np.divide(product, square, out=scales.copy(), where=square > 0)
        lost = _lost(rows, tried, scale, factors)
        better = lost < least
        found = np.where(better, divisors, found)
        fitted = np.where(better, scale, fitted).astype(np.float32)
        least = np.minimum(lost, least)
    return fitted, found


def _lost(rows: Floats, codes: Floats, scales: Floats, factors: Floats | None) -> Floats:
    difference = rows - codes * scales[:, None]
    weighted = difference if factors is None else difference * factors
    lost: Floats = np.einsum("ij,ij->i", difference, weighted)
    return lost


def _rounded(values: Floats, divisors: Floats) -> Floats:
    codes: Floats = np.clip(np.rint(values / divisors), -LARGEST, LARGEST)
    return codes
