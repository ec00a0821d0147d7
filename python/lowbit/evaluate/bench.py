"""Speed of a model on this machine: prefill (reading a prompt) and decode (generating tokens)."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np

from lowbit.base import simd
from lowbit.base.errors import InputError
from lowbit.base.paths import AnyPath, checked
from lowbit.base.progress import ProgressLike, steps
from lowbit.engine import model as models
from lowbit.tensors import nonfinite

__all__ = ["BenchReport", "bench"]


@dataclass(frozen=True)
class BenchReport:
    """The result of `bench`. Speeds are medians over the repetitions, in tokens per second.

    A spread is (slowest - fastest) / median of the times. load_s: seconds to load the model.
    """

    model: str
    architecture: str
    weight_bytes: int
    threads: int
    compute: str
    simd: str
    prompt_tokens: int
    new_tokens: int
    repetitions: int
    load_s: float
    prefill_tokens_per_s: float
    prefill_spread: float
    decode_tokens_per_s: float
    decode_spread: float


def bench(
    path: AnyPath,
    *,
    prompt_tokens: int = 512,
    new_tokens: int = 128,
    repetitions: int = 3,
    threads: int | None = None,
    compute: str = "auto",
    like: str | None = None,
    progress: ProgressLike = None,
) -> BenchReport:
    """Measures the speed of prefill and decode on this machine.

    prompt_tokens: tokens of the prompt, random ids from a fixed seed.
    new_tokens: tokens generated after the prompt; each step feeds the most likely token back.
    repetitions: measured runs, after one that is not counted.
    threads, compute, like: as in `load`.
    progress: counts runs; see `lowbit.ProgressLike`.

    Returns a BenchReport. Raises InputError if the tokens exceed the model's context or the logits are not finite, and
    the errors of `load`.

        lowbit.bench("model.gguf", new_tokens=64).decode_tokens_per_s
    """
    if min(prompt_tokens, new_tokens, repetitions) < 1:
        raise InputError(
            expected="at least one token and run", found=f"{prompt_tokens}, {new_tokens} and {repetitions}"
        )
    start = time.perf_counter()
    model = models.load(path, compute=compute, threads=threads, like=like, progress=progress)
    load_seconds = time.perf_counter() - start
    if prompt_tokens + new_tokens > model.context:
        raise InputError(
            f"{prompt_tokens} + {new_tokens} tokens:", expected=f"at most {model.context}, the model's context"
        )
    prompt = np.random.default_rng(0).integers(0, model.spec.vocab_size, prompt_tokens)
    times: list[tuple[float, float]] = []
    with steps("bench", "runs", progress) as advance:
        for run in range(repetitions + 1):
            times.append(_run(model, prompt, new_tokens))
            advance(run + 1, repetitions + 1)
    prefill, decode = zip(*times[1:], strict=True)
    return BenchReport(
        model=checked(path),
        architecture=model.spec.architecture,
        weight_bytes=model.nbytes,
        threads=model.threads,
        compute=compute,
        simd=simd.current(),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repetitions=repetitions,
        load_s=load_seconds,
        prefill_tokens_per_s=prompt_tokens / statistics.median(prefill),
        prefill_spread=_spread(prefill),
        decode_tokens_per_s=new_tokens / statistics.median(decode),
        decode_spread=_spread(decode),
    )


def _run(model: models.Model, prompt: np.ndarray, new_tokens: int) -> tuple[float, float]:
    """Seconds for the prompt and for the new tokens."""
    model.truncate(0)
    last = np.zeros(len(prompt), bool)
    last[-1] = True
    length = len(prompt) + new_tokens
    start = time.perf_counter()
    logits = model.forward(
        prompt, np.arange(len(prompt)), np.zeros(len(prompt), np.int32), wants_logits=last, expected_length=length
    )
    read = time.perf_counter()
    for position in range(len(prompt), length):
        logits = model.forward([logits[0].argmax()], [position], [0])
    end = time.perf_counter()
    if not np.isfinite(logits).all():
        raise nonfinite.error("the model's logits are not finite", model.weights)
    return read - start, end - read


def _spread(seconds: tuple[float, ...]) -> float:
    return (max(seconds) - min(seconds)) / statistics.median(seconds)
