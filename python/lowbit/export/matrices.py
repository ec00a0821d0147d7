"""Chooses the form of each matrix of an exported network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lowbit.base.dtypes import FLOATS
from lowbit.base.errors import UnsupportedError
from lowbit.base.threads import num_threads
from lowbit.conversion.pipeline import Job
from lowbit.conversion.plan import requantizing
from lowbit.export.options import INTEGERS, ExportOptions
from lowbit.export.source import Source
from lowbit.export.weights import BlocksMatrix, FloatMatrix, Matrix, WithFloatRows
from lowbit.hf.checkpoint import mapped
from lowbit.onnx.block_matrix import BlockMatrix
from lowbit.onnx.blocks import block_tensors
from lowbit.onnx.gguf_blocks import from_gguf
from lowbit.quantization.assignment import EMBEDDING, OUTPUT
from lowbit.quantization.imatrix import Imatrix
from lowbit.tensors.source import TensorSource

#: The orders of codes of `BlockFormat`, by layout of `BlockMatrix`.
_ORDERS = {"MatMulNBits": "rows", "DequantizeLinear": "columns"}
_USUAL = "INT4"


class Chosen(NamedTuple):
    """A matrix and the name of its format."""

    matrix: Matrix
    format: str


def make_matrices(
    source: Source, options: ExportOptions, importances: Imatrix | None, dry_run: bool, notes: list[str]
) -> dict[str, Chosen]:
    """The matrices of a network by GGUF name. Raises InputError for options without effect."""
    format = options.format or ("COPY" if source.is_gguf else _USUAL)
    options.check_format(format, importances is not None)
    if format in FLOATS:
        return {name: Chosen(_floats(floats, format), format) for name, floats in source.matrices.items()}
    if format in INTEGERS:
        make = partial(_in_integers, source, options, format, importances, notes)
    else:
        jobs = source.jobs(format, options, importances, dry_run, notes)
        make = partial(_in_gguf_blocks, source, options, jobs)
    return {name: make(floats) for name, floats in source.matrices.items()}


def _floats(source: TensorSource, format: str) -> FloatMatrix:
    return FloatMatrix(source, FLOATS[format], as_rows=source.name in (EMBEDDING, OUTPUT))


# --- int4, int8


def _in_integers(
    source: Source,
    options: ExportOptions,
    format: str,
    importances: Imatrix | None,
    notes: list[str],
    floats: TensorSource,
) -> Chosen:
    name, stored = floats.name, source.formats[floats.name]
    if stored not in FLOATS and not options.allow_requantize:
        raise requantizing(name, stored)
    errors: list[Callable[[], float]] = []
    importance = importances.importance(name, floats.shape[1]) if importances else None
    form = partial(_integers, floats, options, INTEGERS[format], importance, errors)
    matrix = _blocks(floats, form, options, lambda: errors[-1]())
    inputs = floats.shape[1]
    if name != EMBEDDING or inputs % options.block_size == 0:
        return Chosen(matrix, format)
    rows = stored if stored in FLOATS else "F32"
    tied = "" if OUTPUT in source.matrices else ", beside the blocks of the output matrix"
    notes.append(
        f"{name}: rows of {inputs} weights are no multiple of block_size {options.block_size}: they are stored as "
        f"{rows.lower()}{tied}"
    )
    return Chosen(WithFloatRows(matrix, _floats(floats, rows)), format)


def _integers(
    source: TensorSource,
    options: ExportOptions,
    bits: int,
    importance: npt.NDArray[np.float32] | None,
    errors: list[Callable[[], float]],
    layout: str,
    name: str,
) -> BlockMatrix:
    """The lazy tensors of a matrix; a function that returns their error is added to `errors`."""
    shape = (source.shape[0], source.shape[1])
    format = replace(options.block_format(bits), layout=_ORDERS[layout])
    array: Callable[[], npt.NDArray[Any]] = partial(mapped, source)
    made = block_tensors(name, array, shape, options.dtype, format, options.threads, importance)
    errors.append(made.error)
    return BlockMatrix(name, shape, layout, bits, format.block_size, made.codes, made.scales, made.zero_points)


def _blocks(
    source: TensorSource,
    form: Callable[[str, str], BlockMatrix],
    options: ExportOptions,
    measure: Callable[[], float | None],
) -> BlocksMatrix:
    matrix = BlocksMatrix(source, form, options.layout == "standard", options.accuracy_level, measure)
    needed = matrix.columns.opsets[""] if options.layout == "standard" else 0
    if needed > options.opset:
        raise UnsupportedError(
            f"tensor {source.name}: blocks of {matrix.columns.bits} bits in DequantizeLinear:",
            tensor=source.name,
            expected=f"opset {needed} or more (--opset)",
            found=options.opset,
        )
    return matrix


# --- formats of GGUF


@dataclass(frozen=True)
class EncodedRows:
    """A tensor as a GGUF file would have it: rows of bytes for blocks, else floats. shape: in weights."""

    job: Job
    shape: tuple[int, ...]
    threads: int

    @property
    def name(self) -> str:
        """Its GGUF name."""
        return self.job.source.name

    @property
    def format(self) -> str:
        """Its format."""
        return self.job.format

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the rows."""
        return FLOATS.get(self.format, np.dtype(np.uint8))

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows start..stop, read and encoded."""
        encoded = self.job.encode(self.job.source.rows(start, stop), start, self.threads)
        raw: npt.NDArray[Any] = np.ascontiguousarray(encoded).view(np.uint8).reshape(stop - start, -1)
        return raw.view(self.dtype)


def _in_gguf_blocks(source: Source, options: ExportOptions, jobs: Mapping[str, Job], floats: TensorSource) -> Chosen:
    rows = EncodedRows(jobs[floats.name], floats.shape, num_threads(options.threads))
    if rows.format in FLOATS:
        return Chosen(_floats(rows, rows.format), rows.format)
    if options.dtype != np.float32:
        raise UnsupportedError(
            f"activations {options.activations}: tensor {rows.name} as {rows.format} has scales in float32: use "
            "activations float32, or format int4 or int8",
            tensor=rows.name,
        )

    def form(layout: str, name: str) -> BlockMatrix:
        return from_gguf(name, rows, layout=layout, threads=options.threads).matrix

    return Chosen(_blocks(floats, form, options, lambda: None), rows.format)
