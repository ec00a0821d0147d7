"""Perplexity and divergence of models that are given by a formula, against the definition worked out here."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from reference_transformer import log_softmax

import lowbit
from lowbit import evaluate
from lowbit.evaluate.measures import chunks_of

VOCAB = 23


@dataclass
class Tokenizer:
    """A character is a token; every text may begin with BOS, and may end with EOS."""

    bos: int | None = None
    eos: int | None = None

    def encode(self, text: str, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        ids = [ord(c) % 20 for c in text]
        if not add_special_tokens:
            return ids
        return [t for t in (self.bos,) if t is not None] + ids + [t for t in (self.eos,) if t is not None]


class Model:
    """Logits that depend on the last two tokens and the position; remembers what it was asked."""

    def __init__(self, seed: int, tokenizer: Tokenizer, vocab: int = VOCAB, context: int = 64) -> None:
        self.spec = SimpleNamespace(vocab_size=vocab, context_length=1000)
        self.context = context
        self.tokenizer = tokenizer
        self.table = np.random.default_rng(seed).standard_normal((vocab, vocab, vocab)).astype(np.float32)
        self.seen: list[list[int]] = []

    def make_room(self, context: int) -> None:
        self.context = max(self.context, context)

    def logits(self, ids: Sequence[int], start: int = 0) -> np.ndarray:
        self.seen.append([int(i) for i in ids])
        rows = [self.table[ids[max(t - 1, 0)], ids[t]] * (1 + t) for t in range(len(ids))]
        return np.array(rows[start:], np.float32)


def definition(model: Model, text: str, context: int) -> tuple[list[float], list[np.ndarray]]:
    """What counts: -log p of each token, and all log probabilities there."""
    tokens = model.tokenizer.encode(text)
    losses, rows = [], []
    for begin in range(0, len(tokens) - context + 1, context):
        chunk = tokens[begin : begin + context]
        read = ([model.tokenizer.bos] if model.tokenizer.bos is not None else chunk[:1]) + chunk[1:]
        for t in range(context // 2, context - 1):
            row = log_softmax(model.table[read[t - 1], read[t]] * (1 + t))
            losses.append(-row[chunk[t + 1]])
            rows.append(row)
    return losses, rows


TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom" * 3


@pytest.mark.parametrize("context", [3, 4, 7, 16, 64])
@pytest.mark.parametrize("tokenizer", [Tokenizer(), Tokenizer(bos=21), Tokenizer(bos=21, eos=22), Tokenizer(eos=22)])
def test_perplexity_is_the_definition(context: int, tokenizer: Tokenizer) -> None:
    model = Model(1, tokenizer)
    losses, _ = definition(model, TEXT, context)
    found = evaluate.perplexity(model, TEXT, context=context)
    assert (found.tokens, found.context) == (len(losses), context)
    assert found.chunks == len(tokenizer.encode(TEXT)) // context
    assert found.tokens == found.chunks * (context - 1 - context // 2)
    assert found.value == pytest.approx(np.exp(np.mean(losses)), rel=1e-6)
    error = np.std(losses) / np.sqrt(len(losses) - 1)
    assert found.standard_error == pytest.approx(error * found.value, rel=1e-6)


def test_divergence_is_the_definition() -> None:
    tokenizer = Tokenizer(bos=21)
    reference, model = Model(1, tokenizer), Model(2, tokenizer)
    base, rows = definition(reference, TEXT, 16)[1], definition(model, TEXT, 16)[1]
    expected = np.array([(np.exp(p) * (p - q)).sum() for p, q in zip(base, rows, strict=True)])
    found = evaluate.kl_divergence(reference, model, TEXT, context=16)
    assert found.mean == pytest.approx(expected.mean(), rel=1e-6)
    assert found.median == pytest.approx(np.median(expected), rel=1e-6)
    assert found.percentile_99 == pytest.approx(np.quantile(expected, 0.99), rel=1e-6)
    assert found.maximum == pytest.approx(expected.max(), rel=1e-6)
    assert found.standard_error == pytest.approx(expected.std() / np.sqrt(len(expected) - 1), rel=1e-6)
    assert found.same_top == np.mean([p.argmax() == q.argmax() for p, q in zip(base, rows, strict=True)])


def test_models_are_compared_on_the_same_chunks(every_step: None) -> None:
    models = {name: Model(seed, Tokenizer(bos=21)) for seed, name in enumerate(("base", "one", "two"))}
    calls: list[tuple[int, int | None]] = []
    figures = evaluate.compare(
        models, TEXT, context=16, chunks=3, progress=lambda step: calls.append((step.done, step.total))
    )
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert figures["base"].divergence is None
    assert len(models["base"].seen) == 3
    assert models["one"].seen == models["two"].seen == models["base"].seen
    for name, model in models.items():
        assert figures[name].perplexity == evaluate.perplexity(model, TEXT, context=16, chunks=3)
    assert figures["two"].divergence == evaluate.kl_divergence(
        models["base"], models["two"], TEXT, context=16, chunks=3
    )


def test_a_model_does_not_diverge_from_itself() -> None:
    tokenizer = Tokenizer()
    found = evaluate.kl_divergence(Model(1, tokenizer), Model(1, tokenizer), TEXT, context=16)
    assert (found.mean, found.maximum, found.same_top) == (0, 0, 1)


def test_chunks_longer_than_the_context_get_room() -> None:
    models = {"a": Model(1, Tokenizer(bos=21)), "b": Model(2, Tokenizer(), context=100)}
    found = evaluate.compare(models, TEXT * 3, context=70)
    assert [model.context for model in models.values()] == [70, 100]
    losses, _ = definition(models["a"], TEXT * 3, 70)
    assert found["a"].perplexity.value == pytest.approx(np.exp(np.mean(losses)))


def test_bad_arguments() -> None:
    model = Model(1, Tokenizer(bos=21))
    with pytest.raises(lowbit.InputError, match="text: 5 tokens, expected at least 16, one chunk"):
        evaluate.perplexity(model, "four", context=16)
    with pytest.raises(lowbit.InputError, match="context: expected at least 3, got 2"):
        evaluate.perplexity(model, TEXT, context=2)
    with pytest.raises(lowbit.InputError, match="expected at least one model"):
        evaluate.compare({}, TEXT)
    with pytest.raises(lowbit.InputError, match="chunks: expected at least 1, got 0"):
        evaluate.perplexity(model, TEXT, context=16, chunks=0)
    with pytest.raises(lowbit.InputError, match="expected vocabularies of one size, got a has 23, b has 24"):
        evaluate.compare({"a": model, "b": Model(1, Tokenizer(), vocab=24)}, TEXT, context=16)


def test_special_tokens_written_out_are_text():
    tokenizer = lowbit.load_tokenizer(Path(lowbit.__file__).parent / "data" / "bard")
    special = sorted(tokenizer.special_ids)
    text = "".join(map(tokenizer.token, special)) * 4
    assert not np.isin(chunks_of(tokenizer, text, 8), special).any()
    assert np.isin(chunks_of(tokenizer, text, 8, parse_special=True), special).all()
