"""Weights in blocks: small integers with a scale, and a zero point, for each block (src/kernels/blockwise.h)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from lowbit import _core
from lowbit.base.errors import Error
from lowbit.base.threads import num_threads
from lowbit.onnx.dtypes import Bytes, pack
from lowbit.onnx.tensor import Tensor

BITS = (2, 4, 8)
#: Results of fewer bytes are kept: the writer asks for small tensors more than once.
_KEPT = 1 << 20

_SIGNED = {2: ml_dtypes.int2, 4: ml_dtypes.int4, 8: np.int8}
_UNSIGNED = {2: ml_dtypes.uint2, 4: ml_dtypes.uint4, 8: np.uint8}


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
        dtype: np.dtype[Any] = np.dtype((_SIGNED if self.symmetric else _UNSIGNED)[self.bits])
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
        codes = Tensor(f"{name}_codes", np.dtype(np.uint8), (outputs, blocks, row_bytes), _Part(work, 0))
        zeros = Tensor(f"{name}_zeros", np.dtype(np.uint8), (outputs, format.zero_row(inputs)), _Part(work, 2))
    else:
        codes = Tensor(f"{name}_codes", format.integer, (inputs, outputs), _Part(work, 0))
        zeros = Tensor(f"{name}_zeros", format.integer, (blocks, outputs), _Part(work, 2))
    scale_shape = (outputs, blocks) if in_rows else (blocks, outputs)
    scales = Tensor(f"{name}_scales", dtype, scale_shape, _Part(work, 1))
    return BlockTensors(codes, scales, None if format.symmetric else zeros, work.error)


@dataclass(eq=False)
class _Work:
    """Quantizes a matrix once, and forgets the bytes when each part was read, if they are many."""

    name: str
    matrix: Callable[[], npt.NDArray[Any]]
    dtype: np.dtype[Any]
    format: BlockFormat
    threads: int | None
    importance: npt.NDArray[np.float32] | None
    factor: float

    def __post_init__(self) -> None:
        self._parts: list[Bytes] = []
        self._unread: set[int] = set()
        self._error: float | None = None
        self._lock = threading.Lock()

    def part(self, index: int) -> Bytes:
        """The bytes of codes, scales or zero points."""
        with self._lock:
            if not self._parts:
                self._run()
            part = self._parts[index]
            self._unread.discard(index)
            if not self._unread and sum(each.nbytes for each in self._parts) >= _KEPT:
                self._parts = []
            return part

    def error(self) -> float:
        """The 2-norm of the difference, relative to that of the weights."""
        with self._lock:
            if self._error is None:
                self._run()
                if sum(part.nbytes for part in self._parts) >= _KEPT:
                    self._parts = []
            return self._error or 0.0

    def _run(self) -> None:
        format = self.format
        try:
            codes, scales, zeros, squared_error, squared_weight = _core.quantize_blockwise(
                self.matrix(),
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
        self._error = (squared_error / squared_weight) ** 0.5 if squared_weight else 0.0
        self._parts = [codes, pack((scales * np.float32(self.factor)).astype(self.dtype))]
        self._unread = {0, 1}
        if not format.symmetric:
            self._parts.append(_packed_rows(zeros, format.bits) if format.layout == "rows" else _packed(zeros, format))
            self._unread.add(2)


def _packed_rows(zeros: npt.NDArray[np.uint8], bits: int) -> Bytes:
    """Zero points from the lowest bits on, with whole bytes for each row."""
    per_byte = 8 // bits
    padded = np.pad(zeros, ((0, 0), (0, -zeros.shape[1] % per_byte)))
    return pack(padded.view(_UNSIGNED[bits]))


def _packed(zeros: npt.NDArray[np.uint8], format: BlockFormat) -> Bytes:
    return pack(zeros.view(format.integer))


@dataclass(frozen=True, eq=False)
class _Part:
    work: _Work
    index: int

    def __call__(self) -> Bytes:
        return self.work.part(self.index)
