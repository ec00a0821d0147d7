"""Rows of a matrix in blocks, as integers and floats."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from lowbit.onnx.block_matrix import BlockMatrix
from lowbit.onnx.blocks import UNSIGNED
from lowbit.onnx.dtypes import unpack
from lowbit.onnx.open_rows import OpenRows
from lowbit.tensors.source import row_ranges

Numbers = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

_SIGNED = (np.dtype(ml_dtypes.int2), np.dtype(ml_dtypes.int4), np.dtype(np.int8))
#: Weights at a time.
_AT_ONCE = 1 << 20
#: The first weights, which show that most formats do not hold the others.
_FIRST = 1 << 14


class BlockRows(NamedTuple):
    """Rows of a matrix: integers (rows, inputs), and float32 (rows, blocks)."""

    codes: Numbers
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


def block_rows(matrix: BlockMatrix, start: int, stop: int) -> Iterator[BlockRows]:
    """The rows start..stop of a matrix with scales, some at a time. Pages of a mapped file leave memory again."""
    by_columns = matrix.layout == "DequantizeLinear"
    opened = [None if tensor is None else OpenRows(tensor, matrix.shape[0], by_columns) for tensor in
              (matrix.codes, matrix.scales, matrix.zero_points, matrix.offsets)]  # fmt: skip
    begin = min(stop, start + max(1, _FIRST // max(1, matrix.shape[1])))
    ranges = (row_ranges(start, begin, matrix.shape[1], _AT_ONCE), row_ranges(begin, stop, matrix.shape[1], _AT_ONCE))
    for first, last in chain(*ranges):
        yield _rows(matrix, *(None if rows is None else rows.part(first, last) for rows in opened))
        for rows in filter(None, opened):
            rows.release(first, last)


def _rows(
    matrix: BlockMatrix, codes: Numbers | None, scales: Numbers | None, zeros: Numbers | None, offsets: Numbers | None
) -> BlockRows:
    assert codes is not None
    shape = (len(codes), matrix.num_blocks)
    if matrix.layout == "MatMulNBits":
        codes = _spread(codes, matrix.bits)[:, : matrix.shape[1]]
        if zeros is None:
            zeros = np.full(shape, 1 << matrix.bits - 1, np.float32)
        elif zeros.dtype == np.uint8:
            zeros = _spread(zeros, matrix.bits)[:, : matrix.num_blocks]
    elif codes.dtype not in (np.int8, np.uint8):
        codes = codes.astype(np.int8 if codes.dtype in _SIGNED else np.uint8)
    scales, zeros, offsets = (
        np.zeros(shape, np.float32) if each is None else np.asarray(each, np.float32)
        for each in (scales, zeros, offsets)
    )
    return BlockRows(codes, scales, zeros, offsets, matrix.block_size)


def _spread(packed: Numbers, bits: int) -> Numbers:
    """Codes of bytes, from the lowest bits on, along the last axis."""
    shape = (*packed.shape[:-1], packed.shape[-1] * 8 // bits)
    return unpack(np.ascontiguousarray(packed).reshape(-1), np.dtype(UNSIGNED[bits]), shape).view(np.uint8)
