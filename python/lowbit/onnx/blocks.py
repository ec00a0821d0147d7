"""Weights in blocks: small integers with a scale, and a zero point, for each block (src/kernels/blockwise.h)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

from lowbit import _core
from lowbit.base.errors import Error
from lowbit.base.threads import num_threads
from lowbit.onnx.dtypes import Bytes, pack
from lowbit.onnx.parts import Parts
from lowbit.onnx.tensor import Tensor

BITS = (2, 4, 8)
#: Weights of which columns of codes are made at a time.
_AT_ONCE = 1 << 24
#: Codes, scales, zero points, and the sums of squared errors and weights.
_Quantized: TypeAlias = "tuple[Bytes, npt.NDArray[np.float32], npt.NDArray[np.uint8], float, float]"
#: The opset and the IR version with integers of so many bits in blocks of DequantizeLinear.
STANDARD = {8: (21, 10), 4: (21, 10), 2: (25, 13)}

SIGNED = {2: ml_dtypes.int2, 4: ml_dtypes.int4, 8: np.int8}
UNSIGNED = {2: ml_dtypes.uint2, 4: ml_dtypes.uint4, 8: np.uint8}


def multiplies_right(bits: int, outputs: int) -> bool:
    """Whether ONNX Runtime multiplies right with a DequantizeLinear of [inputs, outputs].

    Version 1.32 mixes up 2-bit codes when it fuses the two, unless each row of outputs fills whole bytes
    (findings/onnxruntime-two-bit-columns.sh).
    """
    return bits != 2 or outputs % 4 == 0


@dataclass(frozen=True)
class BlockFormat:
    """How a matrix is stored.

    bits: 2, 4 or 8. block_size: weights along the input axis with one scale. symmetric: no zero points.
    method: how scales are found, "search", "round" or "hqq".
    layout: "rows" for the operators of com.microsoft: each output's codes one after the other, padded to whole blocks;
        "columns" for DequantizeLinear: [inputs, outputs], integers with a sign if symmetric.
    """

    bits: int
    block_size: int
    symmetric: bool
    method: str
    layout: str

    @property
    def zero_point(self) -> int:
        """The zero point of symmetric codes."""
        return 1 << (self.bits - 1)

    def num_blocks(self, inputs: int) -> int:
        """Blocks of each output."""
        return -(-inputs // self.block_size)

    def zero_row(self, inputs: int) -> int:
        """The bytes of an output's zero points with layout "rows": each output starts a byte."""
        return -(-self.num_blocks(inputs) * self.bits // 8)

    @property
    def integer(self) -> np.dtype[Any]:
        """The dtype of codes and zero points with layout "columns"."""
        dtype: np.dtype[Any] = np.dtype((SIGNED if self.symmetric else UNSIGNED)[self.bits])
        return dtype

    def nbytes(self, outputs: int, inputs: int, scale_bytes: int) -> int:
        """The bytes of codes, scales and zero points of a matrix."""
        blocks = self.num_blocks(inputs)
        padded = blocks * self.block_size if self.layout == "rows" else inputs
        if self.symmetric:
            zeros = 0
        elif self.layout == "rows":
            zeros = outputs * self.zero_row(inputs)
        else:
            zeros = -(-outputs * blocks * self.bits // 8)
        return -(-outputs * padded * self.bits // 8) + outputs * blocks * scale_bytes + zeros


@dataclass(frozen=True)
class BlockTensors:
    """The initializers of a quantized matrix, which share one `error`."""

    codes: Tensor
    scales: Tensor
    zero_points: Tensor | None
    error: Callable[[], float]

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        return sum(tensor.nbytes for tensor in (self.codes, self.scales, self.zero_points) if tensor)


def block_tensors(
    name: str,
    matrix: Callable[[], npt.NDArray[Any]],
    shape: tuple[int, int],
    dtype: np.dtype[Any],
    format: BlockFormat,
    threads: int | None,
    importance: npt.NDArray[np.float32] | None = None,
    factor: float = 1.0,
) -> BlockTensors:
    """The tensors of a matrix of `shape` (outputs, inputs) and `dtype`, which `matrix` returns as a view.

    The matrix is quantized when the first of them is read or `error` is called. factor: of all scales.
    """
    work = _Work(name, matrix, dtype, format, threads, importance, factor)
    outputs, inputs = shape
    blocks = format.num_blocks(inputs)
    in_rows = format.layout == "rows"
    if in_rows:
        row_bytes = format.block_size * format.bits // 8
        codes = Tensor(f"{name}_codes", np.dtype(np.uint8), (outputs, blocks, row_bytes), work.parts.part(0))
        zeros = Tensor(f"{name}_zeros", np.dtype(np.uint8), (outputs, format.zero_row(inputs)), work.parts.part(2))
    else:
        codes = Tensor(f"{name}_codes", format.integer, (inputs, outputs), work.parts.part(0))
        zeros = Tensor(f"{name}_zeros", format.integer, (blocks, outputs), work.parts.part(2))
    scale_shape = (outputs, blocks) if in_rows else (blocks, outputs)
    scales = Tensor(f"{name}_scales", dtype, scale_shape, work.parts.part(1))
    return BlockTensors(codes, scales, None if format.symmetric else zeros, work.error)


@dataclass(eq=False)
class _Work:
    """Quantizes a matrix: the bytes of codes, scales and zero points, and the error."""

    name: str
    matrix: Callable[[], npt.NDArray[Any]]
    dtype: np.dtype[Any]
    format: BlockFormat
    threads: int | None
    importance: npt.NDArray[np.float32] | None
    factor: float

    def __post_init__(self) -> None:
        self.parts = Parts(self._run)
        self._error: float | None = None

    def error(self) -> float:
        """The 2-norm of the difference, relative to that of the weights."""
        if self._error is None:
            self.parts.make()
        return self._error or 0.0

    def _run(self) -> list[Bytes]:
        format, matrix = self.format, self.matrix()
        if format.layout == "columns" and matrix.flags.c_contiguous and len(matrix) * format.bits % 8 == 0:
            codes, scales, zeros, squared_error, squared_weight = self._in_pieces(matrix)
        else:
            codes, scales, zeros, squared_error, squared_weight = self._quantized(matrix)
        self._error = (squared_error / squared_weight) ** 0.5 if squared_weight else 0.0
        parts = [codes, pack((scales * np.float32(self.factor)).astype(self.dtype))]
        if not format.symmetric:
            parts.append(packed_rows(zeros, format.bits) if format.layout == "rows" else _packed(zeros, format))
        return parts

    def _in_pieces(self, matrix: npt.NDArray[Any]) -> _Quantized:
        """Codes in columns, made of some rows at a time, so that rows in a mapped file leave memory again."""
        (outputs, inputs), bits = matrix.shape, self.format.bits
        codes = np.empty((inputs, outputs * bits // 8), np.uint8)
        step = max(8, _AT_ONCE // max(1, inputs) // 8 * 8)  # whole bytes
        others = []
        for first in range(0, outputs, step):
            part = matrix[first : first + step]
            columns, *other = self._quantized(part)
            codes[:, first * bits // 8 : (first + len(part)) * bits // 8] = columns.reshape(inputs, -1)
            others.append(other)
        scales, zeros, squared_error, squared_weight = zip(*others, strict=True)
        return (
            codes.reshape(-1),
            np.concatenate(scales, axis=1),
            np.concatenate(zeros, axis=1),
            sum(squared_error),
            sum(squared_weight),
        )

    def _quantized(self, matrix: npt.NDArray[Any]) -> _Quantized:
        format = self.format
        try:
            return _core.quantize_blockwise(
                matrix,
                bits=format.bits,
                block_size=format.block_size,
                symmetric=format.symmetric,
                scale_type=self.dtype.name,
                method=format.method,
                layout=format.layout,
                is_signed=format.layout == "columns" and format.symmetric,
                importance=self.importance,
                threads=num_threads(self.threads),
            )
        except Error as error:
            error.about(f"tensor {self.name}: ", tensor=self.name)
            raise


def packed_rows(zeros: npt.NDArray[np.uint8], bits: int) -> Bytes:
    """Zero points from the lowest bits on, with whole bytes for each row."""
    per_byte = 8 // bits
    padded = np.pad(zeros, ((0, 0), (0, -zeros.shape[1] % per_byte)))
    return pack(padded.view(UNSIGNED[bits]))


def _packed(zeros: npt.NDArray[np.uint8], format: BlockFormat) -> Bytes:
    return pack(zeros.view(format.integer))
