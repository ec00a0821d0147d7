"""Speed of a model on this machine: prefill (reading a prompt) and decode (generating tokens)."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np

from lowbit.base import arguments, simd
from lowbit.base.errors import InputError
from lowbit.base.paths import AnyPath, checked, is_file
from lowbit.base.progress import ProgressLike, steps
from lowbit.engine import model as models
from lowbit.evaluate.limits import read_rate
from lowbit.evaluate.llama_bench import LlamaBench, LlamaBenchReport, comparison, program_of, spread
from lowbit.evaluate.work import step_bytes
from lowbit.tensors import nonfinite

__all__ = ["BenchReport", "Runs", "bench"]


@dataclass(frozen=True)
class BenchReport:
    """The result of `bench`. Speeds are medians over the repetitions, in tokens per second.

    A spread is (slowest - fastest) / median of the times.

    load_s: seconds to load the model.
    decode_tokens_per_s: sum of the `batch` sequences.
    step_bytes: bytes that a step of decoding reads at least, weights and caches, mean over the steps
        (`lowbit.evaluate.work.step_bytes`).
    read_bytes_per_s: step_bytes times the steps per second.
    read_limit_bytes_per_s: what this machine reads, measured (`lowbit.machine_limits`); read_share: the part used.
    """

    model: str
    architecture: str
    weight_bytes: int
    threads: int
    compute: str
    simd: str
    prompt_tokens: int
    new_tokens: int
    depth: int
    batch: int
    repetitions: int
    load_s: float
    prefill_tokens_per_s: float
    prefill_spread: float
    decode_tokens_per_s: float
    decode_spread: float
    step_bytes: int
    read_bytes_per_s: float
    read_limit_bytes_per_s: float
    read_share: float
    compared: LlamaBenchReport | None


def bench(
    path: AnyPath,
    *,
    prompt_tokens: int = 512,
    new_tokens: int = 128,
    depth: int | None = None,
    batch: int = 1,
    repetitions: int = 3,
    threads: int | None = None,
    compute: str = "auto",
    mmap: bool = True,
    like: str | None = None,
    compare: str | None = None,
    progress: ProgressLike = None,
) -> BenchReport:
    """Measures the speed of prefill and decode on this machine.

    prompt_tokens: tokens of the prompt, random ids from a fixed seed.
    new_tokens: tokens that each sequence generates; each step feeds the most likely token back.
    depth: tokens of a sequence before these; None: prompt_tokens. They are read once, and not timed.
    batch: sequences that generate together.
    repetitions: measured runs, after one that is not counted.
    threads, compute, mmap, like: as in `load`.
    compare: "llama-bench=PATH" runs this program of llama.cpp on the same GGUF file in turn.
    progress: counts runs; see `lowbit.ProgressLike`.

    Returns a BenchReport. Raises InputError if the tokens exceed the model's context, the logits are not finite, or
    what is to be compared cannot be: batch above 1, or a checkpoint; FileError, FormatError or Error if llama-bench
    fails; and the errors of `load`.

        lowbit.bench("model.gguf", new_tokens=64, depth=0).decode_tokens_per_s
    """
    prompt_tokens = arguments.integer("prompt_tokens", prompt_tokens, 1)
    new_tokens = arguments.integer("new_tokens", new_tokens, 1)
    depth = prompt_tokens if depth is None else arguments.integer("depth", depth, 0)
    batch = arguments.integer("batch", batch, 1, models.MOST_SEQUENCES - 1)
    repetitions = arguments.integer("repetitions", repetitions, 1)
    program = None if compare is None else _program(arguments.text("compare", compare), path, batch)
    start = time.perf_counter()
    model = models.load(
        path, compute=compute, threads=threads, max_sequences=batch + 1, mmap=mmap, like=like, progress=progress
    )
    load_seconds = time.perf_counter() - start
    for text, tokens in ((f"{prompt_tokens}", prompt_tokens), (f"{depth} + {new_tokens}", depth + new_tokens)):
        if tokens > model.context:
            raise InputError(f"{text} tokens:", expected=f"at most {model.context}, the model's context")
    runs = Runs(model, batch)
    peer = None if program is None else LlamaBench(program, path, model.threads)
    rounds: list[list[float]] = []
    with steps("bench", "runs", progress) as advance:
        for run in range(repetitions + 1):
            times = [runs.prefill(prompt_tokens)]
            times += [peer.prefill(prompt_tokens)] if peer else []
            times += [runs.decode(new_tokens, depth)]
            times += [peer.decode(new_tokens, depth)] if peer else []
            rounds.append(times)
            advance(run + 1, repetitions + 1)
    columns = list(zip(*rounds[1:], strict=True))
    prefill, decode = columns[0], columns[2 if peer else 1]
    step_time = statistics.median(decode) / new_tokens
    lengths = range(depth + 1, depth + new_tokens + 1)
    bytes_read = round(statistics.mean(step_bytes(model, [length] * batch) for length in lengths))
    limit = read_rate(model.threads)
    found = None
    if peer:
        found = comparison(peer.program, [prompt_tokens, new_tokens], [prefill, decode], [columns[1], columns[3]])
    return BenchReport(
        model=checked(path),
        architecture=model.spec.architecture,
        weight_bytes=model.nbytes,
        threads=model.threads,
        compute=compute,
        simd=simd.current(),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        depth=depth,
        batch=batch,
        repetitions=repetitions,
        load_s=load_seconds,
        prefill_tokens_per_s=prompt_tokens / statistics.median(prefill),
        prefill_spread=spread(prefill),
        decode_tokens_per_s=batch / step_time,
        decode_spread=spread(decode),
        step_bytes=bytes_read,
        read_bytes_per_s=bytes_read / step_time,
        read_limit_bytes_per_s=limit,
        read_share=bytes_read / step_time / limit,
        compared=found,
    )


def _program(compare: str, path: AnyPath, batch: int) -> str:
    """The path of llama-bench. Raises InputError if it cannot do the same."""
    program = program_of(compare)
    if not is_file(checked(path)):
        raise InputError("llama-bench reads GGUF files only; lowbit convert makes one", path=checked(path))
    if batch > 1:
        raise InputError("llama-bench decodes one sequence; batch:", expected="1", found=str(batch))
    return program


class Runs:
    """Timed runs of a model that is loaded for one sequence more than `batch`. They use `Model.forward`."""

    def __init__(self, model: models.Model, batch: int = 1) -> None:
        self._model, self._batch = model, batch
        self._ids = np.random.default_rng(0)
        self._depth = 0

    def prefill(self, tokens: int) -> float:
        """Seconds for a prompt of so many tokens, in one call, up to the logits of the last."""
        ids = self._random(tokens)
        self._model.truncate(self._batch)
        start = time.perf_counter()
        logits = self._read(self._batch, ids, tokens)
        seconds = time.perf_counter() - start
        self._check(logits)
        return seconds

    def decode(self, new_tokens: int, depth: int) -> float:
        """Seconds for `new_tokens` steps, each with one token of every sequence, after `depth` tokens."""
        length = depth + new_tokens
        for sequence in range(self._batch):
            if self._depth != depth:
                self._model.truncate(sequence)
                if depth:
                    self._read(sequence, self._random(depth), length)
            self._model.truncate(sequence, depth)
        self._depth = depth
        tokens = self._random(self._batch)
        logits = np.empty((self._batch, self._model.spec.vocab_size), np.float32)
        start = time.perf_counter()
        for position in range(depth, length):
            positions = np.full(self._batch, position)
            self._model.forward(tokens, positions, np.arange(self._batch), expected_length=length, out=logits)
            tokens = logits.argmax(-1)
        seconds = time.perf_counter() - start
        self._check(logits)
        return seconds

    def _random(self, num: int) -> np.ndarray:
        return self._ids.integers(0, self._model.spec.vocab_size, num)

    def _read(self, sequence: int, ids: np.ndarray, expected_length: int) -> np.ndarray:
        positions = np.arange(len(ids))
        return self._model.forward(
            ids,
            positions,
            np.full(len(ids), sequence),
            wants_logits=positions == len(ids) - 1,
            expected_length=expected_length,
        )

    def _check(self, logits: np.ndarray) -> None:
        if not np.isfinite(logits).all():
            raise nonfinite.error("the model's logits are not finite", self._model.weights)
