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
    x: npt.ArrayLike, w: QTensor | npt.ArrayLike, compute: str = "auto", threads: int | None = None
) -> npt.NDArray[np.float32]:
    """x (..., K) times w (N, K) transposed: (..., N) float32.

    `x`: what NumPy makes an array of real numbers of, rounded to float32. `w`: a QTensor, or an array as `quantize`
    takes. `compute` says how:

    - "f32": weights decoded to float32, float32 products. Each result depends on its own row of x and of w only.
    - "int8": activations rounded to 8 bits, one scale for each 32 of them, exact integer products with the packed
      weights. A result errs by at most sum(abs(w)) * max(abs(x)) / 254 in each group of 32. Float weights take "f32".
    - "bf16": weights and activations rounded to bfloat16, float32 sums. float32 weights take "f32".
    - "auto": "int8" for up to eight rows of x, else "bf16".

    `x @ w.T` is the same with "f32". Raises InputError for shapes that do not fit and for what is no array of real
    numbers.
    """
    x = arguments.floats("x", x)
    weights = w if isinstance(w, QTensor) else arguments.floats("w", w, FLOAT_NAMES)
    if weights.ndim != 2 or x.ndim == 0 or x.shape[-1] != weights.shape[1]:
        raise InputError(f"matmul: x {x.shape} and w {weights.shape} do not fit (..., K) and (N, K)")
    how = arguments.text("compute", compute)
    return multiply(x, bytes_of(weights), format_of(weights), how, num_threads(threads))
