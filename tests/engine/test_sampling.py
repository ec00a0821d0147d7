"""_core.Sampler against the definitions, written down once more in NumPy's float64."""

from __future__ import annotations

import numpy as np
import pytest

import lowbit
from lowbit import _core

OPTIONS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 0}


def sampler(**options) -> _core.Sampler:
    return _core.Sampler(**{**OPTIONS, **options})


def draws(logits: np.ndarray, num: int, seen: tuple[int, ...] = (), **options) -> np.ndarray:
    one = sampler(**options)
    one.accept(list(seen))
    return np.array([one.sample(logits) for _ in range(num)])


def drawn(logits: np.ndarray, seen: tuple[int, ...] = (), **options) -> int:
    return int(draws(logits, 1, seen, **options)[0])


def distribution(
    logits: np.ndarray,
    seen: tuple[int, ...] = (),
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
) -> np.ndarray:
    """The probability of each token: repetition penalty, temperature, top-k, top-p, min-p, in this order."""
    x = logits.astype(np.float64)
    for token in set(seen):
        x[token] = x[token] / repetition_penalty if x[token] > 0 else x[token] * repetition_penalty
    p = np.exp((x - x.max()) / temperature)
    order = np.lexsort((np.arange(len(p)), -x))  # the likeliest first, the lower id first of equals
    if top_k:
        p[order[top_k:]] = 0
    p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= top_p]] = 0
    p[p < min_p * p.max()] = 0
    return p / p.sum()


def check_frequencies(tokens: np.ndarray, p: np.ndarray) -> None:
    """Pearson's chi-square, and nothing drawn that has no probability.

    With d degrees of freedom the statistic has mean d and variance about 2 d: six deviations above is a chance of less
    than one in a million, and the seeds are fixed.
    """
    counts = np.bincount(tokens, minlength=len(p))
    assert not counts[p == 0].any(), np.flatnonzero((p == 0) & (counts > 0))
    rare = p * len(tokens) < 8  # too rare for the statistic: counted together
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(p[~rare], p[rare].sum()) * len(tokens)
    observed, expected = observed[expected > 0], expected[expected > 0]
    degrees = len(expected) - 1
    statistic = ((observed - expected) ** 2 / expected).sum()
    assert statistic <= degrees + 6 * np.sqrt(2 * degrees) + 12, (statistic, degrees)


def random_logits(num: int, seed: int, scale: float = 2.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(num) * scale).astype(np.float32)


def test_greedy_takes_the_likeliest():
    greedy = sampler(temperature=0.0, top_k=3, top_p=0.1, min_p=0.9)
    for seed in range(20):
        logits = random_logits(1000, seed)
        assert greedy.sample(logits) == logits.argmax()


def test_greedy_takes_the_first_of_equals():
    logits = np.array([0, 5, -1, 5, 5], np.float32)
    assert drawn(logits, temperature=0.0) == 1
    assert drawn(logits, top_k=1) == 1
    assert drawn(np.zeros(7, np.float32), temperature=0.0) == 0
    assert drawn(np.array([-0.0, 0.0], np.float32), temperature=0.0) == 0


@pytest.mark.parametrize("temperature", [0.2, 0.7, 1.0, 1.5, 10.0])
def test_temperature(temperature):
    logits = random_logits(50, 1)
    tokens = draws(logits, 20000, temperature=temperature, seed=11)
    check_frequencies(tokens, distribution(logits, temperature=np.float64(np.float32(temperature))))


def test_the_frequencies_test_can_fail():
    logits = random_logits(50, 1)
    tokens = draws(logits, 20000, temperature=1.0, seed=11)
    with pytest.raises(AssertionError):
        check_frequencies(tokens, distribution(logits, temperature=1.1))


CUTS = [
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 49},
    {"top_k": 50},
    {"top_k": 2**40},
    {"top_p": 1e-6},
    {"top_p": 0.3},
    {"top_p": 0.9},
    {"top_p": 0.999},
    {"min_p": 0.05},
    {"min_p": 0.5},
    {"min_p": 1.0},
    {"top_k": 12, "top_p": 0.8},
    {"top_k": 20, "top_p": 0.95, "min_p": 0.1},
    {"top_k": 20, "top_p": 0.95, "min_p": 0.1, "temperature": 1.7},
    {"top_p": 0.6, "temperature": 3.0},
    {"min_p": 0.3, "temperature": 0.5},
]


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("seed", [1, 2])
def test_cuts(cut, seed):
    """The tokens left are the definition's, every one of them is drawn, and as often as it should be."""
    logits = random_logits(50, seed)
    options = {name: np.float64(np.float32(value)) if name != "top_k" else value for name, value in cut.items()}
    p = distribution(logits, **options)
    check_frequencies(draws(logits, 20000, seed=seed, **cut), p)


def test_cuts_of_equals_keep_the_lower_ids():
    logits = np.array([1, 3, 3, 0, 3, 3], np.float32)
    assert set(draws(logits, 300, top_k=2)) == {1, 2}
    assert set(draws(logits, 300, top_p=0.4)) == {1, 2}
    # min-p has no number to keep: all equals stay.
    assert set(draws(logits, 300, min_p=1.0)) == {1, 2, 4, 5}


def test_cuts_apply_to_what_the_cut_before_left():
    # Of the two that top-k leaves the first has 0.625, so top-p 0.6 keeps one; of all three it keeps two.
    logits = np.log(np.array([0.5, 0.3, 0.2])).astype(np.float32)
    assert set(draws(logits, 300, top_k=2, top_p=0.6)) == {0}
    assert set(draws(logits, 300, top_p=0.6)) == {0, 1}
    # The penalty comes before the cuts: it makes the first the least likely.
    assert set(draws(logits, 300, seen=(0,), top_k=2, repetition_penalty=4.0)) == {1, 2}
    # Temperature comes before top-p: hot enough, two no longer reach it.
    assert set(draws(logits, 300, top_p=0.75)) == {0, 1}
    assert set(draws(logits, 300, top_p=0.75, temperature=10.0)) == {0, 1, 2}


def test_repetition_penalty():
    """Positive logits are divided, others multiplied, once however often a token was seen."""
    logits = np.array([4.0, 3.9, -1.0, -1.1, 0.0], np.float32)
    greedy = {"temperature": 0.0, "repetition_penalty": 1.5}
    assert drawn(logits, (0,), **greedy) == 1
    assert drawn(logits, (0, 1, 0, 0), **greedy) == 0
    assert drawn(logits, (1, 1, 1), **greedy) == 0
    negative = np.array([-1.0, -1.1, -9], np.float32)
    assert drawn(negative, (0,), **greedy) == 1
    assert drawn(negative, (1,), temperature=0.0, repetition_penalty=0.5) == 1
    hot = random_logits(20, 3)
    seen = (1, 2, 2, 2, 7)
    for penalty in (0.5, 1.3, 5.0):
        p = distribution(hot, seen, repetition_penalty=float(np.float32(penalty)))
        check_frequencies(draws(hot, 20000, seen=seen, repetition_penalty=penalty, seed=5), p)


def test_penalty_ignores_ids_outside():
    logits = np.array([1.0, 2.0], np.float32)
    assert drawn(logits, (-1, 2, 2**31 - 1, -(2**31)), temperature=0.0, repetition_penalty=9.0) == 1


def test_seeds():
    logits = random_logits(100, 4)
    assert draws(logits, 50, seed=1).tolist() == draws(logits, 50, seed=1).tolist()
    assert draws(logits, 50, seed=1).tolist() != draws(logits, 50, seed=2).tolist()
    assert draws(logits, 50, seed=2**64 - 1).tolist() != draws(logits, 50, seed=0).tolist()


def test_known_draws():
    """The generator is the standard's mt19937_64, whose 10000th number is known, and the draw is by 53 bits of it."""
    # 9981545732273789042 is the 10000th number for the seed 5489.
    one = sampler(seed=5489)
    uniform = np.zeros(2, np.float32)
    for _ in range(9999):
        one.sample(uniform)
    # Among 2**12 equal tokens the draw shows the 12 highest bits.
    assert one.sample(np.zeros(2**12, np.float32)) == 9981545732273789042 >> 52


def test_not_finite_logits_are_never_drawn():
    logits = np.array([np.nan, 1.0, -np.inf, np.inf, 1.0, -np.nan], np.float32)
    assert set(draws(logits, 200)) == {1, 4}
    assert drawn(logits, temperature=0.0) == 1
    assert set(draws(logits, 200, top_k=3, top_p=0.99, min_p=0.1, repetition_penalty=2.0, seen=(0, 2, 3))) == {1, 4}
    for temperature in (0.0, 1.0):
        assert sampler(temperature=temperature).sample(np.array([np.nan, -np.inf, np.inf], np.float32)) is None
        assert sampler(temperature=temperature).sample(np.empty(0, np.float32)) is None
    # A penalty that overflows rules its token out.
    assert drawn(np.array([-1e30, -1e35], np.float32), (0,), temperature=0.0, repetition_penalty=1e30) == 1


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1e-6, 1e6, 1e30, 3e38])
def test_extreme_temperatures(temperature):
    logits = np.array([1e30, -1e30, 1e30, 3e38, -3e38], np.float32)
    if temperature <= 1e6:
        assert set(draws(logits, 100, temperature=temperature)) == {3}
    else:
        check_frequencies(draws(logits, 5000, temperature=temperature), distribution(logits, temperature=temperature))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-1.0, np.nan, np.inf, -np.inf]),
        ("top_k", [-1, -(2**40)]),
        ("top_p", [0.0, -0.5, 1.5, np.nan]),
        ("min_p", [-0.1, 1.1, np.nan]),
        ("repetition_penalty", [0.0, -1.0, np.nan, np.inf]),
    ],
)
def test_options_out_of_range(name, values):
    for value in values:
        with pytest.raises(lowbit.InputError, match=f"{name}: expected "):
            sampler(**{name: value})


def test_logits_of_two_dimensions():
    with pytest.raises(lowbit.InputError, match="expected logits of 1 dimension, got 2"):
        sampler().sample(np.zeros((2, 2), np.float32))
