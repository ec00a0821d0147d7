"""The part of NumPy's array interface that packed arrays have: shape, dtype, `np.asarray`, `@`."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.mixins import NDArrayOperatorsMixin

from lowbit.base import arguments
from lowbit.base.dtypes import FLOAT_NAMES, FLOATS
from lowbit.base.errors import InputError


class PackedArray(NDArrayOperatorsMixin):
    """An array of float32 that is decoded when its values are needed.

    NumPy's functions decode it, because they convert their arguments to arrays. The operator `@` and reductions
    (`np.sum`) work. All other operators and ufuncs raise TypeError: decoding at each step is slow, `np.asarray` decodes
    once.
    """

    __slots__ = ("__weakref__",)
    __hash__ = None  # type: ignore[assignment]
    __contains__ = None
    __ne__ = object.__ne__  # the opposite of ==, not NumPy's ufunc

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape in weights."""

    @abstractmethod
    def dequantize(self, dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
        """The decoded array: float32, float16 or bfloat16."""

    @abstractmethod
    def _before(self, other: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """self @ other, for shapes that fit."""

    @abstractmethod
    def _after(self, other: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """other @ self, for shapes that fit."""

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """float32, the dtype of `np.asarray(q)`."""
        return FLOATS["F32"]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __bool__(self) -> bool:
        raise InputError("the truth value of packed weights is ambiguous: use np.asarray(...).any() or .all()")

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Decodes to float32, float16 or bfloat16 as `dequantize` does; to other dtypes through float32."""
        if copy is False:
            raise InputError("copy=False: packed weights cannot be viewed as floats; copy=None decodes them")
        wanted = FLOATS["F32"] if dtype is None else np.dtype(dtype)
        return self.dequantize(wanted) if wanted in FLOAT_NAMES else self.dequantize().astype(wanted)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if ufunc is np.matmul and method == "__call__" and not options:
            return _product(*inputs)
        if ufunc in (np.equal, np.not_equal) and method == "__call__":
            # The left operand is an array. For two QTensors, see QTensor.__eq__.
            return ufunc is np.not_equal
        if method == "reduce":
            return ufunc.reduce(np.asarray(inputs[0]), *inputs[1:], **options)
        name = f"np.{ufunc.__name__}" + (f" with {', '.join(options)}" if options else "")
        raise TypeError(f"{name}: expected arrays, got packed weights: decode them first with np.asarray")

    def __matmul__(self, other: npt.ArrayLike) -> npt.NDArray[np.float32]:
        return _product(self, other)

    def __rmatmul__(self, other: npt.ArrayLike) -> npt.NDArray[np.float32]:
        return _product(other, self)


def _product(a: Any, b: Any) -> npt.NDArray[np.float32]:
    """a @ b, where at least one operand is packed."""
    if isinstance(a, PackedArray):
        b = arguments.floats("the right operand of @", b)
        _check(a.shape, b.shape)
        return a._before(b)[()]
    a = arguments.floats("the left operand of @", a)
    _check(a.shape, b.shape)
    return b._after(a)[()]  # type: ignore[no-any-return]


def _check(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    """Raises InputError for shapes of which NumPy has no product."""
    if a and b and a[-1] == b[-2 if len(b) > 1 else 0]:
        try:
            np.broadcast_shapes(a[:-2], b[:-2])
            return
        except ValueError:
            pass
    raise InputError("matmul:", expected="shapes (..., N, K) and (..., K, M)", found=f"{a} and {b}")
