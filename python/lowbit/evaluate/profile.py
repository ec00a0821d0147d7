"""Profile of a step of a model: time, bytes and operations of each stage and layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowbit.base import arguments, simd
from lowbit.base.errors import InputError
from lowbit.base.paths import AnyPath, checked
from lowbit.base.progress import ProgressLike, steps
from lowbit.engine.model import Model, load
from lowbit.evaluate.limits import read_rate
from lowbit.evaluate.work import stage_work

__all__ = ["ProfileReport", "StageReport", "profile"]

#: No time is shorter, so that a coarse clock causes no division by zero.
CLOCK_STEP = 1e-9


@dataclass(frozen=True)
class StageReport:
    """A stage of a step, in one layer or in all.

    stage: embedding, query_key_value (with the norm of its input, and rounding), heads (norm and rotation of queries
        and keys, storing keys and values), attention, attention_output, gate_up, down, logits.
    layer: None for the embedding, the logits and sums over the layers.
    seconds: median over the repetitions. share: of the step's.
    bytes_read, multiply_adds: what the stage reads and computes at least (`lowbit.evaluate.work.stage_work`).
    read_bytes_per_s: what is in a cache of the processor can be read faster than memory.
    """

    stage: str
    layer: int | None
    seconds: float
    share: float
    bytes_read: int
    multiply_adds: int
    read_bytes_per_s: float
    multiply_adds_per_s: float


@dataclass(frozen=True)
class ProfileReport:
    """The result of `profile`.

    step: the whole step; its stage is "step".
    stages: each stage, summed over the layers, in the order of the step.
    layers: each stage of each layer, in the order of the step.
    read_limit_bytes_per_s: what this machine reads, measured (`lowbit.machine_limits`).
    """

    model: str
    architecture: str
    threads: int
    compute: str
    simd: str
    tokens: int
    depth: int
    repetitions: int
    read_limit_bytes_per_s: float
    step: StageReport
    stages: list[StageReport]
    layers: list[StageReport]


def profile(
    model: Model | AnyPath,
    *,
    tokens: int = 1,
    depth: int = 0,
    repetitions: int = 10,
    threads: int | None = None,
    compute: str = "auto",
    mmap: bool = True,
    like: str | None = None,
    progress: ProgressLike = None,
) -> ProfileReport:
    """Measures the time of each stage and layer of a step on this machine, with its bytes and operations.

    model: a Model, or a GGUF file, checkpoint folder or hub id.
    tokens: tokens of the step, of one sequence: 1 is a step of decoding, more are a prompt. Ids are random, from a
        fixed seed; the logits of the last are computed.
    depth: tokens of the sequence before these. They are read once, and not timed.
    repetitions: measured steps, after one that is not counted.
    threads, compute, mmap, like: as in `load`, if `model` is not a Model.
    progress: counts steps; see `lowbit.ProgressLike`.

    Returns a ProfileReport. A model computes the same while it is profiled; other calls are not timed. Raises
    InputError if the tokens exceed the model's context, or if the model has an observer; ContextFullError if all its
    sequences are in use; and the errors of `load`.

        for stage in lowbit.profile("model.gguf", depth=1000).stages:
            print(stage.stage, stage.seconds, stage.share)
    """
    tokens = arguments.integer("tokens", tokens, 1)
    depth = arguments.integer("depth", depth, 0)
    repetitions = arguments.integer("repetitions", repetitions, 1)
    mmap = arguments.flag("mmap", mmap)
    if not isinstance(model, Model):
        model = load(model, compute=compute, threads=threads, mmap=mmap, like=like, progress=progress)
    elif (threads, compute, mmap, like) != (None, "auto", True, None):
        raise InputError("profile: threads, compute, mmap and like are those of the Model")
    if depth + tokens > model.context:
        expected = f"at most {model.context}, the model's context"
        raise InputError(f"{depth} + {tokens} tokens:", expected=expected)
    ids = np.random.default_rng(0).integers(0, model.spec.vocab_size, depth + tokens)
    work = stage_work(model, tokens, start=depth)
    rows = {stage: i for i, stage in enumerate(work)}
    seconds = np.zeros((len(rows), repetitions + 1))
    with steps("profile", "steps", progress) as advance:
        for run in range(repetitions + 1):
            for stage, layer, time in model.stage_times(ids, start=depth):
                seconds[rows[stage, layer], run] += time
            advance(run + 1, repetitions + 1)
    seconds = seconds[:, 1:]
    whole = float(np.median(seconds.sum(0)))

    def report(name: str, layer: int | None, parts: list[tuple[str, int | None]]) -> StageReport:
        time = max(float(np.median(seconds[[rows[part] for part in parts]].sum(0))), CLOCK_STEP)
        bytes_read = sum(work[part].bytes_read for part in parts)
        products = sum(work[part].multiply_adds for part in parts)
        return StageReport(
            stage=name,
            layer=layer,
            seconds=time,
            share=time / max(whole, CLOCK_STEP),
            bytes_read=bytes_read,
            multiply_adds=products,
            read_bytes_per_s=bytes_read / time,
            multiply_adds_per_s=products / time,
        )

    names = dict.fromkeys(name for name, _ in work)
    return ProfileReport(
        model=checked(model.path),
        architecture=model.spec.architecture,
        threads=model.threads,
        compute=model.compute,
        simd=simd.current(),
        tokens=tokens,
        depth=depth,
        repetitions=repetitions,
        read_limit_bytes_per_s=read_rate(model.threads),
        step=report("step", None, [*work]),
        stages=[report(name, None, [part for part in work if part[0] == name]) for name in names],
        layers=[report(name, layer, [(name, layer)]) for name, layer in work if layer is not None],
    )
