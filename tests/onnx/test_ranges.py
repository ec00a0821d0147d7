"""Ranges of observed values, and scales and zero points for them, against NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lowbit.onnx.ranges import METHODS, Histogram, Observed, affine

Array = npt.NDArray[Any]


def observed(method: str, *runs: Array) -> Observed:
    found = Observed(method)
    for run in runs:
        found.add(run)
    return found


def laplace(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).laplace(size=shape).astype(np.float32)


def error(values: Array, low: float, high: float, dtype: str, symmetric: bool = False) -> float:
    to = affine(low, high, dtype, symmetric)
    return float(np.mean((to.dequantized(to.quantized(values)) - values) ** 2))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("limits", [(-1.0, 1.0), (0.5, 3.0), (-3.0, -0.5), (-0.1, 7.3), (-1e-30, 1e30), (0.0, 1e-30)])
def test_scale_and_zero_point(dtype: str, symmetric: bool, limits: tuple[float, float]) -> None:
    to = affine(*limits, dtype, symmetric)
    info = np.iinfo(dtype)
    codes = np.arange(info.min, info.max + 1)
    values = (codes - to.zero_point).astype(np.float64) * to.scale
    assert 0.0 in values
    low, high = min(limits[0], 0), max(limits[1], 0)
    assert values[0] <= low + 0.51 * to.scale
    assert values[-1] >= high - 0.51 * to.scale
    if symmetric:
        assert to.zero_point == (0 if info.min < 0 else (info.max + 1) // 2)
        assert to.scale == np.float32(max(-low, high) / (info.max - to.zero_point))
    else:
        assert to.scale == np.float32((high - low) / (info.max - info.min))


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_range_of_zeros(symmetric: bool) -> None:
    to = affine(0.0, 0.0, "uint8", symmetric)
    assert to.scale == 1
    assert to.dequantized(to.quantized(np.zeros(3, np.float32))).tolist() == [0, 0, 0]


def test_minmax_and_average() -> None:
    runs = [np.array([-1, 2], np.float32), np.array([-3, 1], np.float32), np.zeros((0, 2), np.float32)]
    assert observed("minmax", *runs).range("uint8", False, 99) == (-3, 2)
    assert observed("average", *runs).range("uint8", False, 99) == (-2, 1.5)


@pytest.mark.parametrize("method", METHODS)
def test_values_that_are_not_finite_are_noticed(method: str) -> None:
    assert not observed(method, np.array([1, np.inf], np.float32)).is_finite
    assert not observed(method, np.array([np.nan, 0], np.float32)).is_finite
    assert observed(method, np.array([1, 0], np.float32)).is_finite


def test_histogram_counts_as_numpy_does_in_any_order() -> None:
    parts = [laplace(seed, 100, 3) * 10.0 ** (seed - 3) for seed in range(7)]
    parts[2][:50] = 0
    forward, backward = Histogram(), Histogram()
    for part in parts:
        forward.add(part)
    for part in reversed(parts):
        backward.add(part)
    whole = np.concatenate([part.reshape(-1) for part in parts]).astype(np.float64)
    half = len(forward.counts) // 2
    edges = np.arange(-half, half + 1) * forward.width
    expected, _ = np.histogram(whole[whole != 0], edges)
    assert forward.counts.tolist() == backward.counts.tolist() == expected.tolist()
    assert forward.zeros == backward.zeros == int(np.sum(whole == 0))
    largest = float(np.abs(whole).max())
    assert half * forward.width / 2 <= largest < half * forward.width


@pytest.mark.parametrize("percentile", [90, 99, 99.9, 100])
def test_percentile(percentile: float) -> None:
    values = np.concatenate([laplace(1, 20000), np.zeros(3000, np.float32)])
    found = observed("percentile", *np.split(values, 10))
    low, high = found.range("uint8", False, percentile)
    cut = len(values) * (100 - percentile) / 200
    assert found.histogram is not None
    width = found.histogram.width
    assert abs(np.sum(values < low) - cut) <= 1 + np.sum(np.abs(values - low) <= width)
    assert abs(np.sum(values > high) - cut) <= 1 + np.sum(np.abs(values - high) <= width)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
def test_mse_finds_the_least_error(symmetric: bool, scale: float) -> None:
    values = laplace(2, 20000)
    values[0] = 25  # an outlier
    values *= np.float32(scale)
    found = observed("mse", values).range("uint8", symmetric, 99)
    low, high = float(values.min()), float(values.max())
    tried = [error(values, low * a, high * b, "uint8", symmetric) for a in SHARES for b in SHARES]
    assert error(values, *found, "uint8", symmetric) <= 1.1 * min(tried)
    assert error(values, *found, "uint8", symmetric) < error(values, low, high, "uint8", symmetric)


SHARES = tuple(np.linspace(0.1, 1, 19))


def test_entropy_cuts_a_tail_and_nothing_else() -> None:
    even = np.random.default_rng(3).uniform(0, 1, 200_000).astype(np.float32)
    low, high = observed("entropy", even).range("uint8", False, 99)
    assert (low, high) == (0.0, pytest.approx(1, abs=0.03))
    tail = np.concatenate([even, np.float32([20, 15, 12])])
    _, high = observed("entropy", tail).range("uint8", False, 99)
    assert high < 10


def test_entropy_of_few_values_keeps_the_range() -> None:
    values = laplace(4, 200)
    found = observed("entropy", values).range("int8", False, 99)
    assert found == (float(values.min()), float(values.max()))


def test_a_value_that_is_always_zero() -> None:
    for method in METHODS:
        low, high = observed(method, np.zeros(5, np.float32)).range("uint8", False, 99.9)
        assert low == high == 0
        assert math.isfinite(affine(low, high, "uint8", False).scale)
