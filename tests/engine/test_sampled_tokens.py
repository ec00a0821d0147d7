"""_core.Sampler draws exactly the token that the definition draws: all tokens sorted, sums in double in this order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from lowbit import _core

VOCABULARY = 152_064


def mt19937_64(seed: int) -> Iterator[int]:
    """The numbers of std::mt19937_64, after Matsumoto and Nishimura."""
    mask = (1 << 64) - 1
    state = [seed]
    for i in range(1, 312):
        state.append((6364136223846793005 * (state[-1] ^ state[-1] >> 62) + i) & mask)
    while True:
        for i in range(312):
            high_low = state[i] & mask << 31 | state[(i + 1) % 312] & (1 << 31) - 1
            state[i] = state[(i + 156) % 312] ^ high_low >> 1 ^ (0xB5026F5AA96619E9 if high_low & 1 else 0)
        for x in state:
            x ^= x >> 29 & 0x5555555555555555
            x ^= x << 17 & 0x71D67FFFEDA60000
            x ^= x << 37 & 0xFFF7EEE000000000
            yield (x ^ x >> 43) & mask


def test_the_generator() -> None:
    """The standard states the 10000th number of the seed 5489."""
    numbers = mt19937_64(5489)
    assert [next(numbers) for _ in range(10000)][-1] == 9981545732273789042


class Reference:
    """The definition, in float64 and without shortcuts."""

    def __init__(self, **options: Any) -> None:
        self._numbers = mt19937_64(options["seed"])
        self._top_k = options["top_k"]
        floats = ("temperature", "top_p", "min_p", "repetition_penalty")
        self._temperature, self._top_p, self._min_p, self._penalty = (float(np.float32(options[f])) for f in floats)
        self._seen: set[int] = set()

    def accept(self, tokens: list[int]) -> None:
        self._seen.update(tokens)

    def sample(self, logits: np.ndarray) -> int:
        x = logits.copy()
        seen = np.array([token for token in self._seen if 0 <= token < len(x)], int)
        penalty = np.float32(self._penalty)
        with np.errstate(over="ignore", invalid="ignore"):
            x[seen] = np.where(x[seen] > 0, x[seen] / penalty, x[seen] * penalty)
        ids = np.flatnonzero(np.isfinite(x))
        ids = ids[np.lexsort((ids, -x[ids]))]
        if self._temperature == 0:
            return int(ids[0])
        ids = ids[: self._top_k or None]
        x = x[ids].astype(np.float64)
        weights = np.array([math.exp(v) for v in (x - x[0]) / self._temperature])
        weights = weights[weights >= 1e-20]
        sums = np.cumsum(weights)  # one after the other, unlike np.sum
        keep = min(len(sums), int(np.searchsorted(sums, self._top_p * sums[-1])) + 1)
        keep = max(1, int((weights[:keep] >= self._min_p).sum()))
        rest = (next(self._numbers) >> 11) / 2**53 * sums[keep - 1]
        for i in range(keep - 1):
            if rest < weights[i]:
                return int(ids[i])
            rest -= weights[i]
        return int(ids[keep - 1])


def random_logits(rng: np.random.Generator, num: int) -> np.ndarray:
    kinds = [
        lambda: rng.standard_normal(num) * 3,
        lambda: rng.standard_normal(num) * 40,
        lambda: rng.standard_normal(num) * 1e-3,
        lambda: np.full(num, rng.standard_normal()),
        lambda: np.round(rng.standard_normal(num) * 2),
        lambda: -np.abs(rng.standard_normal(num)) - 100,
        lambda: -rng.exponential(3, num),
        lambda: rng.standard_normal(num) * 2 + 20 * (rng.random(num) < 3 / num),
        lambda: np.where(rng.random(num) < 0.1, rng.choice([np.nan, np.inf, -np.inf, -0.0, 0.0], num), 1.0),
    ]
    logits = kinds[rng.integers(len(kinds))]().astype(np.float32)
    logits[rng.integers(num)] = 1.5  # one is finite
    return logits


def random_options(rng: np.random.Generator) -> dict[str, Any]:
    options = {
        "temperature": [0, 1e-30, 1e-6, 0.1, 0.7, 1, 1, 1.3, 5, 1e30],
        "top_k": [0, 0, 0, 0, 1, 2, 5, 40, 200, 5000, 2**40],
        "top_p": [1, 1, 0.95, 0.9, 0.75, 0.5, 0.25, 1e-6, 0.999, 0.99999, 0.99999994],
        "min_p": [0, 0, 0, 0, 0.05, 0.5, 1, 1e-3, 1e-9, 1e-12, 1e-25],
        "repetition_penalty": [1, 1, 1.1, 0.5, 1e30],
    }
    chosen = {name: values[rng.integers(len(values))] for name, values in options.items()}
    return {**chosen, "seed": int(rng.integers(1 << 63))}


def check(rng: np.random.Generator, logits: np.ndarray, num: int, **options: Any) -> None:
    sampler, reference = _core.Sampler(**options), Reference(**options)
    for _ in range(num):
        assert sampler.sample(logits) == reference.sample(logits), options
        new = rng.integers(-2, len(logits) + 2, rng.integers(20)).tolist()
        sampler.accept(new)
        reference.accept(new)


@pytest.mark.parametrize("num", [*range(1, 20), 63, 64, 65, 127, 128, 129, 1000, 4097])
def test_random_options(simd: str, num: int) -> None:
    rng = np.random.default_rng(num)
    for _ in range(40):
        check(rng, random_logits(rng, num), 3, **random_options(rng))


@pytest.mark.parametrize("seed", range(6))
def test_a_whole_vocabulary(simd: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(3):
        check(rng, random_logits(rng, VOCABULARY), 1, **random_options(rng))


PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_p": 0.95},
        {"top_p": 0.5},
        {"temperature": 5.0},
        {"top_p": 0.95, "temperature": 5.0},
        {"top_p": 0.999999, "temperature": 5.0},
        {"top_p": 0.9, "min_p": 0.4, "temperature": 5.0},
        {"min_p": 0.01, "temperature": 0.7},
        {"top_k": 40, "top_p": 0.9},
    ],
    ids=str,
)
@pytest.mark.parametrize("spread", [0.0, 1e-6, 3.0])
def test_flat_and_peaked(simd: str, spread: float, options: dict[str, Any]) -> None:
    """Equal and nearly equal tokens: with top_p 0.5 a sum is exactly half of all, and only sums in order decide."""
    rng = np.random.default_rng(5)
    logits = (rng.standard_normal(VOCABULARY) * spread).astype(np.float32)
    logits[[*range(9), 50_000, 100_000, -1]] = [np.nan, np.inf, -np.inf] * 4
    check(rng, logits, 2, **{**PLAIN, **options, "seed": 11})


@pytest.mark.parametrize("options", [{}, {"top_p": 0.95}, {"min_p": 0.5}], ids=str)
def test_differences_that_overflow(simd: str, options: dict[str, Any]) -> None:
    """Logits and a temperature at the end of float32: half of the tokens are nearly as likely as the other half."""
    rng = np.random.default_rng(7)
    logits = (rng.choice([-3.2e38, 3.2e38], VOCABULARY) * rng.uniform(0.9, 1, VOCABULARY)).astype(np.float32)
    logits[::1000] = np.nan
    check(rng, logits, 3, **{**PLAIN, "temperature": 3.4e38, **options, "seed": 12})


def test_a_draw_beyond_the_largest_weights(simd: str) -> None:
    """Weights of a thousandth of a millionth, which hold almost all of the probability beyond top_p's first token."""
    logits = np.full(10_000, -20, np.float32)
    logits[7777] = 0
    rng = np.random.default_rng(1)
    for top_p in (1.0, 0.99999994, 0.9999999):
        for seed in range(30):
            check(rng, logits, 1, **{**PLAIN, "top_p": top_p, "seed": seed})


def test_a_sum_that_rounding_decides(simd: str) -> None:
    """The weights of the first 89,514 tokens are top_p of all but for 2.5e-15, less than a sum's error.

    This top_p was found by trying all float32 numbers from 0.5 to 1.
    """
    logits = np.arange(VOCABULARY, dtype=np.float32) * np.float32(-1e-7) - np.float32(0.333)
    logits[0] = 0
    check(np.random.default_rng(0), logits, 4, **{**PLAIN, "top_p": 0.5905013084411621, "seed": 3})
