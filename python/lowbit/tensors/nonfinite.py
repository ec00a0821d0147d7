"""The place of NaN and infinite weights, for the errors that they cause."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit.base.errors import InputError
from lowbit.tensors.qtensor import QTensor
from lowbit.tensors.source import row_ranges

ADVICE = "the weights are damaged, use another copy of the model"
_CHUNK_WEIGHTS = 1 << 20


def place(rows: npt.NDArray[Any], first_row: int = 0) -> str | None:
    """The first weight of a matrix that is not finite: "row 3, column 7 is nan". first_row: the number of row 0."""
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(rows.astype(np.float32))
    if finite.all():
        return None
    row, column = np.argwhere(~finite)[0]
    return f"row {first_row + row}, column {column} is {float(rows[row, column])}"


def error(text: str, weights: Mapping[str, QTensor | npt.NDArray[Any]]) -> InputError:
    """The error for results that are not finite. It names the first non-finite weight, which may be the cause.

    Reads all weights if every one is finite.
    """
    for name, weight in weights.items():
        matrix = weight if weight.ndim == 2 else weight.reshape(1, -1) if isinstance(weight, np.ndarray) else None
        if matrix is None:
            continue
        for start, stop in row_ranges(0, len(matrix), math.prod(matrix.shape[1:]), _CHUNK_WEIGHTS):
            part = matrix[start:stop]
            if found := place(part.dequantize() if isinstance(part, QTensor) else part, start):
                return InputError(f"{text}: in tensor {name} {found}; {ADVICE}", tensor=name)
    return InputError(text)
