"""Quantized tensors: `quantize`, `dequantize`, `QTensor`, `formats`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from lowbit import _core
from lowbit.base import arguments
from lowbit.base.errors import InputError
from lowbit.base.paths import AnyPath
from lowbit.base.quoting import quoted, shown
from lowbit.base.threads import num_threads

# Weights decoded at a time on the way to a narrower type than float32: 4 MiB.
_CHUNK_WEIGHTS = 1 << 20
# Bytes compared at a time.
_CHUNK_BYTES = 1 << 22

_FLOAT32 = np.dtype(np.float32)
_NARROW_FORMATS = {np.dtype(np.float16): "F16", np.dtype(ml_dtypes.bfloat16): "BF16"}
_FLOAT_FORMATS = {_FLOAT32: "F32", **_NARROW_FORMATS}


class QTensor:
    """Weights packed in a format's blocks, with the array of bytes they lie in.

    `data`: uint8 (..., row bytes), the last axis contiguous; the other axes may have any strides. Nothing is copied.

    Two are equal if format, shape and bytes are; equal weights in other blocks are not. Since `data` may be written to,
    a QTensor cannot be hashed. It takes no part in NumPy's arithmetic: `dequantize` first.
    """

    __slots__ = ("_data", "_descriptor")
    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, data: npt.NDArray[np.uint8], format: str) -> None:
        """Raises InputError if `data` is not uint8, has no axis or has rows that are not whole blocks."""
        descriptor = find_format(format)
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim == 0:
            raise InputError("data:", expected="uint8 array of at least one axis", found=_describe(data))
        if data.shape[-1] % descriptor.block_bytes:
            raise InputError(
                f"data: rows have {data.shape[-1]} bytes",
                expected=f"a multiple of {descriptor.block_bytes} for {descriptor.name}",
                found=data.shape[-1],
            )
        if data.size and data.shape[-1] > 1 and data.strides[-1] != 1:
            raise InputError("data:", expected="contiguous rows", found=f"a stride of {data.strides[-1]} bytes")
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

    def dequantize(
        self,
        dtype: npt.DTypeLike | None = None,
        threads: int | None = None,
        out: npt.NDArray[Any] | None = None,
    ) -> npt.NDArray[Any]:
        """Decodes to an array of the same shape: float32 exactly, float16 or bfloat16 rounded to nearest even.

        `dtype`: by default that of `out`, else float32. `out`: an array of this shape to write to and return,
        C-contiguous, aligned, not part of `data`.

        Raises InputError for another dtype and for an `out` that does not fit.
        """
        if dtype is None:
            dtype = out.dtype if isinstance(out, np.ndarray) else np.float32
        try:
            wanted = np.dtype(dtype)
        except (TypeError, ValueError, RecursionError):
            raise arguments.wrong("dtype", "float32, float16 or bfloat16", dtype) from None
        if wanted not in _FLOAT_FORMATS:
            raise InputError("dtype:", expected="float32, float16 or bfloat16", found=wanted)
        count = num_threads(threads)
        out = _output(out, wanted, self.shape, {"data": self._data})
        for data, rows in matrices(self._data, out):
            _decode(data, self.format, rows, count)
        return out

    def save(self, path: AnyPath) -> None:
        """Writes an .npz file with the arrays `data` and `format`, complete or not at all; `save_npz` takes several.

        Raises FileError if the system refuses.
        """
        from lowbit.tensors.npz import save_npz

        save_npz(path, {"": self})

    @staticmethod
    def load(path: AnyPath, name: str = "") -> QTensor:
        """Reads what `save` wrote, or one tensor of `save_npz` by its name.

        Raises FileError, FormatError or UnsupportedError as `load_npz` does, InputError if there is no such tensor.
        """
        from lowbit.tensors.npz import load_one

        return load_one(path, name)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> QTensor:
        """Rows (or whole matrices): indexes every axis but the last, by NumPy's rules. Slices are views of `data`.

        The last axis lies in blocks: `...` may stand for it and `:` for all of it, nothing else.
        """
        parts = index if isinstance(index, tuple) else (index,)
        if any(part is None for part in parts):
            raise InputError("QTensor: an index may not hold None")
        dots = [i for i, part in enumerate(parts) if part is Ellipsis]
        if len(dots) > 1:
            raise InputError("QTensor: an index may hold ... once")
        # A boolean array spans as many axes as it has.
        axes = sum(part.ndim if _is_mask(part) else part is not Ellipsis for part in parts)
        if dots:
            parts = (*parts[: dots[0]], *(slice(None),) * max(0, self.ndim - axes), *parts[dots[0] + 1 :])
            axes = max(axes, self.ndim)
        if axes == self.ndim and isinstance(parts[-1], slice) and parts[-1] == slice(None):
            parts, axes = parts[:-1], axes - 1
        if axes > self.ndim - 1:
            raise InputError(f"QTensor: {axes} indices for shape {self.shape}; the last axis lies in blocks")
        return QTensor(self._data[parts], self.format)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QTensor):
            return NotImplemented
        if (self.format, self.shape) != (other.format, other.shape):
            return False
        return all(_same_bytes(a, b) for a, b in matrices(self._data, other._data))

    def __repr__(self) -> str:
        return f"QTensor({self.shape}, {self.format}, {_human(self.nbytes)}, {self.bits:g} bits a weight)"


def formats() -> list[_core.Format]:
    """Every format: name, ggml_type, block_size, block_bytes, bits_per_weight, needs_imatrix."""
    return _core.formats()


def find_format(name: str) -> _core.Format:
    """The format of that name, in any case. Raises InputError that lists those there are."""
    return _core.Format(arguments.text("format", name))


def format_of(weights: QTensor | npt.NDArray[Any]) -> str:
    """The name of a QTensor's format, or of the one that holds a float array as it is; InputError for other dtypes."""
    if isinstance(weights, QTensor):
        return weights.format
    if not isinstance(weights, np.ndarray):
        raise arguments.wrong("weights", "a QTensor or an array", weights)
    if weights.dtype not in _FLOAT_FORMATS:
        raise InputError("weights:", expected="float32, float16 or bfloat16", found=weights.dtype)
    return _FLOAT_FORMATS[weights.dtype]


def bytes_of(weights: QTensor | npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The packed rows of a QTensor, or the floats, contiguous: what the core takes beside the format."""
    return np.ascontiguousarray(weights.data if isinstance(weights, QTensor) else weights)


def quantize(
    w: npt.ArrayLike,
    format: str,
    imatrix: npt.ArrayLike | None = None,
    threads: int | None = None,
    allow_nonfinite: bool = False,
    out: QTensor | npt.NDArray[np.uint8] | None = None,
) -> QTensor:
    """Encodes `w` (..., K), float32, float16 or bfloat16 with any strides, byte for byte as ggml does.

    `imatrix`: the importance of each column, float (K,), finite and not negative. `threads` never changes the result.
    With `allow_nonfinite`, F32, F16 and BF16 keep NaN and infinities; a block of the other formats that holds one loses
    its weights: it decodes to what ggml's arithmetic makes of them (with `imatrix`, some formats lose the whole row).
    `out`: where the bytes go, uint8 (..., row bytes) or a QTensor of the format, C-contiguous and apart from `w`.

    Raises InputError for another dtype, for K that the format's block size does not divide, for a bad importance, for
    an `out` that does not fit, and for NaN or an infinity in `w`, with the row and column of the first; `out` is then
    written to in part.
    """
    descriptor = find_format(format)
    weights = arguments.array("weights", w)
    if weights.ndim == 0:
        raise InputError("weights:", expected="at least one axis", found="a scalar")
    K = weights.shape[-1]
    if K % descriptor.block_size:
        raise InputError(
            f"{descriptor.name}: rows have {K} weights",
            expected=f"a multiple of the block size {descriptor.block_size}",
            found=K,
        )
    importance = (
        None if imatrix is None else np.require(arguments.array("imatrix", imatrix, np.float32), None, ["C", "A"])
    )
    allow_nonfinite = arguments.flag("allow_nonfinite", allow_nonfinite)
    count = num_threads(threads)
    if isinstance(out, QTensor):
        if out.format != descriptor.name:
            raise InputError("out:", expected=descriptor.name, found=out.format)
        out = out.data
    shape = (*weights.shape[:-1], K // descriptor.block_size * descriptor.block_bytes)
    inputs = {"w": weights} if importance is None else {"w": weights, "imatrix": importance}
    packed = _output(out, np.dtype(np.uint8), shape, inputs)
    if _is_matrix(weights):
        _core.quantize_rows(_rows(weights), descriptor.name, importance, _rows(packed), allow_nonfinite, count)
        return QTensor(packed, descriptor.name)
    # The rows are not evenly spaced, so one matrix after the other.
    for index in np.ndindex(weights.shape[:-2]):
        try:
            _core.quantize_rows(weights[index], descriptor.name, importance, packed[index], allow_nonfinite, count)
        except InputError as error:
            error.about(f"matrix {index}: ")
            raise
    return QTensor(packed, descriptor.name)


def dequantize(
    q: QTensor | npt.NDArray[np.uint8],
    format: str | None = None,
    dtype: npt.DTypeLike | None = None,
    threads: int | None = None,
    out: npt.NDArray[Any] | None = None,
) -> npt.NDArray[Any]:
    """Decodes a QTensor, or packed bytes (..., row bytes) with the name of their format, to (..., K).

    `dtype` and `out` as in `QTensor.dequantize`. Raises InputError if the bytes are not whole blocks, `dtype` is not
    float32, float16 or bfloat16, or `out` does not fit.
    """
    if isinstance(q, QTensor):
        if format is not None and arguments.text("format", format).upper() != q.format:
            raise InputError(f"format: the tensor is {q.format}, got {quoted(format)}")
        return q.dequantize(dtype, threads, out)
    if format is None:
        raise InputError("format:", expected="a name beside an array of bytes")
    return QTensor(q, format).dequantize(dtype, threads, out)


def _decode(data: npt.NDArray[np.uint8], format: str, out: npt.NDArray[Any], threads: int) -> None:
    """Decodes a matrix; a narrow type by way of float32, some rows at a time."""
    if out.dtype == _FLOAT32:
        _core.dequantize_rows(data, format, out, threads)
        return
    step = max(1, _CHUNK_WEIGHTS // max(1, out.shape[1]))
    floats = np.empty((min(step, out.shape[0]), out.shape[1]), np.float32)
    for start in range(0, out.shape[0], step):
        rows = out[start : start + step]
        part = floats[: len(rows)]
        _core.dequantize_rows(data[start : start + step], format, part, threads)
        _core.quantize_rows(part, _NARROW_FORMATS[out.dtype], None, rows.view(np.uint8), True, threads)


def _output(
    out: npt.NDArray[Any] | None, dtype: np.dtype[Any], shape: tuple[int, ...], inputs: dict[str, npt.NDArray[Any]]
) -> npt.NDArray[Any]:
    """An array to write to: a new one, or the caller's after it was checked."""
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray) or out.dtype != dtype or out.shape != shape:
        raise InputError("out:", expected=f"{dtype} array of shape {shape}", found=_describe(out))
    if not (out.flags.c_contiguous and out.flags.aligned and out.flags.writeable):
        raise InputError("out:", expected="a C-contiguous, aligned array that may be written to")
    for name, array in inputs.items():
        if np.may_share_memory(out, array):  # by the ranges of addresses: the exact question can take forever
            raise InputError(f"out: lies in the memory of {name}")
    return out


def _is_mask(part: object) -> bool:
    return isinstance(part, np.ndarray) and part.dtype == np.bool_


def _same_bytes(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> bool:
    """Whether two matrices are equal, some rows at a time."""
    step = max(1, _CHUNK_BYTES // max(1, a.shape[1]))
    return all(np.array_equal(a[start : start + step], b[start : start + step]) for start in range(0, len(a), step))


def matrices(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Two arrays whose axes but the last agree, as matrices of rows: one pair if all rows are evenly spaced."""
    if _is_matrix(a) and _is_matrix(b):
        yield _rows(a), _rows(b)
        return
    for index in np.ndindex(a.shape[:-2]):
        yield a[index], b[index]


def _is_matrix(array: npt.NDArray[Any]) -> bool:
    """Whether all rows are evenly spaced, so that the array is a matrix of rows without a copy."""
    axes = [(n, stride) for n, stride in zip(array.shape[:-1], array.strides[:-1], strict=True) if n != 1]
    return array.size == 0 or all(a[1] == b[0] * b[1] for a, b in pairwise(axes))


def _rows(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{shown(value.dtype)} array of shape {value.shape}"
    return type(value).__name__


def _human(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
