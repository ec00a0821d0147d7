"""`to_gguf`: the weights of ONNX operators become packed weights of GGUF formats with the same values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from lowbit import _core
from lowbit.base import arguments
from lowbit.base.dtypes import FLOAT_NAMES, FLOATS
from lowbit.base.errors import Error, FormatError, InputError, UnsupportedError
from lowbit.base.quoting import quoted
from lowbit.base.threads import num_threads
from lowbit.onnx.block_matrix import BlockMatrix
from lowbit.onnx.block_rows import Floats, block_rows
from lowbit.onnx.block_targets import BY_FORMAT, TARGETS, Target, packed
from lowbit.onnx.fidelity import EXACT, Fidelity
from lowbit.onnx.open_rows import OpenRows
from lowbit.tensors.formats import AnyFormat, find_format
from lowbit.tensors.qtensor import QTensor
from lowbit.tensors.quantize import quantize

#: Of the size of a value's terms, if its scale and minimum are rounded to float16: half a unit in the last place, and
#: the roundings of the two float32 values.
_HALF_BOUND = 2.0**-11 + 2.0**-22
#: TQ1_0 holds what TQ2_0 holds, in fewer bytes, but products with it are slower.
_ON_REQUEST = ("TQ1_0",)
_FALLBACK = "Q8_0"


@dataclass(frozen=True, eq=False)
class PackedBlocks:
    """The result of `to_gguf`.

    weights: (outputs, inputs). fidelity: how the decoded weights differ from the operator's values. bytes_before,
    bytes_after: of the operator's tensors and of the packed rows.
    """

    weights: QTensor
    fidelity: Fidelity
    bytes_before: int
    bytes_after: int


def to_gguf(
    matrix: BlockMatrix, *, format: AnyFormat | None = None, exact: bool = False, threads: int | None = None
) -> PackedBlocks:
    """The weights of an operator in a format of GGUF, without fitting scales again where that is possible.

    format: None for the smallest that holds the values exactly, else the smallest that holds the integers, with scales
    rounded to float16, else Q8_0 with scales fitted anew; F16 or F32 for rows that are no whole blocks. What came from
    a K format gets its super-block scales back. exact: refuse what is not exact; F32 holds all values.

    Raises UnsupportedError for what `exact` refuses, InputError for rows that are no whole blocks of `format`.
    """
    if not isinstance(matrix, BlockMatrix):
        raise arguments.wrong("matrix", "a BlockMatrix", matrix)
    held = held_blocks(matrix, format=format, exact=arguments.flag("exact", exact), threads=threads)
    weights = QTensor(held.rows(0, matrix.shape[0]), held.format)
    return PackedBlocks(weights, held.fidelity, matrix.nbytes, weights.nbytes)


@dataclass(frozen=True, eq=False)
class HeldBlocks:
    """The format of GGUF that holds the weights of an operator: a source of packed rows. fidelity: as in PackedBlocks.

    target: None if the values are encoded anew. rounded: whether scales are rounded to float16.
    """

    matrix: BlockMatrix
    format: str
    fidelity: Fidelity
    target: Target | None
    rounded: bool
    threads: int

    @property
    def name(self) -> str:
        """The name of the codes."""
        return self.matrix.name

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """uint8."""
        return np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, row bytes)."""
        outputs, inputs = self.matrix.shape
        kind = find_format(self.format)
        return outputs, inputs // kind.block_size * kind.block_bytes

    def rows(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Packed rows."""
        return np.concatenate([*self._pieces(start, stop)])

    def _pieces(self, start: int, stop: int) -> Iterator[npt.NDArray[np.uint8]]:
        if self.target is None:
            for values in _values(self.matrix, start, stop):
                yield _encoded(self.matrix, values, self.format, self.threads).data
            return
        for rows in block_rows(self.matrix, start, stop):
            if (data := packed(self.target, rows, self.rounded)) is None:
                raise FormatError(f"tensor {quoted(self.name)} changed while it was read", tensor=self.name)
            yield data


def held_blocks(
    matrix: BlockMatrix, *, format: AnyFormat | None = None, exact: bool = False, threads: int | None = None
) -> HeldBlocks:
    """What `to_gguf` would return, with rows that are packed on demand."""
    if not math.prod(matrix.shape):
        raise InputError(f"tensor {quoted(matrix.name)}:", tensor=matrix.name, expected="weights", found="none")
    name = None if format is None else find_format(format).name
    return _Search(matrix, name, num_threads(threads)).run(exact)


def _values(matrix: BlockMatrix, start: int, stop: int) -> Iterator[Floats]:
    """The values of rows, some at a time."""
    if matrix.scales is not None:
        yield from (rows.decoded() for rows in block_rows(matrix, start, stop))
    else:
        yield OpenRows(matrix.codes, matrix.shape[0], by_columns=False).part(start, stop).astype(np.float32)


def _encoded(matrix: BlockMatrix, values: Floats, format: str, threads: int) -> QTensor:
    try:
        return quantize(values, format, allow_nonfinite=format in FLOATS, threads=threads)
    except Error as error:
        error.about(f"tensor {quoted(matrix.name)}: ", tensor=matrix.name)
        raise


class _Search:
    """Tries formats."""

    def __init__(self, matrix: BlockMatrix, format: str | None, threads: int) -> None:
        self._matrix = matrix
        self._format = format
        self._threads = threads

    def run(self, exact: bool) -> HeldBlocks:
        """The first format that holds the values."""
        targets = self._targets()
        if self._matrix.scales is not None:
            for rounded in (False,) if exact else (False, True):
                for target in targets:
                    fidelity = self._tried(target, rounded)
                    if fidelity is not None and fidelity.label != "lossy":
                        return HeldBlocks(self._matrix, target.format, fidelity, target, rounded, self._threads)
        format, fidelity = self._encoding()
        if exact and fidelity.label != "exact":
            name, wanted = self._matrix.name, self._format or "a packed format"
            text = f"tensor {quoted(name)}: {wanted} does not hold its {self._matrix.bits}-bit blocks:"
            rest = "; they are rounded without exact (--exact)"
            raise UnsupportedError(text, tensor=name, expected="exact values", found="rounded ones", rest=rest)
        return HeldBlocks(self._matrix, format, fidelity, None, False, self._threads)

    def _targets(self) -> list[Target]:
        inputs = self._matrix.shape[1]
        if self._format is not None:
            target = BY_FORMAT.get(self._format)
            if inputs % find_format(self._format).block_size:
                size = find_format(self._format).block_size
                text = f"tensor {quoted(self._matrix.name)}: {self._format}:"
                expected, found = f"rows of whole blocks of {size}", f"{inputs} inputs"
                raise InputError(text, tensor=self._matrix.name, expected=expected, found=found)
            return [target] if target else []
        fitting = [target for target in TARGETS if inputs % find_format(target.format).block_size == 0]
        return [target for target in fitting if target.format not in _ON_REQUEST]

    def _tried(self, target: Target, rounded: bool) -> Fidelity | None:
        """Codes and scales as they are, or with rounded scales; None if the format does not hold them."""
        difference = _Difference()
        for rows in block_rows(self._matrix, 0, self._matrix.shape[0]):
            data = packed(target, rows, rounded)
            if data is None:
                return None
            found = QTensor(data, target.format)
            difference.add(rows.decoded(), found.dequantize(threads=self._threads), partial(self._terms, found))
            if difference.any and not rounded:
                return None
        return difference.fidelity(_HALF_BOUND)

    def _terms(self, weights: QTensor) -> Floats:
        """|scale * level| + |minimum| of each weight."""
        outputs, inputs = weights.shape
        levels = np.empty((outputs, inputs), np.int8)
        scales, minima = (np.empty((outputs, inputs // 16), np.float32) for _ in range(2))
        _core.unpack_rows(weights.data, weights.format, levels, scales, minima, self._threads)
        blocks = levels.reshape(outputs, -1, 16).astype(np.float32)
        with np.errstate(all="ignore"):
            terms = np.abs(blocks * scales[..., None]) + np.abs(minima)[..., None]
        return np.asarray(terms.reshape(outputs, inputs))

    def _encoding(self) -> tuple[str, Fidelity]:
        """A float format for the values, or one with scales that are fitted anew."""
        matrix, format = self._matrix, self._format
        if format is None and matrix.scales is None:
            format = FLOAT_NAMES[matrix.codes.dtype]
        if format is None and matrix.shape[1] % find_format(_FALLBACK).block_size == 0:
            format = _FALLBACK
        for each in ("F16", "F32") if format is None else (format,):
            difference = _Difference()
            for values in _values(matrix, 0, matrix.shape[0]):
                decoded = _encoded(matrix, values, each, self._threads).dequantize(threads=self._threads)
                difference.add(values, decoded, partial(np.abs, decoded))
            fidelity = difference.fidelity(_FLOAT_BOUNDS.get(each))
            if fidelity.label == "exact":
                break
        return each, fidelity


#: Of rounding to a float format.
_FLOAT_BOUNDS = {"F16": 2.0**-11, "BF16": 2.0**-8}


class _Difference:
    """The differences of values, added up some rows at a time."""

    def __init__(self) -> None:
        self.any = False
        self._ratio = self._largest = self._squares = self._total = 0.0

    def add(self, values: Floats, found: Floats, terms: Callable[[], Floats]) -> None:
        """terms: returns the sizes that a bound is relative to."""
        same = values == found
        if not same.all():
            same |= np.isnan(values) & np.isnan(found)
        if not same.all():
            self.any = True
            with np.errstate(all="ignore"):
                difference = np.where(same, 0.0, np.abs(values.astype(np.float64) - found))
                ratios = difference / terms()
            self._ratio = max(self._ratio, float(np.nan_to_num(ratios[~same], nan=np.inf).max()))
            self._largest = max(self._largest, float(np.nan_to_num(difference, nan=np.inf).max()))
            self._squares += float(np.square(difference).sum())
        self._total += float(np.square(values, dtype=np.float64).sum())

    def fidelity(self, bound: float | None) -> Fidelity:
        """The label: every value was compared."""
        if not self.any:
            return EXACT
        error = math.sqrt(self._squares / self._total) if self._total else math.inf
        if bound is not None and self._ratio <= bound:
            return Fidelity("bounded", bound, error, self._largest)
        return Fidelity("lossy", None, error, self._largest)
