"""Graphs with fixed shapes give the logits of those with open ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tiny_checkpoint import make_checkpoint

from lowbit.export.exporting import export_onnx
from lowbit.export.targets import with_static_shapes
from lowbit.onnx import write
from lowbit.onnx.reading import open_model

pytestmark = pytest.mark.oracle

TOKENS, PAST = 3, 5


def logits(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(["logits"], feeds)[0]
    return found


@pytest.mark.parametrize(("layout", "opset"), [("genai", 23), ("standard", 23), ("standard", 21)])
def test_the_same_logits(tmp_path: Path, layout: str, opset: int) -> None:
    make_checkpoint(tmp_path / "model", "qwen3")
    export_onnx(tmp_path / "model", tmp_path / "onnx", format="f32", layout=layout, opset=opset)
    path = tmp_path / "onnx" / "model.onnx"
    write(tmp_path / "fixed.onnx", with_static_shapes(open_model(path), TOKENS, PAST))
    random = np.random.default_rng(0)
    caches = [f"past_key_values.{i}.{part}" for i in range(2) for part in ("key", "value")]
    feeds = {
        "input_ids": np.array([[5, 7, 9]]),
        "attention_mask": np.ones((1, PAST + TOKENS), np.int64),
        **{name: random.standard_normal((1, 2, PAST, 64), np.float32) for name in caches},
    }
    np.testing.assert_allclose(logits(tmp_path / "fixed.onnx", feeds), logits(path, feeds), rtol=1e-5, atol=1e-5)
    session = onnxruntime.InferenceSession(str(tmp_path / "fixed.onnx"), providers=["CPUExecutionProvider"])
    assert all(isinstance(size, int) for value in session.get_inputs() for size in value.shape)
