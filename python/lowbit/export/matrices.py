"""Chooses the form of each matrix of an exported network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lowbit import _core
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
    """A matrix and the name of its format. is_exact: whether it holds the source's values. costs: in speed, if any."""

    matrix: Matrix
    format: str
    is_exact: bool
    costs: Sequence[str] = ()


def make_matrices(
    source: Source, options: ExportOptions, importances: Imatrix | None, dry_run: bool, notes: list[str]
) -> dict[str, Chosen]:
    """The matrices of a network by GGUF name.

    Raises InputError for options without effect, UnsupportedError for values that `options.exact` refuses.
    """
    format = options.format or ("COPY" if source.is_gguf else _USUAL)
    options.check_format(format, importances is not None)
    make: Callable[[TensorSource], Chosen]
    if format in FLOATS:
        make = partial(_in_floats, source, format)
    elif format in INTEGERS:
        make = partial(_in_integers, source, options, format, importances, notes)
    else:
        jobs = source.jobs(format, options, importances, dry_run, notes)
        make = partial(_in_gguf_blocks, source, options, jobs)
    made = {name: make(floats) for name, floats in source.matrices.items()}
    if options.exact:
        for name, chosen in made.items():
            if not chosen.is_exact:
                stored, format = source.formats[name], chosen.format.lower()
                expected = f"format f32 or {stored.lower()}" if stored in FLOATS else "format f32, or none"
                text = f"tensor {name}: {stored} as {format} is not exact:"
                raise UnsupportedError(text, tensor=name, expected=expected, found=format)
    return made


def _in_floats(source: Source, format: str, floats: TensorSource) -> Chosen:
    return Chosen(_floats(floats, format), format, format in ("F32", source.formats[floats.name]))


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
        return Chosen(matrix, format, False)
    rows = stored if stored in FLOATS else "F32"
    tied = "" if OUTPUT in source.matrices else ", beside the blocks of the output matrix"
    notes.append(
        f"{name}: rows of {inputs} weights are no multiple of block_size {options.block_size}: they are stored as "
        f"{rows.lower()}{tied}"
    )
    return Chosen(WithFloatRows(matrix, _floats(floats, rows)), format, False)


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
    #: First row of a part -> squared error and squared weight; the last time that it was encoded counts.
    _sums: dict[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def error(self) -> float | None:
        """The 2-norm of the difference to the source, relative to the source's; None for what is copied, or not yet
        encoded."""
        lost, total = (sum(sums) for sums in zip(*self._sums.values(), strict=True)) if self._sums else (0.0, 0.0)
        return (lost / total) ** 0.5 if total else 0.0 if self._sums else None

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
        floats = self.job.source.rows(start, stop)
        encoded = self.job.encode(floats, start, self.threads)
        if self.job.is_encoded:
            sums = _core.compare_rows(floats.astype(np.float32, copy=False), encoded, self.format, self.threads)
            self._sums[start] = float(sums[:, 0].sum()), float(sums[:, 1].sum())
        raw: npt.NDArray[Any] = np.ascontiguousarray(encoded).view(np.uint8).reshape(stop - start, -1)
        return raw.view(self.dtype)


def _in_gguf_blocks(source: Source, options: ExportOptions, jobs: Mapping[str, Job], floats: TensorSource) -> Chosen:
    rows = EncodedRows(jobs[floats.name], floats.shape, num_threads(options.threads))
    stored = source.formats[floats.name]
    if rows.format in FLOATS:
        return Chosen(_floats(rows, rows.format), rows.format, rows.format in ("F32", stored))
    if options.dtype != np.float32:
        raise UnsupportedError(
            f"activations {options.activations}: tensor {rows.name} as {rows.format} has scales in float32: use "
            "activations float32, or format int4 or int8",
            tensor=rows.name,
        )
    costs: list[str] = []

    def form(layout: str, name: str) -> BlockMatrix:
        made = from_gguf(name, rows, layout=layout, threads=options.threads)
        if made.note and made.note not in costs:
            costs.append(made.note)
        return made.matrix

    matrix = _blocks(floats, form, options, lambda: rows.error)
    return Chosen(matrix, rows.format, not rows.job.is_encoded, costs)
