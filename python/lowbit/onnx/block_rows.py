"""Rows of a matrix in blocks, as integers and floats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from lowbit.onnx.block_matrix import BlockMatrix
from lowbit.onnx.blocks import UNSIGNED
from lowbit.onnx.dtypes import unpack
from lowbit.onnx.tensor import Tensor

Floats = npt.NDArray[np.float32]

_SIGNED = (np.dtype(ml_dtypes.int2), np.dtype(ml_dtypes.int4), np.dtype(np.int8))
#: Weights at a time.
_AT_ONCE = 1 << 20


class BlockRows(NamedTuple):
    """Rows of a matrix: integers (rows, inputs), and float32 (rows, blocks)."""

    codes: npt.NDArray[Any]
    scales: Floats
    zero_points: Floats
    offsets: Floats
    block_size: int

    def decoded(self) -> Floats:
        """The weights, float32 (rows, inputs), rounded as the operators round."""
        rows, inputs = self.codes.shape
        blocks = self.scales.shape[1]
        padded = np.zeros((rows, blocks * self.block_size), np.float32)
        padded[:, :inputs] = self.codes
        values = padded.reshape(rows, blocks, -1)
        with np.errstate(all="ignore"):  # scales that are not finite stay so
            values -= self.zero_points[..., None]
            values *= self.scales[..., None]
            if self.offsets.any():
                values += self.offsets[..., None]
        return padded[:, :inputs]


class OpenBlocks:
    """A matrix in blocks whose tensors were read."""

    def __init__(self, matrix: BlockMatrix) -> None:
        assert matrix.scales is not None
        self.matrix = matrix
        self._codes = self._array(matrix.codes)
        self._scales = self._array(matrix.scales)
        self._zeros = None if matrix.zero_points is None else self._array(matrix.zero_points)
        self._offsets = None if matrix.offsets is None else self._array(matrix.offsets)

    def pieces(self) -> Iterator[BlockRows]:
        """All rows, some at a time."""
        outputs, inputs = self.matrix.shape
        step = max(1, _AT_ONCE // max(1, inputs))
        return (self._rows(start, min(outputs, start + step)) for start in range(0, outputs, step))

    def _array(self, tensor: Tensor) -> npt.NDArray[Any]:
        """A tensor as (outputs, ...)."""
        array = tensor.array
        return array.T if self.matrix.layout == "DequantizeLinear" else array.reshape(self.matrix.shape[0], -1)

    def _rows(self, start: int, stop: int) -> BlockRows:
        matrix, part = self.matrix, slice(start, stop)
        codes = self._codes[part]
        shape = (stop - start, matrix.num_blocks)
        zeros: npt.NDArray[Any] = np.zeros(shape, np.float32) if self._zeros is None else self._zeros[part]
        if matrix.layout == "MatMulNBits":
            codes = _spread(codes, matrix.bits)[:, : matrix.shape[1]]
            if self._zeros is None:
                zeros += 1 << matrix.bits - 1
            elif zeros.dtype == np.uint8:
                zeros = _spread(zeros, matrix.bits)[:, : matrix.num_blocks]
        elif codes.dtype not in (np.int8, np.uint8):
            codes = codes.astype(np.int8 if codes.dtype in _SIGNED else np.uint8)
        offsets = np.zeros(shape, np.float32) if self._offsets is None else self._offsets[part]
        scales, zeros, offsets = (np.asarray(each, np.float32) for each in (self._scales[part], zeros, offsets))
        return BlockRows(codes, scales, zeros, offsets, matrix.block_size)


def _spread(packed: npt.NDArray[Any], bits: int) -> npt.NDArray[Any]:
    """Codes of bytes, from the lowest bits on, along the last axis."""
    shape = (*packed.shape[:-1], packed.shape[-1] * 8 // bits)
    return unpack(np.ascontiguousarray(packed).reshape(-1), np.dtype(UNSIGNED[bits]), shape).view(np.uint8)
