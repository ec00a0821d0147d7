"""Importance matrices (`lowbit.imatrix`): `collect` computes one from a model and a text.

`lowbit.quantization.imatrix` reads and merges them, and has the form that conversions use.
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
    """Lets `model` read `text` and adds up the squares of what each matrix of its layers is multiplied with.

    The text is cut into chunks of `context` tokens as llama-imatrix does: what is left over at the end is dropped, and
    where the tokenizer begins every text with a token (BOS), that token takes the place of the first of each chunk.
    from_chunk: so many chunks are left out at the beginning; chunks: at most so many are read after them.
    process_output: also for output.weight, where it is a matrix of its own. With `parse_special`, special tokens
    written out in the text count as such. dataset: the text's name in the file. `progress` counts chunks.
    `Model.observe` is in use meanwhile, and afterwards nobody's.

    The model computes with the precision it was loaded with: compute="f32" gives exact figures.

    A chunk may be longer than the model's context, as in `evaluate.compare`.

    Raises InputError for a `context` below 1, for a text too short for one chunk, and where the sums are no longer
    finite.
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
        # Squares in place, because x is a copy. Sums of a chunk are in float32, those of all chunks in float64.
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
