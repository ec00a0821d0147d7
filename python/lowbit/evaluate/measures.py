"""The loss of quantization: perplexity on a text, and divergence of a model's predictions from another model's.

The text is cut into chunks of `context` tokens without overlap; the rest at the end is dropped. If the tokenizer
starts every text with a token (BOS), that token replaces the first of each chunk. The first half of a chunk is only
context. In the second half each token except the last predicts the next one, so a chunk of 512 has 255 predictions.
llama-perplexity counts the same way, so the figures are comparable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lowbit import _core
from lowbit.base import arguments
from lowbit.base.errors import InputError
from lowbit.base.progress import ProgressLike, steps
from lowbit.base.quoting import listed, shown
from lowbit.base.threads import num_threads
from lowbit.tensors import nonfinite

if TYPE_CHECKING:
    from lowbit.engine.model import Model
    from lowbit.tokenizer.load import Tokenizer

__all__ = ["Divergence", "Figures", "Perplexity", "compare", "kl_divergence", "perplexity"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Perplexity:
    """The exponential of the mean of `-log p` over the tokens predicted."""

    value: float
    standard_error: float  # of `value`, taking tokens as independent
    tokens: int  # number of predictions
    chunks: int
    context: int  # tokens per chunk


@dataclass(frozen=True)
class Divergence:
    """KL(reference || model) in nats over the whole vocabulary, one figure per predicted token."""

    mean: float
    standard_error: float  # of `mean`
    median: float
    percentile_99: float
    maximum: float
    same_top: float  # share of tokens with the same most likely prediction


@dataclass(frozen=True)
class Figures:
    """The result of `compare` for one model; `divergence` is None for the reference."""

    perplexity: Perplexity
    divergence: Divergence | None


def perplexity(
    model: Model,
    text: str,
    *,
    context: int = 512,
    chunks: int | None = None,
    threads: int | None = None,
    progress: ProgressLike = None,
) -> Perplexity:
    """Perplexity of `model` on `text`. Arguments and errors are those of `compare`."""
    figures = compare({"": model}, text, context=context, chunks=chunks, threads=threads, progress=progress)
    return figures[""].perplexity


def kl_divergence(
    reference: Model,
    model: Model,
    text: str,
    *,
    context: int = 512,
    chunks: int | None = None,
    threads: int | None = None,
    progress: ProgressLike = None,
) -> Divergence:
    """Divergence of `model` from `reference` on `text`. Arguments and errors are those of `compare`."""
    models = {"reference": reference, "model": model}
    figures = compare(models, text, context=context, chunks=chunks, threads=threads, progress=progress)
    divergence = figures["model"].divergence
    assert divergence is not None
    return divergence


def compare(
    models: Mapping[str, Model],
    text: str,
    *,
    context: int = 512,
    chunks: int | None = None,
    threads: int | None = None,
    progress: ProgressLike = None,
) -> dict[str, Figures]:
    """Perplexity of every model on the same chunks, and the divergence of all but the first from the first.

    The first model's tokenizer cuts the text. One chunk is in work at a time, with the logits of two models, so memory
    is about context * vocabulary floats. `chunks` leaves out the end of the text. `progress` counts chunks.

    A chunk may be longer than a model's context: the model makes room (`Model.make_room`), and logs a warning if it
    was trained on shorter texts.

    Raises InputError for no models, vocabularies of different sizes, a `context` below 3 and a text too short for one
    chunk.
    """
    for model in arguments.mapping("models", models).values():
        if not hasattr(model, "spec"):
            raise arguments.wrong("models", "models that lowbit.load made", model)
    if chunks is not None:
        chunks = arguments.integer("chunks", chunks, 1)
    if not models:
        raise InputError("compare:", expected="at least one model", found="none")
    sizes = {name: model.spec.vocab_size for name, model in models.items()}
    if len(set(sizes.values())) > 1:
        found = listed(f"{shown(name)} has {size}" for name, size in sizes.items())
        raise InputError("models:", expected="vocabularies of one size", found=found)
    context = arguments.integer("context", context, 3)
    cut = chunks_of(next(iter(models.values())).tokenizer, text, context)[:chunks]
    for model in models.values():
        model.make_room(context)
    workers = num_threads(threads)

    losses: dict[str, list[Floats]] = {name: [] for name in models}
    divergences: dict[str, list[Floats]] = {name: [] for name in models}
    same_tops: dict[str, list[npt.NDArray[np.bool_]]] = {name: [] for name in models}
    with steps("perplexity", "chunks", progress) as advance:
        for done, chunk in enumerate(cut, 1):
            reference: npt.NDArray[np.float32] | None = None
            for name, model in models.items():
                logits = _predictions(model, chunk)
                losses[name].append(-_core.log_probabilities(logits, chunk[context // 2 + 1 :], workers))
                if np.isnan(losses[name][-1]).any():
                    whose = f"model {shown(name)}" if name else "model"
                    raise nonfinite.error(f"the {whose}'s predictions are not finite", model.weights)
                if reference is None:
                    reference = logits
                else:
                    divergence, same_top = _core.kl_divergence(reference, logits, workers)
                    divergences[name].append(divergence)
                    same_tops[name].append(same_top)
            advance(done, len(cut))
    return {
        name: Figures(
            _perplexity(np.concatenate(losses[name]), len(cut), context),
            _divergence(np.concatenate(divergences[name]), np.concatenate(same_tops[name]))
            if divergences[name]
            else None,
        )
        for name in models
    }


def chunks_of(tokenizer: Tokenizer, text: str, context: int, parse_special: bool = False) -> npt.NDArray[np.int64]:
    """The tokens of `text` as rows of `context`, each with BOS in the first place if the tokenizer has it begin a text.

    Special tokens written out in the text are text, unless `parse_special`, as llama-perplexity and llama-imatrix have
    it. Raises InputError for a text too short for one row.
    """
    tokens = np.asarray(tokenizer.encode(text, add_special_tokens=True, parse_special=parse_special), np.int64)
    if len(tokens) < context:
        raise InputError(
            f"text: {len(tokens)} tokens",
            expected=f"at least {shown(context)}, one chunk",
            found=len(tokens),
            rest=": take a longer text or a smaller context",
        )
    chunks: npt.NDArray[np.int64] = tokens[: len(tokens) // context * context].reshape(-1, context).copy()
    begin = tokenizer.encode("", add_special_tokens=True)[:1]
    if begin and begin[0] == tokens[0]:
        chunks[:, 0] = begin[0]
    return chunks


def _predictions(model: Model, chunk: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The logits of the predictions: the second half of the chunk without the last token."""
    return model.logits(chunk[:-1], start=len(chunk) // 2)


def _mean(values: Floats) -> tuple[float, float]:
    """The mean and its standard error."""
    error = float(np.sqrt(values.var() / (len(values) - 1))) if len(values) > 1 else float("nan")
    return float(values.mean()), error


def _perplexity(losses: Floats, chunks: int, context: int) -> Perplexity:
    mean, error = _mean(losses)
    value = float(np.exp(mean))
    return Perplexity(value, value * error, len(losses), chunks, context)


def _divergence(values: Floats, same_top: npt.NDArray[np.bool_]) -> Divergence:
    mean, error = _mean(values)
    return Divergence(
        mean=mean,
        standard_error=error,
        median=float(np.median(values)),
        percentile_99=float(np.quantile(values, 0.99)),
        maximum=float(values.max()),
        same_top=float(same_top.mean()),
    )
