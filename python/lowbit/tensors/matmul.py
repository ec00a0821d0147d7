"""`matmul`: activations times packed weights."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lowbit.base import arguments
from lowbit.base.dtypes import FLOAT_NAMES
from lowbit.base.errors import InputError
from lowbit.base.threads import num_threads
from lowbit.tensors.product import multiply
from lowbit.tensors.qtensor import QTensor, bytes_of, format_of


def matmul(
    x: npt.ArrayLike, w: QTensor | npt.ArrayLike, *, compute: str = "auto", threads: int | None = None
) -> npt.NDArray[np.float32]:
    """The product of x (..., K) and the transpose of w (N, K): (..., N) float32.

    `x`: an array-like of real numbers, rounded to float32. `w`: a QTensor, or an array-like as for `quantize`.
    `compute` is the arithmetic:

    - "f32": weights decoded to float32, float32 products. Each result depends only on its own row of x and of w.
    - "int8": x rounded to 8 bits with one scale for each 32 values; exact integer products with the packed weights. The
      error in each group of 32 is at most sum(abs(w)) * max(abs(x)) / 254. Each result depends only on its own row of x
      and of w. Float weights use "f32".
    - "int16": as "int8", plus the product with what that rounding left of x, rounded to 8 bits too. The error is at
      most a 254th of that of "int8", apart from the float32 sums. Takes about twice the operations, but reads w once.
    - "bf16": weights and x rounded to bfloat16, float32 sums. float32 weights use "f32".
    - "auto": "int8" for packed weights. Float weights: "f32" for up to eight rows of x, else "bf16".

    `x @ w.T` is the same with "f32". Raises InputError if the shapes do not fit or an argument is not an array of real
    numbers.
    """
    x = arguments.floats("x", x)
    weights = w if isinstance(w, QTensor) else arguments.floats("w", w, FLOAT_NAMES)
    if weights.ndim != 2 or x.ndim == 0 or x.shape[-1] != weights.shape[1]:
        raise InputError("matmul:", expected="x (..., K) and w (N, K)", found=f"{x.shape} and {weights.shape}")
    how = arguments.text("compute", compute)
    return multiply(x, bytes_of(weights), format_of(weights), how, num_threads(threads))
