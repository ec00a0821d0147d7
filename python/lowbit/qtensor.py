"""Quantized tensors: `quantize`, `dequantize`, `QTensor`, `formats`."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from lowbit import _core
from lowbit.threads import num_threads

# Weights decoded at a time on the way to a narrower type than float32: 4 MiB.
_CHUNK_WEIGHTS = 1 << 20

_FLOAT32 = np.dtype(np.float32)
_NARROW_FORMATS = {np.dtype(np.float16): "F16", np.dtype(ml_dtypes.bfloat16): "BF16"}
_FLOAT_FORMATS = {_FLOAT32: "F32", **_NARROW_FORMATS}


class QTensor:
    """Weights packed in a format's blocks, with the array of bytes they lie in.

    `data`: uint8 (..., row bytes), the last axis contiguous; the other axes may have any strides. Nothing is copied.
    """

    __slots__ = ("_data", "_descriptor")

    def __init__(self, data: npt.NDArray[np.uint8], format: str) -> None:
        """Raises InputError if `data` is not uint8, has no axis or has rows that are not whole blocks."""
        descriptor = _core.get_format(format)
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim == 0:
            raise _core.InputError(f"data: expected uint8 array of at least one axis, got {_describe(data)}")
        if data.shape[-1] % descriptor.block_bytes:
            raise _core.InputError(
                f"data: rows have {data.shape[-1]} bytes, expected a multiple of {descriptor.block_bytes} "
                f"for {descriptor.name}"
            )
        if data.size and data.shape[-1] > 1 and data.strides[-1] != 1:
            raise _core.InputError(f"data: expected contiguous rows, got a stride of {data.strides[-1]} bytes")
        self._data = data
        self._descriptor = descriptor

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
    def ndim(self) -> int:
        """Number of axes."""
        return self._data.ndim

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of packed bytes."""
        return self._data.nbytes

    @property
    def bits(self) -> float:
        """Bits a weight."""
        return self._descriptor.bits_per_weight

    def dequantize(self, dtype: npt.DTypeLike = np.float32, threads: int | None = None) -> npt.NDArray[Any]:
        """Decodes to an array of the same shape: float32 exactly, float16 or bfloat16 rounded to nearest even.

        Raises InputError for another dtype.
        """
        return _decode(self, np.dtype(dtype), num_threads(threads))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> QTensor:
        """Rows (or whole matrices): indexes every axis but the last, by NumPy's rules. Slices are views of `data`."""
        parts = index if isinstance(index, tuple) else (index,)
        if any(part is None or part is Ellipsis for part in parts):
            raise _core.InputError("QTensor: an index may not hold None or ...")
        # A boolean array spans as many axes as it has.
        axes = sum(part.ndim if isinstance(part, np.ndarray) and part.dtype == np.bool_ else 1 for part in parts)
        if axes > self.ndim - 1:
            raise _core.InputError(f"QTensor: {axes} indices for shape {self.shape}; the last axis lies in blocks")
        return QTensor(self._data[index], self.format)

    def __repr__(self) -> str:
        return f"QTensor({self.shape}, {self.format}, {_human(self.nbytes)}, {self.bits:g} bits a weight)"


def formats() -> list[_core.Format]:
    """Every format: name, ggml_type, block_size, block_bytes, bits_per_weight, needs_imatrix."""
    return _core.formats()


def format_of(weights: QTensor | npt.NDArray[Any]) -> str:
    """The name of a QTensor's format, or of the one that holds a float array as it is; InputError for other dtypes."""
    if isinstance(weights, QTensor):
        return weights.format
    if weights.dtype not in _FLOAT_FORMATS:
        raise _core.InputError(f"weights: expected float32, float16 or bfloat16, got {weights.dtype}")
    return _FLOAT_FORMATS[weights.dtype]


def quantize(
    w: npt.ArrayLike,
    format: str,
    imatrix: npt.ArrayLike | None = None,
    threads: int | None = None,
    allow_nonfinite: bool = False,
) -> QTensor:
    """Encodes `w` (..., K), float32, float16 or bfloat16 with any strides, byte for byte as ggml does.

    `imatrix`: the importance of each column, float (K,), finite and not negative. `threads` never changes the result.
    With `allow_nonfinite`, F32, F16 and BF16 keep NaN and infinities; a block of the other formats that holds one loses
    its weights: it decodes to what ggml's arithmetic makes of them (with `imatrix`, some formats lose the whole row).

    Raises InputError for another dtype, for K that the format's block size does not divide, for a bad importance, and
    for NaN or an infinity in `w`, with the row and column of the first.
    """
    descriptor = _core.get_format(format)
    weights = np.asarray(w)
    if weights.ndim == 0:
        raise _core.InputError("weights: expected at least one axis, got a scalar")
    K = weights.shape[-1]
    if K % descriptor.block_size:
        raise _core.InputError(
            f"{descriptor.name}: rows have {K} weights, expected a multiple of the block size {descriptor.block_size}"
        )
    importance = None if imatrix is None else np.require(imatrix, np.float32, ["C", "A"])
    count = num_threads(threads)
    row_bytes = K // descriptor.block_size * descriptor.block_bytes
    out = np.empty((*weights.shape[:-1], row_bytes), np.uint8)
    if _is_matrix(weights):
        matrix, rows = _rows(weights), _rows(out)
        _core.quantize_rows(matrix, descriptor.name, importance, rows, allow_nonfinite, count)
        return QTensor(out, descriptor.name)
    # The rows are not evenly spaced, so one matrix after the other.
    for index in np.ndindex(weights.shape[:-2]):
        try:
            _core.quantize_rows(weights[index], descriptor.name, importance, out[index], allow_nonfinite, count)
        except _core.InputError as error:
            raise _core.InputError(f"matrix {index}: {error}") from None
    return QTensor(out, descriptor.name)


def dequantize(
    q: QTensor | npt.NDArray[np.uint8],
    format: str | None = None,
    dtype: npt.DTypeLike = np.float32,
    threads: int | None = None,
) -> npt.NDArray[Any]:
    """Decodes a QTensor, or packed bytes (..., row bytes) with the name of their format, to (..., K).

    Raises InputError if the bytes are not whole blocks or `dtype` is not float32, float16 or bfloat16.
    """
    if isinstance(q, QTensor):
        if format is not None and format.upper() != q.format:
            raise _core.InputError(f"format: the tensor is {q.format}, got {format!r}")
        return q.dequantize(dtype, threads)
    if format is None:
        raise _core.InputError("format: expected a name beside an array of bytes")
    return QTensor(q, format).dequantize(dtype, threads)


def _decode(q: QTensor, dtype: np.dtype[Any], threads: int) -> npt.NDArray[Any]:
    if dtype != _FLOAT32 and dtype not in _NARROW_FORMATS:
        raise _core.InputError(f"dtype: expected float32, float16 or bfloat16, got {dtype}")
    out = np.empty(q.shape, dtype)
    pairs = (
        [(_rows(q.data), _rows(out))]
        if _is_matrix(q.data)
        else [(q.data[index], out[index]) for index in np.ndindex(q.data.shape[:-2])]
    )
    for data, rows in pairs:
        if dtype == _FLOAT32:
            _core.dequantize_rows(data, q.format, rows, threads)
        else:
            _decode_narrow(data, q.format, rows, _NARROW_FORMATS[dtype], threads)
    return out


def _decode_narrow(data: npt.NDArray[np.uint8], format: str, out: npt.NDArray[Any], narrow: str, threads: int) -> None:
    """Decodes to float32 some rows at a time and rounds those to the narrow float format."""
    step = max(1, _CHUNK_WEIGHTS // max(1, out.shape[1]))
    floats = np.empty((min(step, out.shape[0]), out.shape[1]), np.float32)
    for start in range(0, out.shape[0], step):
        rows = out[start : start + step]
        part = floats[: len(rows)]
        _core.dequantize_rows(data[start : start + step], format, part, threads)
        _core.quantize_rows(part, narrow, None, rows.view(np.uint8), True, threads)


def _is_matrix(array: npt.NDArray[Any]) -> bool:
    """Whether all rows are evenly spaced, so that the array is a matrix of rows without a copy."""
    axes = [(n, stride) for n, stride in zip(array.shape[:-1], array.strides[:-1], strict=True) if n != 1]
    return array.size == 0 or all(a[1] == b[0] * b[1] for a, b in pairwise(axes))


def _rows(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} array of shape {value.shape}"
    return type(value).__name__


def _human(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
