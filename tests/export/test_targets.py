"""Settings of execution providers, and the static check of a graph for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import make_checkpoint

import lowbit
from lowbit.export.exporting import export_onnx
from lowbit.export.targets import TARGETS, Target, find_target, with_static_shapes
from lowbit.onnx import Graph, Model, Node, Tensor, Value
from lowbit.onnx.reading import open_model


def graph(node: Node, dtype: object = np.float32, **tensors: np.ndarray) -> Model:
    values = {name: Tensor.of(name, array) for name, array in tensors.items()}
    inputs = tuple(Value.of(name, dtype, (1, 4)) for name in node.inputs if name and name not in values)
    outputs = tuple(Value.of(name, np.float32, (1, 4)) for name in node.outputs)
    return Model(Graph("g", (node,), values, inputs, outputs), {"": 23, "com.microsoft": 1}, 11)


def microsoft(op_type: str, inputs: list[str], **attributes: object) -> Node:
    return Node.of(op_type, inputs, ["y"], name="n", domain="com.microsoft", **attributes)


ATTENTION = ["q", "k", "v", "past_k", "past_v", "lengths", "total"]
PRODUCT = {"b": np.zeros((4, 1, 16), np.uint8), "scales": np.zeros((4, 1), np.float32)}


def texts(target: str, model: Model) -> list[str]:
    return [finding.what for finding in TARGETS[target].check(model)]


def test_cuda() -> None:
    node = microsoft("GroupQueryAttention", ATTENTION, num_heads=2, kv_num_heads=2)
    assert "float16" in texts("cuda", graph(node))[0]
    assert texts("cuda", graph(node, np.float16)) == []
    odd = microsoft("MatMulNBits", ["a", "b", "scales"], bits=4, block_size=256, K=256, N=4)
    assert "blocks of 256" in texts("cuda", graph(odd, **PRODUCT))[0]


def test_webgpu() -> None:
    assert "RMSNormalization" in texts("webgpu", graph(Node.of("RMSNormalization", ["x", "w"], ["y"])))[0]
    two = microsoft("MatMulNBits", ["a", "b", "scales"], bits=2, block_size=32, K=32, N=4)
    assert "2 bits" in texts("webgpu", graph(two, **PRODUCT))[0]
    zero = microsoft("MatMulNBits", ["a", "b", "scales", "zero"], bits=4, block_size=32, K=32, N=4)
    assert "zero points" in texts("webgpu", graph(zero, **PRODUCT, zero=np.zeros((4, 1), np.float32)))[0]
    assert texts("webgpu", graph(zero, **PRODUCT, zero=np.zeros((4, 1), np.uint8))) == []
    normed = microsoft("GroupQueryAttention", [*ATTENTION, "", "", "", "", "", "norm"], num_heads=2, kv_num_heads=2)
    assert "norms" in texts("webgpu", graph(normed))[0]


def test_openvino() -> None:
    capped = microsoft("GroupQueryAttention", ATTENTION, num_heads=2, kv_num_heads=2, softcap=30.0)
    assert "softcap" in texts("openvino", graph(capped))[0]
    plain = microsoft("GroupQueryAttention", ATTENTION, num_heads=2, kv_num_heads=2)
    assert texts("openvino", graph(plain)) == []


def test_qnn() -> None:
    blocks = Node.of("DequantizeLinear", ["b", "scales"], ["y"], axis=0, block_size=32)
    assert "blocks" in texts("qnn", graph(blocks, **PRODUCT))[0]
    assert "Shape" in texts("qnn", graph(Node.of("Shape", ["x"], ["y"])))[0]
    model = graph(Node.of("Relu", ["x"], ["y"]))
    assert texts("qnn", model) == []
    is_open = Model(Graph("g", model.nodes, {}, (Value.of("x", np.float32, ("n",)),), model.outputs), {"": 21}, 10)
    assert "open dimensions" in texts("qnn", is_open)[0]


@pytest.mark.parametrize("target", TARGETS.values(), ids=[*TARGETS])
def test_an_export_with_the_settings_of_a_target(tmp_path: Path, target: Target) -> None:
    make_checkpoint(tmp_path / "model", "qwen3")
    export_onnx(
        tmp_path / "model", tmp_path / "onnx", format="int4", layout=target.layout, activations=target.activations,
        opset=target.opset, block_size=target.block_size,
    )  # fmt: skip
    model = open_model(tmp_path / "onnx" / "model.onnx")
    found = target.check(with_static_shapes(model, 8, 0) if target.is_static else model)
    refused = [finding for finding in found if "CPU" not in finding.what]
    assert [str(finding) for finding in refused if target.name != "qnn"] == []
    assert not any("open dimensions" in finding.what for finding in found)
    assert "not executed here" in target.note


def test_static_shapes(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", "qwen3")
    export_onnx(tmp_path / "model", tmp_path / "onnx", format="f32")
    model = with_static_shapes(open_model(tmp_path / "onnx" / "model.onnx"), tokens=8, past=24)
    shapes = {value.name: value.shape for value in (*model.inputs, *model.outputs)}
    assert shapes["input_ids"] == (1, 8)
    assert shapes["attention_mask"] == (1, 32)
    assert shapes["past_key_values.0.key"] == (1, 2, 24, 64)
    assert shapes["present.1.value"] == (1, 2, 32, 64)
    assert shapes["logits"] == (1, 8, 288)
    with pytest.raises(lowbit.InputError, match="tokens"):
        with_static_shapes(model, tokens=0, past=0)
    other = graph(Node.of("Relu", ["x"], ["y"]))
    is_open = Model(Graph("g", other.nodes, {}, (Value.of("x", np.float32, ("n",)),), other.outputs), {"": 21}, 10)
    with pytest.raises(lowbit.InputError, match="'n'"):
        with_static_shapes(is_open, 1, 0)


def test_names() -> None:
    assert find_target("qnn") is TARGETS["qnn"]
    with pytest.raises(lowbit.InputError, match="did you mean cuda"):
        find_target("cude")
    with pytest.raises(lowbit.InputError, match="cuda, webgpu, openvino, qnn"):
        find_target("tpu")
