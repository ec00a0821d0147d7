"""Products of the core, of activations with packed rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit import _core
from lowbit.tensors.rows import as_matrix


def multiply(
    x: npt.NDArray[np.float32], data: npt.NDArray[Any], format: str, compute: str, threads: int
) -> npt.NDArray[np.float32]:
    """x (..., K) times N rows of K weights transposed: (..., N). `data`: the rows, packed or floats."""
    rows = np.ascontiguousarray(as_matrix(x))
    out = np.empty((rows.shape[0], data.shape[0]), np.float32)
    _core.matmul(rows, format, np.ascontiguousarray(data), out, compute, threads)
    return out.reshape(*x.shape[:-1], data.shape[0])
