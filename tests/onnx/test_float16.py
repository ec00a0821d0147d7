"""Modes "float16" and "bfloat16": which nodes they change, with the values that NumPy computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import lowbit
from lowbit.onnx import Graph, Model, Node, OnnxOptions, Tensor, Value
from lowbit.onnx.float16 import float16, lowered

F16, BF16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)


def model(nodes: list[Node], opset: int = 17, ir_version: int = 8, output: Any = np.float32, **tensors: Any) -> Model:
    made = {name: Tensor.of(name, array) for name, array in tensors.items()}
    values = (Value.of(nodes[0].outputs[0], np.float32, (2, 2)),)
    outputs = (Value.of(nodes[-1].outputs[0], output),)
    inputs = [Value.of("x", np.float32), Value.of("i", np.int64)]
    return Model(Graph("graph", tuple(nodes), made, tuple(inputs), outputs, values), {"": opset}, ir_version)


def converted(source: Model, mode: str = "float16", **options: Any) -> tuple[Model, Any]:
    return float16(source, OnnxOptions(mode=mode, **options))


def operators(of: Model) -> list[str]:
    return [node.operator for node in of.nodes]


def weight() -> Any:
    return np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)


def test_one_cast_for_each_value() -> None:
    nodes = [
        Node.of("MatMul", ["x", "w"], ["a"]), Node.of("Add", ["a", "x"], ["b"]),
        Node.of("Sin", ["b"], ["c"]), Node.of("Cos", ["b"], ["d"]), Node.of("Sub", ["c", "d"], ["e"]),
        Node.of("Mul", ["c", "x"], ["f"]), Node.of("Add", ["e", "f"], ["z"]),
    ]  # fmt: skip
    source = model(nodes, w=weight())
    result, reports = converted(source)
    # x is cast to float16 only once, although two nodes read it; only angles stay float in front of Sin and Cos.
    assert operators(result) == [
        "MatMul", "Add", "Sin", "Cos", "Cast", "Cast", "Sub", "Cast", "Mul", "Add", "Cast",
    ]  # fmt: skip
    assert [report.reason for report in reports][:2] == ["it calculates angles"] * 2
    assert result.nodes[-1].outputs == ("z",)
    assert result.outputs[0].dtype == np.float32


def test_results_in_other_types_than_the_first_input() -> None:
    """Of Where, and the mean of LayerNormalization, which stays float32."""
    nodes = [
        Node.of("LayerNormalization", ["x", "w"], ["n", "mean"]), Node.of("Greater", ["x", "w"], ["c"]),
        Node.of("Where", ["c", "n", "x"], ["a"]), Node.of("ReduceProd", ["a"], ["b"]),
        Node.of("Add", ["b", "mean"], ["z"]),
    ]  # fmt: skip
    result, _ = converted(model(nodes, w=weight()[0]))
    assert [(node.operator, node.inputs) for node in result.nodes if node.op_type != "Where"] == [
        ("Cast", ("x",)), ("LayerNormalization", ("x_float16", "w_float16")), ("Greater", ("x_float16", "w_float16")),
        ("Cast", ("a",)), ("ReduceProd", ("a_float32",)), ("Cast", ("b",)), ("Cast", ("mean",)),
        ("Add", ("b_float16", "mean_float16")), ("Cast", ("z_float16",)),
    ]  # fmt: skip


def test_values_and_attributes() -> None:
    nodes = [
        Node.of("MatMul", ["x", "w"], ["a"]), Node.of("Cast", ["i"], ["b"], to=1), Node.of("Add", ["a", "b"], ["z"]),
    ]  # fmt: skip
    w = weight()
    result, (report, *_) = converted(model(nodes, w=w))
    (tensor,) = result.graph.tensors.values()
    np.testing.assert_array_equal(tensor.array, w.astype(np.float16))
    assert result.graph.values[0].dtype == F16
    assert [node.get("to") for node in result.nodes if node.operator == "Cast"] == [10, 10, 1]
    assert (report.action, report.bytes_before, report.bytes_after) == ("float16", 4096, 2048)
    result, _ = converted(model(nodes, w=w), keep_io=False)
    assert [value.dtype for value in (*result.inputs, *result.outputs)] == [F16, np.dtype(np.int64), F16]
    assert operators(result) == ["MatMul", "Cast", "Add"]


def test_bfloat16_stores_weights() -> None:
    w = weight()
    nodes = [
        Node.of("Gather", ["w", "i"], ["a"]),
        Node.of("MatMul", ["a", "w"], ["b"]),
        Node.of("Add", ["b", "s"], ["z"]),
    ]
    result, reports = converted(model(nodes, w=w, s=np.float32(3)), "bfloat16")
    assert operators(result) == ["Gather", "Cast", "Cast", "MatMul", "Add"]
    assert {tensor.dtype for tensor in result.graph.tensors.values()} == {BF16, np.dtype(np.float32)}
    assert [report.action for report in reports] == ["bfloat16", "bfloat16 weights", "float"]
    result, reports = converted(model(nodes, w=w, s=np.float32(3), opset=12), "bfloat16")
    raising = "raise it with: lowbit onnx optimize IN OUT --opset 13"
    assert {report.reason for report in reports} == {f"bfloat16 needs opset 13, the model has 12: {raising}"}


def test_range_of_float16() -> None:
    with np.errstate(over="raise", invalid="raise"):
        found = lowered(np.array([1e9, -1e9, 1e-12, 65504, np.inf, -np.inf], np.float32), F16)
    np.testing.assert_array_equal(found, np.array([65504, -65504, 0, 65504, np.inf, -np.inf], np.float16))
    assert lowered(np.array(-1e-12, np.float32), F16) == -np.finfo(np.float16).smallest_subnormal
    assert lowered(np.array(0, np.float32), F16) == 0
    source = model([Node.of("Add", ["x", "big"], ["z"])], big=np.array([1e9], np.float32))
    assert converted(source)[1][0].is_quantized
    assert converted(source, out_of_range="float")[1][0].reason == "big has values beyond float16"


def test_old_files() -> None:
    source = model([Node.of("MatMul", ["x", "w"], ["z"])], ir_version=3, w=weight())
    source = source.with_graph(Graph("g", source.nodes, source.graph.tensors,
                                     (*source.graph.inputs, Value.of("w", np.float32)), source.outputs))  # fmt: skip
    result, _ = converted(source)
    assert [value.name for value in result.graph.inputs] == ["x", "i"]
    assert result.ir_version == 4  # before, initializers had to be inputs


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (Node.of("Foo", ["x"], ["z"], domain="org.example"), "an operator of org.example"),
        (Node.of("Add", ["x", "unknown"], ["z"]), "the type of unknown is unknown"),
        (Node.of("ReduceSum", ["x"], ["z"]), "sums"),
    ],
)
def test_reasons_for_float(node: Node, reason: str) -> None:
    (report,) = converted(model([node]))[1]
    assert (report.action, reason in report.reason) == ("float", True)


def test_includes_and_excludes() -> None:
    source = model([Node.of("ReduceSum", ["x"], ["z"])])
    assert converted(source, include_operators=["ReduceSum"])[1][0].is_quantized
    assert not converted(source, include_operators=["ReduceSum"], exclude_nodes=["z"])[1][0].is_quantized


def test_public(tmp_path: Path) -> None:
    source = model([Node.of("MatMul", ["x", "w"], ["z"])], w=weight())
    for mode in ("float16", "bfloat16"):
        report = lowbit.onnx.quantize(source, tmp_path / "h.onnx", mode=mode)
        assert (tmp_path / "h.onnx").stat().st_size == report.bytes_after < report.bytes_before - 1500


def test_bfloat16_inputs_need_the_opset_of_their_casts() -> None:
    source = model([Node.of("Relu", ["x"], ["y"])], opset=12)
    with pytest.raises(lowbit.UnsupportedError, match=r"keep_io=False.*expected opset 13.*found 12.*--opset 13$"):
        converted(source, "bfloat16", keep_io=False)
    result, _ = converted(source, "bfloat16")
    assert operators(result) == ["Relu"]
    result, _ = converted(model([Node.of("Relu", ["x"], ["y"])], opset=13), "bfloat16", keep_io=False)
    assert operators(result) == ["Cast", "Relu", "Cast"]


def test_only_masks_are_clamped() -> None:
    """Variances above 65,504 occur in models of the wild; clamped ones make their channels wrong."""
    names = ("scale", "bias", "mean", "variance")
    nodes = [Node.of("BatchNormalization", ["x", *names], ["b"]), Node.of("Add", ["b", "mask"], ["y"])]
    tensors = dict.fromkeys(names, np.ones(2, np.float32)) | {"variance": np.full(2, 1e8, np.float32)}
    _, reports = converted(model(nodes, **tensors, mask=np.array([0, -3e38], np.float32)))
    assert [(report.action, report.reason) for report in reports] == [
        ("float", "variance has values beyond float16"), ("float16", ""),
    ]  # fmt: skip
