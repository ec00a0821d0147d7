"""The errors of outputs, with values that are not finite, and outputs that are not floats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lowbit.onnx.measuring import relative_error

INF, NAN = np.inf, np.nan


@pytest.mark.parametrize(
    ("expected", "found", "error"),
    [
        ([3.0, 4.0], [3.0, 4.5], 0.1),
        ([0.0, 0.0], [0.0, 0.0], 0),
        ([0.0, 0.0], [0.0, 1e-9], INF),
        ([3.0, INF, NAN, 4.0], [3.0, INF, NAN, 4.5], 0.1),
        ([3.0, INF], [3.0, -INF], INF),
        ([3.0, INF], [3.0, 1.0], INF),
        ([3.0, NAN], [3.0, 1.0], INF),
        ([3.0, 4.0], [3.0, NAN], INF),
        ([3.0, 4.0], [[3.0, 4.0]], INF),
        ([3, 4], [3, 4], 0),
        ([3, 4], [3, 5], 1),
    ],
)
def test_error_of_an_output(expected: Any, found: Any, error: float) -> None:
    assert relative_error([{"y": np.array(expected)}], [{"y": np.array(found)}]) == pytest.approx(error)


def test_the_worst_output_counts_over_all_runs() -> None:
    runs = [{"a": np.array([3.0]), "b": np.array([1.0])}, {"a": np.array([4.0]), "b": np.array([1.0])}]
    found = [{"a": np.array([3.0]), "b": np.array([1.0])}, {"a": np.array([4.5]), "b": np.array([1.01])}]
    assert relative_error(runs, found) == pytest.approx(0.1)
