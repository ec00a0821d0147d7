"""Arrays of several axes as matrices of rows for the core, and arrays for results."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit._core import Format
from lowbit.base.errors import InputError
from lowbit.base.quoting import shown


def matrices(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Two arrays, equal in all axes but the last, as matrices of rows: one pair if all rows are evenly spaced."""
    if is_matrix(a) and is_matrix(b):
        yield as_matrix(a), as_matrix(b)
        return
    for index in np.ndindex(a.shape[:-2]):
        yield a[index], b[index]


def is_matrix(array: npt.NDArray[Any]) -> bool:
    """Whether all rows are evenly spaced, so that the array is a matrix of rows without a copy."""
    axes = [(n, stride) for n, stride in zip(array.shape[:-1], array.strides[:-1], strict=True) if n != 1]
    return array.size == 0 or all(a[1] == b[0] * b[1] for a, b in pairwise(axes))


def as_matrix(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array's rows as a matrix: a view if `is_matrix`, else a copy."""
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])


def output(
    out: npt.NDArray[Any] | None, dtype: np.dtype[Any], shape: tuple[int, ...], inputs: dict[str, npt.NDArray[Any]]
) -> npt.NDArray[Any]:
    """The array to write to: a new one, or the caller's `out`, checked."""
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray) or out.dtype != dtype or out.shape != shape:
        raise InputError("out:", expected=f"{dtype} array of shape {shape}", found=described(out))
    if not (out.flags.c_contiguous and out.flags.aligned and out.flags.writeable):
        raise InputError("out:", expected="a C-contiguous, aligned, writable array")
    for name, array in inputs.items():
        if np.may_share_memory(out, array):  # compares address ranges: the exact test can take exponential time
            raise InputError(f"out: shares memory with {name}")
    return out


def described(value: object) -> str:
    """A value in a message: dtype and shape of an array, else the type."""
    if isinstance(value, np.ndarray):
        return f"{shown(value.dtype)} array of shape {value.shape}"
    return type(value).__name__


def check_packed(data: npt.NDArray[np.uint8], format: Format) -> None:
    """Raises InputError if `data` is not uint8, has no axis or has rows that are not whole blocks."""
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim == 0:
        raise InputError("data:", expected="uint8 array of at least one axis", found=described(data))
    if data.shape[-1] % format.block_bytes:
        raise InputError(
            f"data: rows have {data.shape[-1]} bytes",
            expected=f"a multiple of {format.block_bytes} for {format.name}",
            found=data.shape[-1],
        )
    if data.size and data.shape[-1] > 1 and data.strides[-1] != 1:
        raise InputError("data:", expected="contiguous rows", found=f"a stride of {data.strides[-1]} bytes")
