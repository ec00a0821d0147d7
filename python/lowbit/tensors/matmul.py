"""`matmul`: activations times packed weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit import _core
from lowbit.base import arguments
from lowbit.base.errors import InputError
from lowbit.base.threads import num_threads
from lowbit.tensors.qtensor import QTensor, bytes_of, format_of


def matmul(
    x: npt.ArrayLike, w: QTensor | npt.NDArray[Any], compute: str = "auto", threads: int | None = None
) -> npt.NDArray[np.float32]:
    """x (..., K) times w (N, K) transposed: (..., N) float32.

    `w`: a QTensor, or a float32, float16 or bfloat16 array. `compute` says how:

    - "f32": weights decoded to float32, float32 products. Each result depends on its own row of x and of w only.
    - "int8": activations rounded to 8 bits, one scale for each 32 of them, exact integer products with the packed
      weights. A result errs by at most sum(abs(w)) * max(abs(x)) / 254 in each group of 32. Float weights take "f32".
    - "bf16": weights and activations rounded to bfloat16, float32 sums. float32 weights take "f32".
    - "auto": "int8" for up to eight rows of x, else "bf16".

    Raises InputError for shapes or dtypes that do not fit.
    """
    if not isinstance(w, (QTensor, np.ndarray)):
        raise InputError(f"matmul: w is a {type(w).__name__}", expected="a QTensor or an array", found=type(w).__name__)
    x = arguments.array("x", x, np.float32)
    if w.ndim != 2 or x.ndim == 0 or x.shape[-1] != w.shape[1]:
        raise InputError(f"matmul: x {x.shape} and w {w.shape} do not fit (..., K) and (N, K)")
    data = bytes_of(w)
    rows = np.ascontiguousarray(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]))
    out = np.empty((rows.shape[0], w.shape[0]), np.float32)
    _core.matmul(rows, format_of(w), data, out, arguments.text("compute", compute), num_threads(threads))
    return out.reshape(*x.shape[:-1], w.shape[0])
