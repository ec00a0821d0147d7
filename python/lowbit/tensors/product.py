"""Products of activations and packed rows, computed by the core."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit import _core
from lowbit.tensors.rows import as_matrix


def multiply(
    x: npt.NDArray[np.float32], data: npt.NDArray[Any], format: str, compute: str, threads: int
) -> npt.NDArray[np.float32]:
    """The product of x (..., K) and the transpose of `data`: (..., N). `data`: rows of K weights, packed or floats."""
    rows = np.ascontiguousarray(as_matrix(x))
    out = np.empty((rows.shape[0], data.shape[0]), np.float32)
    _core.matmul(rows, format, np.ascontiguousarray(data), out, compute, threads)
    return out.reshape(*x.shape[:-1], data.shape[0])
