"""`from_gguf`: packed weights of GGUF formats become tensors of ONNX operators with the same values.

A block of every format is levels times a scale, minus a minimum in some formats. Operators hold levels of 2, 4 or 8
bits with a zero point and a float32 scale for each block, so the levels are packed again; nothing is rounded.

A minimum is seldom a multiple of the scale. The zero point takes the nearest multiple, and the rest becomes an offset:
y = x @ W^T gets a second, small product, of the sums of the blocks of x and the offsets. The rest is a float32 without
rounding; where it is not, the zero point is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lowbit import _core
from lowbit.base import arguments
from lowbit.base.dtypes import FLOATS
from lowbit.base.errors import InputError, UnsupportedError
from lowbit.base.quoting import quoted
from lowbit.base.threads import num_threads
from lowbit.onnx.block_matrix import LAYOUTS, BlockMatrix
from lowbit.onnx.blocks import SIGNED, UNSIGNED, multiplies_right, packed_rows
from lowbit.onnx.dtypes import Bytes, pack
from lowbit.onnx.fidelity import EXACT, Fidelity
from lowbit.onnx.parts import Parts
from lowbit.onnx.tensor import Tensor
from lowbit.tensors.formats import find_format
from lowbit.tensors.qtensor import QTensor

Floats = npt.NDArray[np.float32]

#: Weights unpacked at a time.
_AT_ONCE = 1 << 20
#: Weights that share a scale in what the core unpacks.
_GROUP = 16


class PackedRows(Protocol):
    """Packed rows of a matrix that are made on demand, for weights that are not in memory."""

    @property
    def format(self) -> str:
        """The format's name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(outputs, inputs)."""

    def rows(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """The packed bytes of some rows, uint8 (stop - start, row bytes)."""


class _Held(NamedTuple):
    """How operators hold a format.

    step: the levels of a block are equal modulo it; the rest becomes an offset. negated: levels go from -1 to 2, where
    signed integers of 2 bits go from -2 to 1, so levels and scales change their sign.
    """

    bits: int
    block_size: int
    has_minimum: bool = False
    step: int = 1
    negated: bool = False


#: The fewest bits for which ONNX Runtime has integer kernels with this block: 2 bits need 32 to 128 weights.
_HELD = {
    "Q1_0": _Held(2, 128),
    "Q2_0": _Held(2, 64, negated=True),
    "TQ1_0": _Held(2, 128),
    "TQ2_0": _Held(2, 128, negated=True),
    "IQ1_S": _Held(2, 32, step=8),
    "Q4_0": _Held(4, 32),
    "Q4_1": _Held(4, 32, has_minimum=True),
    "Q2_K": _Held(4, 16, has_minimum=True),
    "Q3_K": _Held(4, 16),
    "Q4_K": _Held(4, 32, has_minimum=True),
    "IQ3_S": _Held(4, 32, step=2),
    "Q5_0": _Held(8, 32),
    "Q5_1": _Held(8, 32, has_minimum=True),
    "Q5_K": _Held(8, 32, has_minimum=True),
    "Q6_K": _Held(8, 16),
    "Q8_0": _Held(8, 32),
    "Q8_1": _Held(8, 32),
    "Q8_K": _Held(8, 256),
    "IQ1_M": _Held(8, 16),
    "IQ2_XXS": _Held(8, 32),
    "IQ2_XS": _Held(8, 16),
    "IQ2_S": _Held(8, 16),
    "IQ3_XXS": _Held(8, 32),
    "IQ4_NL": _Held(8, 32),
    "IQ4_XS": _Held(8, 32),
    "MXFP4": _Held(8, 32),
    "NVFP4": _Held(8, 16),
}


@dataclass(frozen=True, eq=False)
class GgufBlocks:
    """The result of `from_gguf`.

    matrix: the tensors and the operator's nodes. format: of GGUF. fidelity: how its values differ from the decoded
    weights. bytes_before, bytes_after: of the packed rows and of the tensors. note: what the form costs in speed.
    """

    matrix: BlockMatrix
    format: str
    fidelity: Fidelity
    bytes_before: int
    bytes_after: int
    note: str


def from_gguf(
    name: str,
    weights: QTensor | PackedRows,
    *,
    layout: str = "MatMulNBits",
    float_zero_points: bool = False,
    exact: bool = False,
    threads: int | None = None,
) -> GgufBlocks:
    """A packed matrix (outputs, inputs) as tensors of ONNX operators. They are made when the first of them is read.

    layout: "MatMulNBits" (com.microsoft; also GatherBlockQuantized), "DequantizeLinear" (ai.onnx, for products) or
    "Gather" (ai.onnx, for rows of an embedding). float_zero_points: minima become float32 zero points of MatMulNBits
    instead of offsets: fewer bytes and one operator, but the values are rounded once more, and ONNX Runtime expands the
    weight in each call. exact: refuse what is not exact. Every format is exact unless float_zero_points is given.

    Raises InputError for weights that are no matrix and for options that do not exist, UnsupportedError for what
    `exact` refuses.
    """
    name, exact = arguments.text("name", name), arguments.flag("exact", exact)
    if layout not in LAYOUTS:
        raise InputError("layout:", expected=f"one of {', '.join(LAYOUTS)}", found=layout)
    if not isinstance(weights, QTensor) and not hasattr(weights, "rows"):
        raise arguments.wrong("weights", "a QTensor, or an object with its rows", weights)
    shape = tuple(weights.shape)
    if len(shape) != 2 or 0 in shape:
        raise InputError(f"tensor {quoted(name)}:", tensor=name, expected="a matrix", found=f"shape {list(shape)}")
    format = find_format(weights.format)
    outputs, inputs = shape
    before = outputs * (inputs // format.block_size) * format.block_bytes
    if format.name in FLOATS:
        return _floats(name, weights, (outputs, inputs), layout, before)
    held = _HELD[format.name]
    if float_zero_points and not (layout == "MatMulNBits" and held.has_minimum and held.bits < 8):
        text = f"tensor {quoted(name)}: {format.name} as {layout} has no float zero points:"
        expected = "MatMulNBits, and a format of 2 or 4 bits with a minimum"
        raise UnsupportedError(text, tensor=name, expected=expected, found=format.name)
    fidelity = EXACT
    if float_zero_points:
        fidelity = Fidelity("bounded", bound=2.0**-22)
        if exact:
            text = f"tensor {quoted(name)}: {format.name} with float zero points:"
            raise UnsupportedError(text, tensor=name, expected="an exact form", found="values rounded once more")
    matrix = _Packing(name, weights, layout, held, float_zero_points, num_threads(threads)).matrix()
    return GgufBlocks(matrix, format.name, fidelity, before, matrix.nbytes, _note(matrix))


def _note(matrix: BlockMatrix) -> str:
    if matrix.zero_points is not None and matrix.zero_points.dtype == np.float32:
        return "float zero points: ONNX Runtime expands the weight in each call, 60 to 300 times slower for one token"
    if matrix.offsets is not None:
        return f"a second product with 1/{matrix.block_size} of the weights, in float32"
    return ""


def _floats(
    name: str, weights: QTensor | PackedRows, shape: tuple[int, int], layout: str, num_bytes: int
) -> GgufBlocks:
    dtype = FLOATS[weights.format]
    tensor = Tensor(name, dtype, shape, lambda: _rows(weights, 0, shape[0]).reshape(-1))
    note = "" if dtype == np.float32 else "runtimes convert the weight to float32 when they load it"
    matrix = BlockMatrix(name, shape, layout, 8 * dtype.itemsize, 1, tensor)
    return GgufBlocks(matrix, weights.format, EXACT, num_bytes, num_bytes, note)


def _rows(weights: QTensor | PackedRows, start: int, stop: int) -> Bytes:
    data = weights.data[start:stop] if isinstance(weights, QTensor) else weights.rows(start, stop)
    return np.ascontiguousarray(data)


class _Packing:
    """Makes the tensors of a matrix, some rows at a time."""

    def __init__(
        self, name: str, weights: QTensor | PackedRows, layout: str, held: _Held, float_zero_points: bool, threads: int
    ) -> None:
        self._name = name
        self._weights = weights
        self._outputs, self._inputs = weights.shape
        self._layout = layout
        self._held = held
        self._threads = threads
        in_bytes = layout == "Gather"
        self._bits = 8 if in_bytes else held.bits
        if layout == "DequantizeLinear" and not multiplies_right(self._bits, self._outputs):
            self._bits = 4
        self._zero_points = "" if in_bytes or not held.has_minimum else "float" if float_zero_points else "integer"
        self._step = 1 if in_bytes else held.step
        self._has_offsets = self._step > 1 or (held.has_minimum and self._zero_points != "float")
        #: The dtype of codes and integer zero points outside MatMulNBits.
        self._integer = np.dtype((UNSIGNED if self._zero_points else SIGNED)[self._bits])

    def matrix(self) -> BlockMatrix:
        """The tensors, which are made when the first of them is read."""
        size, bits, outputs = self._held.block_size, self._bits, self._outputs
        blocks = self._inputs // size
        in_columns = self._layout == "DequantizeLinear"
        parts = Parts(self._make)

        def tensor(suffix: str, index: int, dtype: npt.DTypeLike, *shape: int) -> Tensor:
            return Tensor(f"{self._name}_{suffix}", np.dtype(dtype), shape, parts.part(index))

        block_shape = (blocks, outputs) if in_columns else (outputs, blocks)
        if self._layout == "MatMulNBits":
            codes = tensor("codes", 0, np.uint8, outputs, blocks, size * bits // 8)
        else:
            shape = (self._inputs, outputs) if in_columns else (outputs, self._inputs)
            codes = tensor("codes", 0, self._integer, *shape)
        zeros = offsets = None
        if self._zero_points == "float":
            zeros = tensor("zeros", 2, np.float32, *block_shape)
        elif self._zero_points and in_columns:
            zeros = tensor("zeros", 2, self._integer, *block_shape)
        elif self._zero_points:
            zeros = tensor("zeros", 2, np.uint8, outputs, -(-blocks * bits // 8))
        if self._has_offsets:
            offsets = tensor("offsets", 2 + bool(self._zero_points), np.float32, *block_shape)
        scales = tensor("scales", 1, np.float32, *block_shape)
        shape = (outputs, self._inputs)
        return BlockMatrix(self._name, shape, self._layout, bits, size, codes, scales, zeros, offsets)

    def _make(self) -> list[Bytes]:
        """The bytes of codes, scales, zero points and offsets, without those that the matrix does not have."""
        outputs, inputs, bits = self._outputs, self._inputs, self._bits
        in_columns = self._layout == "DequantizeLinear"
        in_rows = self._layout == "MatMulNBits"
        codes = np.empty((inputs, outputs) if in_columns else (outputs, inputs * bits // 8), np.uint8)
        blocks = (outputs, inputs // self._held.block_size)
        scales, zeros, offsets = (np.zeros(blocks, np.float32) for _ in range(3))
        step = max(1, _AT_ONCE // inputs)
        for start in range(0, outputs, step):
            part = slice(start, min(outputs, start + step))
            levels, scales[part], zeros[part], offsets[part] = self._split(part)
            if in_rows and not self._zero_points:
                levels += np.int8(-128) if bits == 8 else np.int8(1 << bits - 1)  # wraps for 8 bits
            if in_columns:
                codes[:, part] = levels.view(np.uint8).T
            else:
                codes[part] = pack(levels.view(UNSIGNED[bits])).reshape(len(levels), -1)
        parts = [pack(codes.view(UNSIGNED[bits])) if in_columns else codes.reshape(-1)]
        turned = [each.T if in_columns else each for each in (scales, zeros, offsets)]
        parts.append(pack(turned[0]))
        if self._zero_points == "float":
            parts.append(pack(turned[1]))
        elif self._zero_points:
            integers = turned[1].astype(np.uint8)
            parts.append(pack(integers.view(self._integer)) if in_columns else packed_rows(integers, bits))
        if self._has_offsets:
            parts.append(pack(turned[2]))
        return parts

    def _split(self, rows: slice) -> tuple[npt.NDArray[np.int8], Floats, Floats, Floats]:
        """Levels (rows, inputs), scales, zero points and offsets (rows, blocks) of some rows."""
        levels, scales, minima = self._unpacked(rows)
        offsets = np.zeros_like(scales)
        zeros = offsets
        if self._held.negated:
            np.negative(levels, out=levels)
            scales = -scales
        with np.errstate(all="ignore"):  # scales that are not finite stay so
            if self._step > 1:
                offsets = _take_rest(levels.reshape(*scales.shape, -1), self._step) * scales
                scales = scales * np.float32(self._step)
            if self._zero_points == "float":
                levels.reshape(*scales.shape, -1)[scales == 0] = 0
                scales, zeros = _float_zero_points(scales, minima)
            elif self._zero_points:
                zeros, offsets = _split_minima(scales, minima, self._bits)
            elif self._held.has_minimum:
                offsets = 0 - minima
        return levels, scales, zeros, offsets

    def _unpacked(self, rows: slice) -> tuple[npt.NDArray[np.int8], Floats, Floats]:
        data = _rows(self._weights, rows.start, rows.stop)
        levels = np.empty((len(data), self._inputs), np.int8)
        groups = (len(data), self._inputs // _GROUP)
        scales, minima = np.empty(groups, np.float32), np.empty(groups, np.float32)
        _core.unpack_rows(data, self._weights.format, levels, scales, minima, self._threads)
        step = self._held.block_size // _GROUP
        return levels, scales[:, ::step], minima[:, ::step]


def _take_rest(levels: npt.NDArray[np.int8], step: int) -> npt.NDArray[np.int8]:
    """Divides the levels of each block (last axis) by step, in place. Returns the rest, in (-step / 2, step / 2]."""
    half = step // 2
    rest = (half - (half - levels[..., 0]) % step).astype(np.int8)
    levels -= rest[..., None]
    levels //= np.int8(step)
    return rest


def _split_minima(scales: Floats, minima: Floats, bits: int) -> tuple[Floats, Floats]:
    """Zero points and offsets for minima: scale * zero point - minimum, in float32 without rounding.

    Zero points have 7 bits at most: scales have 17, so that the product with a level is a float32.
    """
    zeros = np.clip(np.rint(minima / scales), 0, min((1 << bits) - 1, 127))
    product = zeros * scales.astype(np.float64)
    wide = minima.astype(np.float64)
    difference = product - wide
    offsets = difference.astype(np.float32)
    exact = (offsets == difference) & (product - difference == wide) & (difference + wide == product)
    return np.where(exact, zeros, np.float32(0)), np.where(exact, offsets, 0 - minima)


def _float_zero_points(scales: Floats, minima: Floats) -> tuple[Floats, Floats]:
    """Scales and zero points. A block without a scale, whose levels must be 0, gets its minimum as the scale."""
    zeros = minima / scales
    no_scale = scales == 0
    return np.where(no_scale, 0 - minima, scales), np.where(no_scale, np.float32(-1), zeros)
