"""Steps of generation: one token in, the next one out, without logits in Python."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from random_network import forward, make_model, random_ids
from tiny_checkpoint import make_checkpoint

import lowbit
from lowbit import _core

OPTIONS = {"temperature": 0.8, "top_k": 30, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.3}


@pytest.mark.parametrize("compute", ["f32", "int8"])
def test_steps_are_forward_and_sample(small, compute):
    """Two sequences by turns, each with its own sampler, against logits that Python hands over."""
    spec, tensors = small
    model, other = make_model(spec, tensors, compute), make_model(spec, tensors, compute)
    samplers = [_core.Sampler(**OPTIONS, seed=seed) for seed in (3, 4)]
    expected = [_core.Sampler(**OPTIONS, seed=seed) for seed in (3, 4)]
    tokens = [7, 8]
    for position in range(40):
        for sequence in (0, 1):
            token = tokens[sequence]
            tokens[sequence] = model.step(samplers[sequence], token, position, sequence)
            expected[sequence].accept([token])
            logits = forward(other, [token], position, sequence)[0]
            assert tokens[sequence] == expected[sequence].sample(logits)
    assert (model.length(0), model.length(1)) == (40, 40)
    assert tokens[0] != tokens[1]


def test_a_step_that_fails(small):
    """The sequence keeps its length, and the sampler its place in the random numbers."""
    spec, tensors = small
    model = make_model(spec, tensors, max_length=4)
    sampler, fresh = (_core.Sampler(**OPTIONS, seed=9) for _ in range(2))
    forward(model, [1, 2], 0)
    for token, position, match in ((-1, 2, "token 0 is -1"), (spec.vocab_size, 2, "token 0 is"), (1, 3, "position 3")):
        with pytest.raises(lowbit.InputError, match=match):
            model.step(sampler, token, position, 0)

    def fail(name: str, x: np.ndarray) -> None:
        raise ZeroDivisionError(name)

    model.set_observer(fail)
    with pytest.raises(ZeroDivisionError, match=r"blk\.0\.attn_q\.weight"):
        model.step(sampler, 3, 2, 0)
    model.set_observer(None)
    assert model.length(0) == 2
    logits = forward(make_model(spec, tensors), [1, 2, 3])[-1]
    fresh.accept([3])
    assert model.step(sampler, 3, 2, 0) == fresh.sample(logits)
    assert model.step(sampler, 4, 3, 0) is not None
    with pytest.raises(lowbit.ContextFullError):
        model.step(sampler, 5, 4, 0)


def test_a_step_without_finite_logits(small):
    spec, tensors = small
    model = make_model(spec, {**tensors, "output_norm.weight": np.full_like(tensors["output_norm.weight"], np.nan)})
    for temperature in (0.0, 1.0):
        sampler = _core.Sampler(**{**OPTIONS, "temperature": temperature}, seed=1)
        assert model.step(sampler, 1, model.length(0), 0) is None
    assert model.length(0) == 2


@pytest.fixture(scope="module")
def phi(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("phi"), "phi3", scale=0.3)  # another rotary table beyond 64 tokens


@pytest.mark.parametrize("start", [1, 2, 58, 63, 64, 65, 70])
def test_tokens_are_those_of_logits(phi, start):
    """Each token is drawn from the logits after the text so far, also where the rotary table changes at 64 tokens."""
    model, other = lowbit.load(phi, compute="f32"), lowbit.load(phi, compute="f32")
    assert dataclasses.asdict(model.spec)["original_context"] == 64
    text = random_ids(model.spec, start).tolist()
    sampler = _core.Sampler(**OPTIONS, seed=5)
    sampler.accept(text)
    for token in model.tokens(list(text), max_tokens=15, seed=5, ignore_eos=True, **OPTIONS):
        assert token == sampler.sample(other.logits(text)[-1])
        sampler.accept([token])
        text.append(token)


@pytest.mark.parametrize("start", [30, 65])
def test_a_prompt_is_read_once(phi, start):
    """Every token goes through the layers once, and only new tokens need logits."""
    model = lowbit.load(phi, compute="f32")
    output = "output.weight" if "output.weight" in model.weights else "token_embd.weight"
    rows: dict[str, list[int]] = {}
    model.observe(lambda name, x: rows.setdefault(name, []).append(len(x)))
    assert len(list(model.tokens([1] * start, max_tokens=5, ignore_eos=True))) == 5
    assert rows[output] == [1] * 5
    assert rows["blk.0.attn_output.weight"] == [start - 1, *[1] * 5]
