"""Log probabilities and KL divergence against the same formulas in NumPy's float64."""

import numpy as np
import pytest
from reference_transformer import log_softmax

import lowbit
from lowbit import _core

SHAPES = [(1, 1), (1, 2), (3, 7), (5, 257), (64, 2048), (2, 32003)]
# Each term is rounded to 2**-53 of itself a few times, and sums of vocab terms lose at most a factor log2(vocab) more.
RELATIVE = 64 * 2.0**-53


def random_logits(seed: int, shape: tuple[int, int], scale: float = 4.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [0.0, 1e-3, 4.0, 1e4])
def test_log_probabilities_are_numpys(shape: tuple[int, int], scale: float) -> None:
    logits = random_logits(1, shape, scale)
    targets = np.random.default_rng(2).integers(0, shape[1], shape[0])
    expected = log_softmax(logits)[np.arange(shape[0]), targets]
    # The largest quantity in the sum is a logit, so errors are relative to that.
    tolerance = RELATIVE * max(1.0, float(np.abs(logits).max()))
    np.testing.assert_allclose(_core.log_probabilities(logits, targets, 2), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("distance", [0.01, 1.0, 8.0])
def test_divergence_is_numpys(shape: tuple[int, int], distance: float) -> None:
    reference = random_logits(3, shape)
    logits = reference + random_logits(4, shape, distance)
    log_p, log_q = log_softmax(reference), log_softmax(logits)
    expected = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    divergence, same_top = _core.kl_divergence(reference, logits, 2)
    tolerance = RELATIVE * float(np.abs(log_q).max())
    np.testing.assert_allclose(divergence, expected, rtol=RELATIVE, atol=tolerance)
    np.testing.assert_array_equal(same_top, reference.argmax(axis=-1) == logits.argmax(axis=-1))


def test_probabilities_sum_to_one() -> None:
    logits = np.repeat(random_logits(5, (1, 501)), 501, axis=0)
    log_probabilities = _core.log_probabilities(logits, np.arange(501), 1)
    assert abs(np.exp(log_probabilities).sum() - 1) < 501 * RELATIVE


def test_equal_logits_do_not_diverge() -> None:
    logits = random_logits(6, (9, 1000))
    divergence, same_top = _core.kl_divergence(logits, logits + np.float32(0.5), 1)
    # Adding a constant changes no probability, apart from the rounding of each float sum.
    assert (divergence >= 0).all()
    assert divergence.max() < 1e-10
    assert same_top.all()


def test_known_divergence() -> None:
    # A fair coin against one that shows heads 3 times in 4: (ln 2 - ln 3/2 + ln 2 - ln 1/2) / 2.
    reference = np.log(np.array([[0.5, 0.5]])).astype(np.float32)
    logits = np.log(np.array([[0.75, 0.25]])).astype(np.float32)
    divergence, _ = _core.kl_divergence(reference, logits, 1)
    assert divergence[0] == pytest.approx(0.5 * np.log(4 / 3), abs=4 * 2.0**-24)


def test_ruled_out_tokens() -> None:
    reference = np.array([[0, 0, -np.inf], [0, 0, 0]], np.float32)
    logits = np.array([[0, 0, 0], [0, 0, -np.inf]], np.float32)
    divergence, _ = _core.kl_divergence(reference, logits, 1)
    assert divergence[0] == pytest.approx(np.log(3 / 2))
    assert divergence[1] == np.inf
    assert _core.log_probabilities(reference, np.array([2, 0]), 1).tolist() == [-np.inf, pytest.approx(-np.log(3))]


def test_not_a_number_stays_one() -> None:
    logits = random_logits(7, (3, 50))
    logits[1, 20] = np.nan
    clean = random_logits(7, (3, 50))
    for divergence in (_core.kl_divergence(clean, logits, 1)[0], _core.kl_divergence(logits, clean, 1)[0]):
        assert np.isnan(divergence).tolist() == [False, True, False]
    assert np.isnan(_core.log_probabilities(logits, np.zeros(3, np.int64), 1)).tolist() == [False, True, False]


def test_threads_change_no_bit() -> None:
    reference, logits = random_logits(8, (37, 4097)), random_logits(9, (37, 4097))
    targets = np.arange(37)
    one = _core.kl_divergence(reference, logits, 1)
    for threads in (2, 3, 64):
        many = _core.kl_divergence(reference, logits, threads)
        assert one[0].tobytes() == many[0].tobytes()
        assert one[1].tobytes() == many[1].tobytes()
        assert (
            _core.log_probabilities(logits, targets, 1).tobytes()
            == _core.log_probabilities(logits, targets, threads).tobytes()
        )


@pytest.mark.parametrize("target", [-1, 5, 2**62, -(2**63)])
def test_target_outside_the_vocabulary(target: int) -> None:
    with pytest.raises(lowbit.InputError, match=f"target of token 1 is {target}, expected 0 to 4"):
        _core.log_probabilities(np.zeros((2, 5), np.float32), np.array([0, target]), 1)


def test_shapes_that_do_not_fit() -> None:
    logits = np.zeros((2, 5), np.float32)
    with pytest.raises(lowbit.InputError, match="targets: expected one for each of 2 rows"):
        _core.log_probabilities(logits, np.zeros(3, np.int64), 1)
    with pytest.raises(lowbit.InputError, match="logits: expected two dimensions, got 1"):
        _core.log_probabilities(logits[0], np.zeros(5, np.int64), 1)
    with pytest.raises(lowbit.InputError, match=r"expected the reference's shape \(2, 5\), got \(2, 4\)"):
        _core.kl_divergence(logits, np.zeros((2, 4), np.float32), 1)
    with pytest.raises(lowbit.InputError, match="threads: expected 1 to 1024, got 0"):
        _core.kl_divergence(logits, logits, 0)
    with pytest.raises(lowbit.InputError, match="at least one token"):
        _core.kl_divergence(np.zeros((2, 0), np.float32), np.zeros((2, 0), np.float32), 1)
