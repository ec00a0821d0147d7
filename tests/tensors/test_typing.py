"""What users write type-checks: `mypy` reads this file (pyproject.toml), pytest runs it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import lowbit


def test_annotations() -> None:
    rows = [[0.5] * 32, [1.0] * 32]
    q: lowbit.QTensor = lowbit.quantize(rows, "Q8_0")
    of_ints: lowbit.QTensor = lowbit.quantize([[1] * 32], lowbit.Format("Q8_0"), imatrix=[1] * 32)
    of_doubles: lowbit.QTensor = lowbit.quantize(np.random.default_rng(0).standard_normal((2, 32)), "Q4_0")
    again: lowbit.QTensor = lowbit.quantize(q, "Q4_0")
    decoded: npt.NDArray[Any] = np.asarray(q)
    dtype: np.dtype[np.float32] = q.dtype
    products: list[npt.NDArray[np.float32]] = [
        q @ np.ones(32),
        q @ q.T,
        np.ones(32, np.float32) @ q.T,
        [[1.0, 2.0]] @ q,
        lowbit.matmul(rows, q),
        lowbit.matmul(rows, rows),
    ]
    names: list[str] = [format.name for format in lowbit.formats()]
    report: lowbit.Comparison = lowbit.compare(rows, q)
    copied: lowbit.QTensor = q.copy()
    assert report == lowbit.compare(decoded, copied) or report.rmse > 0
    assert {dtype, decoded.dtype} == {np.dtype(np.float32)}
    assert of_ints.format == "Q8_0" == q.format
    assert of_doubles.format == "Q4_0" == again.format
    assert len(products) == 6
    assert names
