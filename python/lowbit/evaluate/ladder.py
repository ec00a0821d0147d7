"""The ladder: one model in formats from 8 bits down to 1, with size, loss and speed of each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from lowbit.base import arguments
from lowbit.base.errors import InputError
from lowbit.base.log import without_notes
from lowbit.base.paths import AnyPath, checked, is_file
from lowbit.base.progress import Advance, Progress, ProgressLike, steps
from lowbit.base.quoting import shown
from lowbit.conversion.convert import convert, quantize_file
from lowbit.conversion.plan import Report
from lowbit.engine.model import Model, load
from lowbit.evaluate import measures
from lowbit.evaluate.bench import bench
from lowbit.evaluate.imatrix import Imatrix, Sums, collect, load_imatrix
from lowbit.evaluate.inspect import inspect
from lowbit.hf.hub import resolve
from lowbit.quantization.recipes import find_mix

__all__ = ["RUNGS", "Ladder", "Rung", "ladder"]

#: A mix for each common step, by nominal bits per weight.
RUNGS = (
    "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "IQ3_M", "IQ3_XXS", "Q2_K", "IQ2_M", "TQ2_0", "IQ2_XXS",
    "IQ1_M", "TQ1_0", "IQ1_S",
)  # fmt: skip

PROMPT_TOKENS, NEW_TOKENS = 128, 64


@dataclass(frozen=True)
class Rung:
    """The figures of one format. For the original, the divergence is 0 and same_top is 1."""

    format: str
    file_bytes: int
    bits_per_weight: float
    perplexity: float
    perplexity_error: float
    kl_divergence: float  # mean, in nats, from the original
    kl_divergence_error: float
    same_top: float  # share of tokens with the same most likely prediction as the original
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    fallbacks: int  # tensors whose row length is not a multiple of the format's block size


@dataclass(frozen=True)
class Ladder:
    """The result of `ladder`: figures of the original and of each mix.

    chunks, tokens: measured chunks and predicted tokens. importances: the source of the importances.
    """

    model: str
    context: int
    chunks: int
    tokens: int
    importances: str
    original: Rung
    rungs: list[Rung]


def ladder(
    path: AnyPath,
    text: str | None = None,
    *,
    rungs: Sequence[str] = RUNGS,
    imatrix: AnyPath | Mapping[str, Any] | Imatrix | Sums | None = None,
    context: int = 512,
    chunks: int | None = None,
    threads: int | None = None,
    compute: str = "auto",
    like: str | None = None,
    progress: ProgressLike = None,
) -> Ladder:
    """Quantizes a checkpoint folder, hub id or GGUF file of floats to every mix of `rungs`, and measures each.

    text: text to measure on; None: the test text of the embedded model.
    rungs: names of mixes; by default one for each step from 8 bits to 1.
    imatrix: importances, as in `lowbit.convert`. None: the second half of the text's chunks gives the importances, and
        only the first half is measured.
    context: tokens per chunk, at least 3.
    chunks: most chunks to measure, and most chunks for importances; None: all.
    threads, compute, like: as in `load`.
    progress: counts chunks; see `lowbit.ProgressLike`.

    Files are made one at a time in a temporary folder and removed. Returns a Ladder. Raises InputError for an unknown
    mix, no rungs or a text that is too short, and the errors of `convert`, `quantize_file`, `load` and
    `evaluate.compare`.

        for rung in lowbit.ladder("org/model", rungs=["Q8_0", "Q4_K_M"]).rungs:
            print(rung.format, rung.bits_per_weight, rung.kl_divergence)
    """
    names = [find_mix(name).name for name in arguments.items("rungs", rungs)]
    if not names:
        raise InputError("ladder:", expected="at least one rung")
    if chunks is not None:
        chunks = arguments.integer("chunks", chunks, 1)
    if text is None:
        text = (files("lowbit") / "data" / "bard-valid.txt").read_text(encoding="utf-8")
    model = checked(path)
    file = Path(model) if is_file(model) else resolve(model, progress=progress)[0]
    original = load(file, compute=compute, threads=threads, like=like)
    measured, calibrating = _shares(original, text, context, chunks, given=imatrix is not None)
    original.make_room(context)  # logs its warning once, not for each rung
    with steps("ladder", "chunks", progress) as advance, without_notes():
        counted = _Chunks(calibrating + (len(names) + 1) * measured, advance)
        if imatrix is None:
            origin = f"{calibrating} other chunks of the text"
            imatrix = collect(
                original,
                text,
                context=context,
                from_chunk=measured,
                chunks=calibrating,
                progress=counted.part(),
            )
        else:
            origin = "given" if isinstance(imatrix, (Mapping, Imatrix, Sums)) else checked(imatrix)
        importances = load_imatrix(imatrix)
        meter = _Meter(original, text, context, measured, threads, compute, like, counted)
        make: Callable[..., Report] = quantize_file
        if not is_file(file):
            make = partial(convert, verify=False, provenance=False, like=like)

        report = inspect(file)
        top = meter.rung(next(iter(report.formats)), file, report.file_bytes, report.total.bits_per_weight, None)
        result = []
        # A mapped file may be impossible to remove (Windows); the system then cleans the folder up.
        with tempfile.TemporaryDirectory(prefix="lowbit-", ignore_cleanup_errors=True) as folder:
            for name in names:
                made = Path(folder) / f"{name}.gguf"
                written = make(file, made, name, imatrix=importances, threads=threads)
                result.append(meter.rung(name, made, written.file_bytes, written.bits_per_weight, written.fallbacks))
                with suppress(OSError):
                    made.unlink()
    return Ladder(model, context, measured, meter.tokens, origin, top, result)


def _shares(model: Model, text: str, context: int, most: int | None, given: bool) -> tuple[int, int]:
    """The number of chunks to measure, and of chunks after them for importances."""
    context = arguments.integer("context", context, 3)
    total = len(measures.chunks_of(model.tokenizer, text, context))
    if given:
        return min(total, most or total), 0
    if total < 2:
        expected = "two: one to measure, one for importances"
        raise InputError(f"text: one chunk of {shown(context)} tokens", expected=expected)
    measured = min(total // 2, most or total)
    return measured, min(total - measured, most or total - measured)


class _Chunks:
    """The progress over the chunks of all parts."""

    def __init__(self, total: int, advance: Advance) -> None:
        self.total = total
        self.done = 0
        self.advance = advance

    def part(self) -> Callable[[Progress], None]:
        """The function to pass as `progress` of one part."""
        before = self.done

        def count(step: Progress) -> None:
            self.done = before + step.done
            self.advance(self.done, self.total)

        return count


class _Meter:
    """Measures files, and compares them with the original."""

    def __init__(
        self,
        original: Model,
        text: str,
        context: int,
        chunks: int,
        threads: int | None,
        compute: str,
        like: str | None,
        counted: _Chunks,
    ) -> None:
        self.original = original
        self.text = text
        self.context = context
        self.chunks = chunks
        self.options: dict[str, Any] = {"threads": threads, "compute": compute}
        self.like = like
        self.counted = counted
        self.tokens = 0

    def rung(self, format: str, path: Path, file_bytes: int, bits: float, fallbacks: Sequence[str] | None) -> Rung:
        """The figures of a file. fallbacks: None for the original."""
        models = {"original": self.original}
        if fallbacks is not None:
            models["rung"] = load(path, **self.options)
        figures = measures.compare(
            models,
            self.text,
            context=self.context,
            chunks=self.chunks,
            threads=self.options["threads"],
            progress=self.counted.part(),
        )
        found = list(figures.values())[-1]
        self.tokens = found.perplexity.tokens
        context = self.original.spec.context_length
        like = self.like if fallbacks is None else None
        speed = bench(
            path,
            prompt_tokens=min(PROMPT_TOKENS, context // 2),
            new_tokens=min(NEW_TOKENS, context // 4),
            like=like,
            **self.options,
        )
        return Rung(
            format=format,
            file_bytes=file_bytes,
            bits_per_weight=bits,
            perplexity=found.perplexity.value,
            perplexity_error=found.perplexity.standard_error,
            kl_divergence=found.divergence.mean if found.divergence else 0.0,
            kl_divergence_error=found.divergence.standard_error if found.divergence else 0.0,
            same_top=found.divergence.same_top if found.divergence else 1.0,
            prefill_tokens_per_s=speed.prefill_tokens_per_s,
            decode_tokens_per_s=speed.decode_tokens_per_s,
            fallbacks=len(fallbacks or ()),
        )
