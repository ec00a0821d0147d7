"""From the values of a tensor, run by run, to the range that 8 or 16 bits cover, and to scale and zero point.

    minmax      the least and the largest value
    average     the means over the runs of their least and largest values
    percentile  a share of the values, half of what is left out on each side
    entropy     the range whose quantized distribution tells least from the true one (Kullback-Leibler divergence)
    mse         the range with the least mean square error

The last three use a histogram. Its bins have a width of a power of two, so a larger value merges bins in pairs and the
result does not depend on the order of the runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

METHODS = ("minmax", "average", "percentile", "entropy", "mse")
#: Bins on each side of zero.
_HALF = 4096
#: Values in a bin from which on differences between neighbours are not mere chance.
_LEAST_COUNT = 256
#: Shares of the full range that entropy and mse try.
_SHARES = tuple(1 - step / 50 for step in range(45))

Floats = npt.NDArray[np.float64]


class Affine(NamedTuple):
    """value = (code - zero_point) * scale, with codes of an integer dtype."""

    scale: np.float32
    zero_point: int
    dtype: np.dtype[Any]

    def quantized(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The codes of values, rounded half to even as QuantizeLinear does."""
        info = np.iinfo(self.dtype)
        codes = np.rint(values.astype(np.float32) / self.scale) + self.zero_point
        clipped: npt.NDArray[Any] = np.clip(codes, info.min, info.max).astype(self.dtype)
        return clipped

    def dequantized(self, codes: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The values of codes."""
        values: npt.NDArray[np.float32] = (codes.astype(np.int32) - self.zero_point).astype(np.float32) * self.scale
        return values

    @property
    def limits(self) -> tuple[float, float]:
        """The least and the largest value that codes have."""
        info = np.iinfo(self.dtype)
        return tuple(float((bound - self.zero_point) * self.scale) for bound in (info.min, info.max))  # type: ignore[return-value]


def affine(low: float, high: float, dtype: npt.DTypeLike, symmetric: bool) -> Affine:
    """The scale and zero point for a range, which is stretched to hold zero."""
    info = np.iinfo(dtype)
    low, high = min(low, 0.0), max(high, 0.0)
    middle = 0 if info.min < 0 else (info.max + 1) // 2
    scale = max(-low, high) / (info.max - middle) if symmetric else (high - low) / (info.max - info.min)
    if not np.float32(scale) >= np.finfo(np.float32).tiny:
        return Affine(np.float32(1), middle if symmetric else 0, np.dtype(dtype))
    zero = middle if symmetric else min(max(round(info.min - low / scale), info.min), info.max)
    return Affine(np.float32(scale), zero, np.dtype(dtype))


class Histogram:
    """Counts of values in bins, and of exact zeros."""

    def __init__(self) -> None:
        self.counts = np.zeros(2 * _HALF, np.int64)
        self.zeros = 0
        self._exponent: int | None = None  #: all values are below 2 ** exponent

    def add(self, values: npt.NDArray[Any]) -> None:
        """Counts finite values."""
        zeros = values == 0
        self.zeros += int(zeros.sum())
        values = values[~zeros].astype(np.float64)
        if not values.size:
            return
        exponent = math.frexp(float(np.abs(values).max()))[1]
        self._exponent = exponent if self._exponent is None else self._exponent
        for _ in range(min(exponent - self._exponent, _HALF)):
            merged = np.zeros_like(self.counts)
            merged[_HALF // 2 : _HALF // 2 + _HALF] = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = merged
        self._exponent = max(exponent, self._exponent)
        index = np.floor(values / self.width).astype(np.int64) + _HALF
        self.counts += np.bincount(index, minlength=2 * _HALF)

    @property
    def width(self) -> float:
        """The width of a bin."""
        return math.ldexp(1.0, self._exponent or 0) / _HALF

    def bins(self, least: int = 0) -> tuple[Floats, Floats]:
        """The middles of bins that have values, and the counts, without zeros.

        least: merges bins until half of those with values have so many.
        """
        counts, width = self.counts, self.width
        while len(counts) > 2 and np.any(counts) and np.median(counts[counts > 0]) < least:
            counts, width = counts.reshape(-1, 2).sum(axis=1), 2 * width
        used = np.flatnonzero(counts)
        middles = (used - len(counts) // 2 + 0.5).astype(np.float64) * width
        return middles, counts[used].astype(np.float64)


@dataclass
class Observed:
    """What was seen of a value."""

    method: str
    low: float = math.inf
    high: float = -math.inf
    runs: int = 0
    lows: float = 0.0
    highs: float = 0.0
    is_finite: bool = True

    def __post_init__(self) -> None:
        self.histogram = Histogram() if self.method in ("percentile", "entropy", "mse") else None

    def add(self, values: npt.NDArray[Any]) -> None:
        """The values of a run."""
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            self.is_finite = False
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.runs += 1
        self.lows, self.highs = self.lows + low, self.highs + high
        if self.histogram is not None:
            self.histogram.add(values)

    def range(self, dtype: npt.DTypeLike, symmetric: bool, percentile: float) -> tuple[float, float]:
        """The range to cover by codes of a dtype."""
        if self.method == "average":
            return self.lows / self.runs, self.highs / self.runs
        if self.histogram is None:
            return self.low, self.high
        if self.method == "percentile":
            return self._percentile(self.histogram, percentile)
        values, counts = self.histogram.bins(_LEAST_COUNT if self.method == "entropy" else 0)
        if not values.size:
            return 0.0, 0.0
        values = np.clip(values, self.low, self.high)
        cost = _divergence if self.method == "entropy" else _square_error

        def loss(range: tuple[float, float]) -> float:
            return cost(values, counts, affine(*range, dtype, symmetric))

        return min(self._shrunk(symmetric), key=loss)

    def _shrunk(self, symmetric: bool) -> Iterator[tuple[float, float]]:
        """Ranges to try: the whole one first, so that it is taken if others are not better."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if symmetric:
            low, high = -max(-low, high), max(-low, high)
        for share in _SHARES:
            yield low * share, high * share
            if not symmetric and low < 0 < high and share < 1:
                yield low, high * share
                yield low * share, high

    def _percentile(self, histogram: Histogram, percentile: float) -> tuple[float, float]:
        values, counts = histogram.bins()
        if histogram.zeros:
            at = int(np.searchsorted(values, 0.0))
            values, counts = np.insert(values, at, 0.0), np.insert(counts, at, histogram.zeros)
        left_out = counts.sum() * (1 - percentile / 100) / 2
        below, above = np.cumsum(counts), np.cumsum(counts[::-1])
        half = histogram.width / 2
        low = values[int(np.searchsorted(below, left_out, "right"))] - half
        high = values[::-1][int(np.searchsorted(above, left_out, "right"))] + half
        return max(float(low), self.low), min(float(high), self.high)


def _square_error(values: Floats, counts: Floats, to: Affine) -> float:
    return float(np.sum(counts * np.square(to.dequantized(to.quantized(values)) - values)))


def _divergence(values: Floats, counts: Floats, to: Affine) -> float:
    """The divergence of the quantized distribution, in which the values of a code share its counts evenly.

    Values outside the range count as the outermost ones inside, but not in the quantized distribution.
    """
    half = float(to.scale) / 2
    low, high = to.limits[0] - half, to.limits[1] + half
    inside = (values >= low) & (values <= high)
    if not inside.any():
        return math.inf
    true = counts[inside].copy()
    true[0] += counts[values < low].sum()
    true[-1] += counts[values > high].sum()
    codes = to.quantized(values[inside]).astype(np.int64) - np.iinfo(to.dtype).min
    sums, sizes = np.bincount(codes, counts[inside]), np.bincount(codes)
    spread = sums[codes] / sizes[codes]
    p, q = true / true.sum(), spread / spread.sum()
    return float(np.sum(p * np.log(p / q)))
