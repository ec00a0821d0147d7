"""What runs models says which extra it needs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lowbit
from lowbit.onnx import Graph, Model, Node, OnnxOptions, Tensor, Value


@pytest.mark.parametrize(
    "use",
    [
        lambda model, path: lowbit.onnx.optimize(model, path),
        lambda model, path: lowbit.onnx.quantize(model, path, mode="dynamic", max_error=0.1),
        lambda model, path: lowbit.onnx.sensitivity(model, OnnxOptions(mode="dynamic")),
    ],
)
def test_names_the_extra(use: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    graph = Graph("g", (Node.of("MatMul", ["x", "w"], ["y"]),), {"w": Tensor.of("w", np.eye(4, dtype=np.float32))},
                  (Value.of("x", np.float32, (2, 4)),), (Value.of("y", np.float32),))  # fmt: skip
    with pytest.raises(lowbit.UnsupportedError, match=r"pip install 'lowbit\[onnx\]'"):
        use(Model(graph, {"": 17}, 8), tmp_path / "out.onnx")
    assert not [*tmp_path.iterdir()]
