"""`Model.forward` with an array of the caller."""

from pathlib import Path

import numpy as np
import pytest

import lowbit
from lowbit.engine.model import Model

BARD = Path(lowbit.__file__).parent / "data" / "bard"


@pytest.fixture(scope="module")
def bard() -> Model:
    return lowbit.load(BARD, compute="f32")


def test_logits_in_an_array_of_the_caller(bard):
    where = [1, 2, 3], [0, 1, 2], [60, 60, 60]
    expected = bard.forward(*where, wants_logits=[True, False, True])
    bard.truncate(60)
    out = np.empty_like(expected)
    result = bard.forward(*where, wants_logits=[True, False, True], out=out)
    bard.truncate(60)
    assert np.shares_memory(result, out)
    assert np.array_equal(out, expected)


def test_a_wrong_array(bard):
    vocab = bard.spec.vocab_size
    for out, match in (
        (np.empty((2, vocab), np.float32), f"out: expected float32 array of shape .1, {vocab}."),
        (np.empty((1, vocab)), "out: expected float32 array"),
        (np.empty((1, 2 * vocab), np.float32)[:, ::2], "out: expected a C-contiguous"),
    ):
        with pytest.raises(lowbit.InputError, match=match):
            bard.forward([1], [0], [50], out=out)
    assert bard.forward([1], [0], [50]).shape == (1, vocab)
