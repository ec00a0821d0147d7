"""Rows of a tensor that is mapped, some at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit._core import MappedFile
from lowbit.onnx.dtypes import element_type, unpack
from lowbit.onnx.tensor import Tensor


class OpenRows:
    """The rows of a matrix in a tensor whose elements are read now, if no file has them as they are.

    outputs: the number of rows. by_columns: the tensor is (..., outputs), else (outputs, ...).
    """

    def __init__(self, tensor: Tensor, outputs: int, by_columns: bool) -> None:
        self._dtype = tensor.dtype
        self._raw = tensor.raw
        self._by_columns = by_columns
        self._length = outputs if by_columns else tensor.size // max(1, outputs)
        self._bits = element_type(tensor.dtype).bits
        # Elements that share bytes with those of another row are unpacked at once.
        self._array = None if self._length * self._bits % 8 == 0 else tensor.array.reshape(-1, self._length)

    def part(self, start: int, stop: int) -> npt.NDArray[Any]:
        """The rows start..stop: (stop - start, elements)."""
        if self._array is not None:
            return self._array[:, start:stop].T if self._by_columns else self._array[start:stop]
        table = self._raw.reshape(-1, self._length * self._bits // 8)
        if not self._by_columns:
            rows = table[start:stop]
            return unpack(rows.reshape(-1), self._dtype, (len(rows), self._length))
        first, last = start * self._bits // 8, -(-stop * self._bits // 8)
        columns = np.ascontiguousarray(table[:, first:last])
        before = start - first * 8 // self._bits
        shape = (len(columns), columns.shape[1] * 8 // self._bits)
        elements: npt.NDArray[Any] = unpack(columns.reshape(-1), self._dtype, shape).T
        return elements[before : before + stop - start]

    def release(self, start: int, stop: int) -> None:
        """Takes the mapped pages of these rows out of memory; by columns, those of all."""
        row = self._length * self._bits // 8
        MappedFile.release(self._raw if self._by_columns else self._raw[start * row : stop * row])
