"""TensorSource: a tensor that is read in rows on demand, so that a conversion never holds a whole tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from lowbit import _core
from lowbit.base.files import FileReader


class TensorSource(Protocol):
    """A named tensor whose rows (index of the first axis) can be read piece by piece."""

    @property
    def name(self) -> str:
        """Name of the tensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in NumPy order: the last axis is contiguous."""

    @property
    def dtype(self) -> np.dtype:
        """float32, float16 or ml_dtypes.bfloat16; uint8 for bytes to copy."""

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of the first axis, shape (stop - start, *shape[1:]), C-contiguous."""


class ArraySource:
    """A tensor that is already in memory."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name = name
        self.array = array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in NumPy order."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        """float32, float16 or bfloat16."""
        return self.array.dtype

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of the first axis (a view)."""
        return self.array[start:stop]


class FileRows:
    """A tensor in a file: contiguous rows that start at an offset."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: np.dtype, file: FileReader, offset: int) -> None:
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self.file = file
        self.offset = offset

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of the first axis, freshly read."""
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        row_bytes = math.prod(self.shape[1:]) * out.itemsize
        if out.size:
            self.file.read_into(self.offset + start * row_bytes, out.reshape(-1).view(np.uint8).data)
        return out

    def mapped(self) -> np.ndarray:
        """All rows as a read-only map of the file; read into memory if the elements are not aligned in the file."""
        count = math.prod(self.shape)
        if count == 0 or self.offset % self.dtype.itemsize:
            return self.rows(0, self.shape[0])
        data = self.file.map(self.offset, count * self.dtype.itemsize)
        return data.view(self.dtype).reshape(self.shape)


class Renamed:
    """Another source under another name."""

    def __init__(self, name: str, source: TensorSource) -> None:
        self.name = name
        self.source = source

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in NumPy order."""
        return self.source.shape

    @property
    def dtype(self) -> np.dtype:
        """float32, float16 or bfloat16."""
        return self.source.dtype

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of the first axis."""
        return self.source.rows(start, stop)


class ChosenRows(Renamed):
    """Some rows of another source, in any order. chosen: their numbers; those of a chunk should be close together."""

    def __init__(self, name: str, source: TensorSource, chosen: np.ndarray) -> None:
        super().__init__(name, source)
        self.chosen = chosen

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in NumPy order."""
        return len(self.chosen), *self.source.shape[1:]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of those that were chosen."""
        numbers = self.chosen[start:stop]
        if not len(numbers):
            return self.source.rows(0, 0)
        first = numbers.min()
        rows: np.ndarray = self.source.rows(first, numbers.max() + 1)[numbers - first]
        return rows


class Joined:
    """The rows of two sources of the same dtype, one after the other."""

    def __init__(self, name: str, first: TensorSource, second: TensorSource) -> None:
        self.name = name
        self.first = first
        self.second = second

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in NumPy order."""
        return self.first.shape[0] + self.second.shape[0], *self.first.shape[1:]

    @property
    def dtype(self) -> np.dtype:
        """That of both."""
        return self.first.dtype

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of the first axis."""
        num = self.first.shape[0]
        if stop <= num:
            return self.first.rows(start, stop)
        if start >= num:
            return self.second.rows(start - num, stop - num)
        return np.concatenate([self.first.rows(start, num), self.second.rows(0, stop - num)])


class AsFloat32(Renamed):
    """Another source as float32: norms and biases, which GGUF keeps exact."""

    @property
    def dtype(self) -> np.dtype:
        """float32, float16 or bfloat16."""
        return np.dtype(np.float32)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of the first axis, float32."""
        return self.source.rows(start, stop).astype(np.float32)


class PlusOne(Renamed):
    """Another source plus one, in its dtype (bfloat16 in float32): Gemma's checkpoints store norms minus one."""

    @property
    def dtype(self) -> np.dtype:
        """float32 or float16."""
        return np.dtype(np.float16 if self.source.dtype == np.float16 else np.float32)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of the first axis."""
        shifted: np.ndarray = self.source.rows(start, stop).astype(self.dtype) + self.dtype.type(1)
        return shifted


class MinusOne(Renamed):
    """The inverse of PlusOne, exact in float32."""

    @property
    def dtype(self) -> np.dtype:
        """float32."""
        return np.dtype(np.float32)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of the first axis."""
        shifted: np.ndarray = self.source.rows(start, stop).astype(np.float32) - np.float32(1)
        return shifted


class Decoded(Renamed):
    """Packed rows, uint8 (rows, row bytes), decoded to float32."""

    def __init__(self, source: TensorSource, format: str) -> None:
        super().__init__(source.name, source)
        self.format = format

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in weights."""
        block_size, block_bytes = _core.tensor_block(self.format)
        rows, row_bytes = self.source.shape
        return rows, row_bytes // block_bytes * block_size

    @property
    def dtype(self) -> np.dtype:
        """float32."""
        return np.dtype(np.float32)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop, decoded."""
        out = np.empty((stop - start, self.shape[1]), np.float32)
        _core.dequantize_rows(self.source.rows(start, stop), self.format, out, 1)
        return out


class InterleavedHeads(Renamed):
    """Query or key rows, reordered from rotation of halves (Hugging Face) to rotation of neighbours (GGUF llama).

    Within each head of d rows, row 2j + p comes from row p * d/2 + j. Rows are read in whole heads.
    """

    def __init__(self, name: str, source: TensorSource, num_heads: int) -> None:
        super().__init__(name, source)
        self.head_rows = source.shape[0] // num_heads

    def split(self) -> tuple[int, int]:
        """The rows of a head as two axes, which are swapped."""
        return 2, self.head_rows // 2

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of the first axis."""
        first = start // self.head_rows
        last = -(-stop // self.head_rows)
        heads = self.source.rows(first * self.head_rows, last * self.head_rows)
        tail = heads.shape[1:]
        paired: np.ndarray = heads.reshape(last - first, *self.split(), *tail).swapaxes(1, 2).reshape(heads.shape)
        return paired[start - first * self.head_rows : stop - first * self.head_rows]


class SeparatedHeads(InterleavedHeads):
    """The inverse of InterleavedHeads."""

    def split(self) -> tuple[int, int]:
        """The rows of a head as two axes, which are swapped."""
        return self.head_rows // 2, 2


def read(source: TensorSource) -> np.ndarray:
    """The whole tensor as an array of its shape."""
    return source.rows(0, source.shape[0])


def row_ranges(first: int, last: int, row_size: int, most: int) -> Iterator[tuple[int, int]]:
    """The rows first..last in ranges (start, stop), each of one row or of at most `most` elements."""
    step = max(1, most // max(1, row_size))
    yield from ((start, min(start + step, last)) for start in range(first, last, step))


def num_elements(shape: tuple[int, ...]) -> int:
    """Number of elements of a tensor of that shape."""
    return math.prod(shape)
