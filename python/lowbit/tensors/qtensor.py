"""`QTensor`: weights packed in a format's blocks, as an array."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit import _core
from lowbit.base import arguments
from lowbit.base.dtypes import FLOAT_NAMES, FLOATS
from lowbit.base.errors import InputError
from lowbit.base.paths import AnyPath
from lowbit.base.threads import num_threads
from lowbit.tensors.array_like import PackedArray
from lowbit.tensors.formats import AnyFormat, find_format
from lowbit.tensors.indexing import WHOLE, Part, axes_of, in_range, integers, parts_of
from lowbit.tensors.product import multiply
from lowbit.tensors.rows import check_packed, matrices, output

# Weights decoded at a time for a narrower type than float32: 4 MiB.
_CHUNK_WEIGHTS = 1 << 20
# Bytes compared at a time.
_CHUNK_BYTES = 1 << 22


class QTensor(PackedArray):
    """Weights packed in a format's blocks: an array of bytes and the format.

    `data`: uint8 (..., row bytes), the last axis contiguous; the other axes may have any strides. Nothing is copied.

    `np.asarray(q)` and NumPy's functions decode to float32. Slices of rows stay packed and are not copied. `q @ y` and
    `x @ q` are NumPy's products in float32. `q @ y` and `x @ q.T` use the packed rows; `x @ q` decodes all weights.
    `lowbit.matmul` is faster if activations may be rounded. Other operators raise TypeError: instead of `q + 1` use
    `np.asarray(q) + 1`.

    `q == other` is one bool: whether format, shape and bytes are equal. To compare decoded weights, use
    np.asarray(q) == np.asarray(other). A QTensor cannot be hashed, because `data` can change.
    """

    __slots__ = ("_data", "_descriptor")

    def __init__(self, data: npt.NDArray[np.uint8], format: AnyFormat) -> None:
        """Raises InputError if `data` is not uint8, has no axis or has rows that are not whole blocks."""
        self._descriptor = find_format(format)
        check_packed(data, self._descriptor)
        self._data = data

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        """The packed bytes, uint8 (..., row bytes)."""
        return self._data

    @property
    def format(self) -> str:
        """The format's name, for example "Q4_K"."""
        return self._descriptor.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in weights, (..., K)."""
        blocks = self._data.shape[-1] // self._descriptor.block_bytes
        return (*self._data.shape[:-1], blocks * self._descriptor.block_size)

    @property
    def nbytes(self) -> int:
        """Number of packed bytes."""
        return self._data.nbytes

    @property
    def bits(self) -> float:
        """Bits per weight, including scales."""
        return self._descriptor.bits_per_weight

    def dequantize(
        self,
        dtype: npt.DTypeLike | None = None,
        *,
        out: npt.NDArray[Any] | None = None,
        threads: int | None = None,
    ) -> npt.NDArray[Any]:
        """Decodes to an array of the same shape: float32 exactly, float16 or bfloat16 rounded to nearest even.

        `dtype`: by default the dtype of `out`, else float32. `out`: the array to write to and return, of this shape,
        C-contiguous, aligned, without memory shared with `data`.

        Raises InputError for another dtype and for an `out` that does not fit.
        """
        if dtype is None:
            dtype = out.dtype if isinstance(out, np.ndarray) else np.float32
        try:
            wanted = np.dtype(dtype)
        except (TypeError, ValueError, RecursionError):
            raise arguments.wrong("dtype", "float32, float16 or bfloat16", dtype) from None
        if wanted not in FLOAT_NAMES:
            raise InputError("dtype:", expected="float32, float16 or bfloat16", found=wanted)
        count = num_threads(threads)
        out = output(out, wanted, self.shape, {"data": self._data})
        for data, rows in matrices(self._data, out):
            _decode(data, self.format, rows, count)
        return out

    def save(self, path: AnyPath) -> None:
        """Writes an .npz file with the arrays `data` and `format`, complete or not at all; `save_npz` takes several.

        Raises FileError if the system refuses.
        """
        from lowbit.tensors import npz_archive

        npz_archive.write(path, {"": (self._data, self.format)})

    @staticmethod
    def load(path: AnyPath, name: str = "") -> QTensor:
        """Reads a file of `save`, or one tensor of a file of `save_npz` by its name.

        Raises FileError, FormatError or UnsupportedError as `load_npz` does, InputError if there is no tensor `name`.
        """
        from lowbit.tensors import npz_archive

        return QTensor(*npz_archive.read_one(path, name))

    def copy(self) -> QTensor:
        """A QTensor with its own copy of the bytes, in memory."""
        return QTensor(self._data.copy(), self._descriptor)

    __copy__ = copy

    def __reduce__(self) -> tuple[Any, ...]:
        return QTensor, (self._data, self._descriptor)

    @property
    def T(self) -> QTensor | Transposed:
        """The axes in reverse order, without a copy. `x @ q.T` multiplies packed rows; values are decoded on demand."""
        return self if self.ndim == 1 else Transposed(self)

    def __getitem__(self, index: Any) -> Any:
        """Indexing by NumPy's rules. Whole rows stay packed; they are a view of `data` if NumPy would return a view.

        If the index of the last axis is not `:`, `...` or omitted, the result is decoded: `q[:, :8]` is an array of
        float32, `q[0, 5]` one float32.
        """
        parts = parts_of(index, self.ndim)
        if any(isinstance(part, np.ndarray) and axes_of(part) == 0 for part in parts):  # True or False adds an axis
            return self.dequantize()[index]
        num_new = 0
        while parts[-1] is None or parts[-1] is Ellipsis:
            num_new += parts.pop() is None
        *rows, last = parts
        if isinstance(last, slice) and last == WHOLE and num_new == 0:
            return self._rows(rows)
        return np.expand_dims(self._weights(rows, last), tuple(range(-num_new, 0)))[()]

    def _rows(self, rows: list[Part]) -> QTensor:
        index = (*rows, WHOLE)
        return QTensor(self._data[index], self._descriptor)

    def _weights(self, rows: list[Part], last: Part) -> npt.NDArray[np.float32]:
        """The weights that `last` selects from rows. Slices and integers decode only the blocks that they touch."""
        if isinstance(last, slice):
            size, num_bytes = self._descriptor.block_size, self._descriptor.block_bytes
            columns = np.arange(self.shape[-1])[last]
            first, end = (columns.min() // size, columns.max() // size + 1) if columns.size else (0, 0)
            blocks = QTensor(self._data[..., first * num_bytes : end * num_bytes], self._descriptor)
            return np.asarray(np.take(blocks._rows(rows).dequantize(), columns - first * size, -1))
        if isinstance(last, int):
            last = in_range(last, self.ndim - 1, self.shape[-1])
            if not any(isinstance(part, np.ndarray) for part in rows):
                return np.asarray(self._weights(rows, slice(last, last + 1))[..., 0])
            return self._single(rows, last)
        *more, last = integers(last, self.shape)
        return self._single([*rows, *more], last)

    def _single(self, rows: list[Part], last: int | npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        """Single weights, selected by arrays. Decodes one block per weight, or all weights if that is less."""
        size, num_bytes = self._descriptor.block_size, self._descriptor.block_bytes
        picked = (*rows, last)
        columns = np.broadcast_to(np.arange(self.shape[-1]), self.shape)[picked]
        if columns.size * size >= self.size:
            return np.asarray(self.dequantize()[picked])
        picked = (*rows, last // size)
        blocks = np.ascontiguousarray(self._data.view(f"V{num_bytes}")[picked])
        data = blocks.view(np.uint8).reshape(*columns.shape, num_bytes)
        decoded = QTensor(data, self._descriptor).dequantize()
        return np.asarray(np.take_along_axis(decoded, (columns % size)[..., None], -1)[..., 0])

    def __iter__(self) -> Iterator[Any]:
        return iter(self.dequantize()) if self.ndim == 1 else (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QTensor):
            return NotImplemented
        if (self.format, self.shape) != (other.format, other.shape):
            return False
        return all(_same_bytes(a, b) for a, b in matrices(self._data, other._data))

    def _before(self, other: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        columns = other[:, None] if other.ndim == 1 else other
        data = self._data[None] if self.ndim == 1 else self._data
        x, threads = columns.swapaxes(-1, -2), num_threads()
        if data.ndim == 2:
            out = multiply(x, data, self.format, "f32", threads)
        else:
            batch = np.broadcast_shapes(data.shape[:-2], x.shape[:-2])
            x, data = np.broadcast_to(x, (*batch, *x.shape[-2:])), np.broadcast_to(data, (*batch, *data.shape[-2:]))
            out = np.empty((*batch, x.shape[-2], data.shape[-2]), np.float32)
            for index in np.ndindex(batch):
                out[index] = multiply(x[index], data[index], self.format, "f32", threads)
        # NumPy adds an axis to operands of one axis, and removes it from the result.
        dropped = tuple(axis for axis, operand in ((-1, self), (-2, other)) if operand.ndim == 1)
        return np.squeeze(out, dropped) if dropped else out.swapaxes(-1, -2)

    def _after(self, other: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return _matmul(other, self.dequantize())

    def __repr__(self) -> str:
        return f"QTensor({self.shape}, {self.format}, {_human(self.nbytes)}, {self.bits:g} bits per weight)"


class Transposed(PackedArray):
    """`q.T`, the axes of a QTensor in reverse order. Values are decoded when they are needed."""

    __slots__ = ("_packed",)

    def __init__(self, packed: QTensor) -> None:
        self._packed = packed

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in weights."""
        return self._packed.shape[::-1]

    @property
    def T(self) -> QTensor:
        """The QTensor itself."""
        return self._packed

    def dequantize(self, dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
        """The decoded array: float32, float16 or bfloat16."""
        return np.transpose(self._packed.dequantize(dtype))

    def __getitem__(self, index: Any) -> Any:
        return self.dequantize()[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.dequantize())

    def __eq__(self, other: object) -> bool:
        return self._packed == other._packed if isinstance(other, Transposed) else NotImplemented

    def _before(self, other: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return _matmul(self.dequantize(), other)

    def _after(self, other: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if self.ndim > 2:
            return _matmul(other, self.dequantize())
        if other.ndim == 1:
            return self._packed._before(other)
        return np.swapaxes(self._packed._before(np.swapaxes(other, -1, -2)), -1, -2)

    def __repr__(self) -> str:
        return f"{self._packed!r}.T"


def _matmul(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.asarray(np.matmul(a, b))


def format_of(weights: QTensor | npt.NDArray[Any]) -> str:
    """The name of a QTensor's format, or of the format of a float array. Raises InputError for other dtypes."""
    if isinstance(weights, QTensor):
        return weights.format
    if not isinstance(weights, np.ndarray):
        raise arguments.wrong("weights", "a QTensor or an array", weights)
    if weights.dtype not in FLOAT_NAMES:
        raise InputError("weights:", expected="float32, float16 or bfloat16", found=weights.dtype)
    return FLOAT_NAMES[weights.dtype]


def bytes_of(weights: QTensor | npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The packed rows of a QTensor, or a contiguous array of floats: an argument of the core, next to the format."""
    return np.ascontiguousarray(weights.data if isinstance(weights, QTensor) else weights)


def _decode(data: npt.NDArray[np.uint8], format: str, out: npt.NDArray[Any], threads: int) -> None:
    """Decodes a matrix; to a narrow type through float32, some rows at a time."""
    if out.dtype == FLOATS["F32"]:
        _core.dequantize_rows(data, format, out, threads)
        return
    step = max(1, _CHUNK_WEIGHTS // max(1, out.shape[1]))
    floats = np.empty((min(step, out.shape[0]), out.shape[1]), np.float32)
    for start in range(0, out.shape[0], step):
        rows = out[start : start + step]
        part = floats[: len(rows)]
        _core.dequantize_rows(data[start : start + step], format, part, threads)
        _core.quantize_rows(part, FLOAT_NAMES[out.dtype], None, rows.view(np.uint8), True, threads)


def _same_bytes(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> bool:
    """Whether two matrices are equal, some rows at a time."""
    step = max(1, _CHUNK_BYTES // max(1, a.shape[1]))
    return all(np.array_equal(a[start : start + step], b[start : start + step]) for start in range(0, len(a), step))


def _human(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
