"""The loss of quantization: perplexity on a text, and the divergence of one model's predictions from another's.

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
    """Perplexity: exp of the mean of `-log p` over the predicted tokens."""

    value: float
    standard_error: float  # of `value`, as if tokens were independent
    tokens: int  # number of predictions
    chunks: int
    context: int  # tokens per chunk


@dataclass(frozen=True)
class Divergence:
    """KL(reference || model) in nats over the whole vocabulary: statistics over the predicted tokens."""

    mean: float
    standard_error: float  # of `mean`
    median: float
    percentile_99: float
    maximum: float
    same_top: float  # share of tokens (0 to 1) for which both predict the same most likely token


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
    """Perplexity of `model` on `text`. Arguments and errors are those of `compare`.

    lowbit.evaluate.perplexity(lowbit.load("model.gguf"), text, chunks=20).value
    """
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
    """KL divergence of `model` from `reference` on `text`, in nats. Arguments and errors are those of `compare`."""
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
    """Perplexity of every model on the same text, and the KL divergence of the other models from the first.

    models: by name; all need vocabularies of one size. The tokenizer of the first is used.
    context: tokens per chunk, at least 3. It may exceed a model's context, which then grows (`Model.make_room`); a
        warning is logged if the model was trained on shorter texts.
    chunks: most chunks to measure, from the start of the text; None: all.
    threads: number of threads for the statistics; None: LOWBIT_THREADS, else one per processor.
    progress: counts chunks; see `lowbit.ProgressLike`.

    Returns Figures by name. Memory use is about context * vocabulary floats: the logits of two models for one chunk.

    Raises InputError for no models, vocabularies of different sizes, a wrong argument, a text that is too short for one
    chunk, or predictions that are not finite.

        models = {"bf16": lowbit.load("model-bf16.gguf"), "q4": lowbit.load("model-Q4_K_M.gguf")}
        lowbit.evaluate.compare(models, text)["q4"].divergence.mean
    """
    for model in arguments.mapping("models", models).values():
        if not hasattr(model, "spec"):
            raise arguments.wrong("models", "models of lowbit.load", model)
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
    """The tokens of `text` in chunks: int64 (chunks, context).

    If the tokenizer starts a text with BOS, the first token of each chunk is BOS. Special tokens in the text are read
    as text unless `parse_special`, as in llama-perplexity and llama-imatrix. Raises InputError for a text that is too
    short for one chunk.
    """
    tokens = np.asarray(tokenizer.encode(text, add_special_tokens=True, parse_special=parse_special), np.int64)
    if len(tokens) < context:
        raise InputError(
            f"text: {len(tokens)} tokens",
            expected=f"at least {shown(context)}, one chunk",
            found=len(tokens),
            rest="; use a longer text or a smaller context",
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
