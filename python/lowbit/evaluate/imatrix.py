"""Importance matrices (`lowbit.imatrix`): `collect` computes one from a model and a text.

`lowbit.quantization.imatrix` reads and merges them, and computes the importances for conversions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lowbit.base import arguments
from lowbit.base.errors import InputError
from lowbit.base.progress import ProgressLike, steps
from lowbit.base.quoting import shown
from lowbit.evaluate.measures import chunks_of
from lowbit.quantization.imatrix import CHUNK_SIZE, Coverage, Entry, Imatrix, Sums, load_imatrix, merge, read
from lowbit.tensors import nonfinite

if TYPE_CHECKING:
    from lowbit.engine.model import Model

__all__ = ["Coverage", "Entry", "Imatrix", "Sums", "collect", "load_imatrix", "merge", "read"]


def collect(
    model: Model,
    text: str,
    *,
    context: int = CHUNK_SIZE,
    from_chunk: int = 0,
    chunks: int | None = None,
    process_output: bool = False,
    parse_special: bool = False,
    dataset: str | None = None,
    progress: ProgressLike = None,
) -> Sums:
    """Runs `model` on `text` and sums the squares of the inputs of each matrix in its layers.

    The text is cut into chunks as in llama-imatrix: the rest at the end is dropped, and if the tokenizer starts every
    text with a token (BOS), that token replaces the first of each chunk.

    context: tokens per chunk, at least 1. It may exceed the model's context, as in `evaluate.compare`.
    from_chunk: number of chunks to skip at the start.
    chunks: most chunks to read after them; None: all.
    process_output: also collect for output.weight.
    parse_special: read special tokens in the text as tokens, not as text.
    dataset: the text's name in the file.
    progress: counts chunks; see `lowbit.ProgressLike`.

    The result depends on the precision of the model; load it with compute="f32" for exact figures. The function uses
    `Model.observe`, and resets it at the end.

    Returns Sums, for `imatrix=` of a conversion or `Sums.save`. Raises InputError for a wrong argument, a text that is
    too short for one chunk, or sums that are not finite.

        sums = lowbit.imatrix.collect(lowbit.load("model-bf16.gguf"), text, chunks=100)
        lowbit.convert("org/model", "model.gguf", "IQ3_M", imatrix=sums)
    """
    context = arguments.integer("context", context, 1)
    from_chunk = arguments.integer("from_chunk", from_chunk, 0)
    chunks = None if chunks is None else arguments.integer("chunks", chunks, 1)
    process_output = arguments.flag("process_output", process_output)
    dataset = None if dataset is None else arguments.text("dataset", dataset)

    cut = chunks_of(model.tokenizer, text, context, parse_special=parse_special)[from_chunk:][:chunks]
    if len(cut) == 0:
        raise InputError(f"text: no chunk of {shown(context)} tokens after the first {shown(from_chunk)}")
    model.make_room(context)
    sums: dict[str, npt.NDArray[np.float64]] = {}
    counts: dict[str, int] = {}

    def add(name: str, x: npt.NDArray[np.float32]) -> None:
        if not name.startswith("blk.") and not (process_output and name == "output.weight"):
            return
        # x is a copy, so it is squared in place. A chunk is summed in float32, all chunks in float64.
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.square(x, out=x).sum(axis=0)
        if not np.isfinite(total).all():
            text = f"imatrix: inputs of {name} are not finite after {counts.get(name, 0)} tokens"
            failed = nonfinite.error(text, model.weights)
            failed.about(tensor=name)
            raise failed
        sums[name] = sums[name] + total if name in sums else total.astype(np.float64)
        counts[name] = counts.get(name, 0) + len(x)

    model.observe(add)
    try:
        with steps("imatrix", "chunks", progress) as advance:
            for done, chunk in enumerate(cut, 1):
                model.logits(chunk, start=0 if process_output else context - 1)
                advance(done, len(cut))
    finally:
        model.observe(None)
    entries = {n: Entry(total.astype(np.float32)[None], np.array([counts[n]], np.int64)) for n, total in sums.items()}
    return Sums(entries, [] if dataset is None else [dataset], len(cut), context)
