"""Settings of execution providers, and the static check of a graph for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import make_checkpoint

import lowbit
from lowbit.export.targets import TARGETS, find_target, with_static_shapes
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


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "qwen3", "qwen3")


#: Layout, type of the caches and opset of an export for each target, and how many findings the check has.
SETTINGS = {
    "cuda": ("genai", "float16", 23, 0),
    "webgpu": ("genai", "float16", 23, 1),
    "openvino": ("standard", "float32", 23, 0),
    "qnn": ("standard", "float32", 21, 0),
}


@pytest.mark.parametrize("name", TARGETS)
def test_an_export_for_a_target(tmp_path: Path, qwen3: Path, name: str) -> None:
    report = lowbit.export_onnx(qwen3, tmp_path / "onnx", provider=name)
    layout, activations, opset, findings = SETTINGS[name]
    model = open_model(tmp_path / "onnx" / "model.onnx")
    types = {str(value.dtype) for value in model.inputs if value.name.startswith("past")}
    assert (report.layout, types, model.opset) == (layout, {activations}, opset)
    assert report.target is not None
    assert report.target.name == name
    assert report.target.note.endswith("; not executed here")
    assert len(report.target.findings) == findings
    assert all("RMSNormalization" in finding.what for finding in report.target.findings)
    if name != "qnn":
        config = json.loads((tmp_path / "onnx" / "genai_config.json").read_text())
        assert config["model"]["decoder"]["session_options"]["provider_options"] == [report.target.provider]


def test_an_export_with_fixed_shapes(tmp_path: Path, qwen3: Path) -> None:
    """Nothing asks for a shape, and genai, which runs none of these, gets no configuration."""
    report = lowbit.export_onnx(qwen3, tmp_path / "onnx", provider="qnn", tokens=4, past=60)
    model = open_model(tmp_path / "onnx" / "model.onnx")
    shapes = {value.name: value.shape for value in (*model.inputs, *model.outputs)}
    assert (shapes["input_ids"], shapes["attention_mask"]) == ((1, 4), (1, 64))
    assert (shapes["past_key_values.0.key"], shapes["present.0.key"]) == ((1, 2, 60, 64), (1, 2, 64, 64))
    assert "Shape" not in {node.op_type for node in model.nodes}
    assert not (tmp_path / "onnx" / "genai_config.json").exists()
    assert any("no genai_config.json" in note for note in report.notes)
    lowbit.export_onnx(qwen3, tmp_path / "usual", provider="qnn")
    usual = {value.name: value.shape for value in open_model(tmp_path / "usual" / "model.onnx").inputs}
    context = min(lowbit.load(qwen3).spec.context_length, 1024)
    assert (usual["input_ids"], usual["attention_mask"]) == ((1, 1), (1, context))


def test_findings_in_a_report(tmp_path: Path, qwen3: Path) -> None:
    report = lowbit.export_onnx(qwen3, tmp_path / "onnx", provider="qnn", format="int4", dry_run=True)
    assert report.target is not None
    (finding,) = report.target.findings
    assert "DequantizeLinear with blocks" in finding.what
    assert len(finding.nodes) == 2 * 7 + 1
    assert lowbit.export_onnx(qwen3, tmp_path / "onnx", dry_run=True).target is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"provider": "cuda", "activations": "float32"}, "activations: target cuda: expected float16, got float32"),
        ({"provider": "cuda", "block_size": 256}, "block_size: target cuda: expected one of 32, 16, 64, 128, got 256"),
        ({"provider": "qnn", "layout": "genai"}, "layout: target qnn: expected standard, got genai"),
        ({"provider": "qnn", "opset": 23}, "opset: target qnn: expected one of 21, 17"),
        ({"provider": 5}, "provider: expected a str, got 5"),
        ({"provider": "cude"}, "unknown target 'cude', did you mean cuda"),
        ({"provider": 1}, "provider: expected a str, got 1"),
        ({"provider": "cuda", "past": 8}, "past fixes shapes, which only this target needs: qnn"),
        ({"tokens": 8}, "tokens fixes shapes, which only this target needs: qnn"),
        ({"provider": "qnn", "tokens": 0}, "tokens: expected at least 1"),
        ({"provider": "qnn", "past": 10**6}, "tokens and past: expected at most"),
    ],
    ids=str,
)
def test_options_that_contradict_a_target(tmp_path: Path, qwen3: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(lowbit.InputError, match=message):
        lowbit.export_onnx(qwen3, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_static_shapes(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", "qwen3")
    lowbit.export_onnx(tmp_path / "model", tmp_path / "onnx", format="f32")
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
