"""Indices of packed weights by NumPy's rules. Some parts select rows; others select weights inside blocks."""

from __future__ import annotations

import operator
from types import EllipsisType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

#: One part of an index: an integer, a slice, an array of integers or booleans, `...`, or None.
Part: TypeAlias = int | slice | npt.NDArray[Any] | EllipsisType | None

WHOLE = slice(None)


def parts_of(index: Any, ndim: int) -> list[Part]:
    """The parts of an array's index, with `...` and omitted axes replaced by `:`.

    A `...` that stands for no axis is kept: for NumPy it separates the arrays before and after it
    (findings/numpy-ellipsis-of-no-axis.sh).

    Raises IndexError for more parts than axes, for two `...` and for values that cannot index an array.
    """
    given: list[Any] = [
        part if part is Ellipsis else _part(part) for part in (index if isinstance(index, tuple) else (index,))
    ]
    dots = [at for at, part in enumerate(given) if part is Ellipsis]
    if len(dots) > 1:
        raise IndexError("an index can have only one ellipsis ('...')")
    missing = ndim - sum(map(axes_of, given))
    if missing < 0:
        raise IndexError(f"too many indices: the array has {ndim} axes, {ndim - missing} were indexed")
    at = dots[0] if dots else len(given)
    return [*given[:at], *([WHOLE] * missing or given[at : at + 1]), *given[at + 1 :]]


def axes_of(part: Any) -> int:
    """The number of axes that a part indexes."""
    if part is None or part is Ellipsis:
        return 0
    return part.ndim if isinstance(part, np.ndarray) and part.dtype == np.bool_ else 1


def in_range(index: int, axis: int, size: int) -> int:
    """An integer index as a non-negative one. Raises IndexError if it is out of bounds."""
    if not -size <= index < size:
        raise IndexError(f"index {index} is out of bounds for axis {axis} with size {size}")
    return index % size


def integers(last: Part, shape: tuple[int, ...]) -> tuple[npt.NDArray[np.intp], ...]:
    """An index array for the last axis as non-negative integers. A boolean array of n axes indexes the last n axes; it
    becomes n integer arrays. Raises IndexError for indices out of bounds."""
    assert isinstance(last, np.ndarray)
    size = shape[-1]
    if last.dtype != np.bool_:
        if last.size:
            in_range(int(last.min()), len(shape) - 1, size)
            in_range(int(last.max()), len(shape) - 1, size)
        return (last.astype(np.intp) % max(size, 1),)
    if last.shape != shape[len(shape) - last.ndim :]:
        raise IndexError(f"expected a boolean index of shape {shape[len(shape) - last.ndim :]}, got {last.shape}")
    return last.nonzero()


def _part(part: Any) -> Part:
    if part is None or isinstance(part, slice):
        return part
    if not isinstance(part, (bool, np.bool_)):
        try:
            return operator.index(part)
        except TypeError:
            pass
    array = np.asarray(part)
    if array.size == 0 and not isinstance(part, np.ndarray):
        array = array.astype(np.intp)
    if array.dtype.kind not in "biu":
        raise IndexError(
            f"expected integers, slices, '...', None and arrays of integers or booleans as indices, got {array.dtype}"
        )
    return array
