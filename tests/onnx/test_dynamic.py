"""Mode "dynamic": what it makes of each operator, with the parameters that NumPy computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import lowbit
from lowbit.onnx import Graph, Model, Node, OnnxOptions, Tensor, Value
from lowbit.onnx.channels import quantize_channels
from lowbit.onnx.dynamic import dynamic

RNG = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def model(nodes: list[Node], opset: int = 17, ir_version: int = 8, **tensors: Any) -> Model:
    made = {name: Tensor.of(name, array) for name, array in tensors.items()}
    used = {name for node in nodes for name in node.inputs}
    inputs = [Value.of(name, np.float32) for name in ("x", "y") if name in used]
    if ir_version < 4:
        inputs += [Value.of(name, array.dtype, array.shape) for name, array in tensors.items()]
    outputs = [Value.of(nodes[-1].outputs[0], np.float32)]
    return Model(Graph("graph", tuple(nodes), made, tuple(inputs), tuple(outputs)), {"": opset}, ir_version)


def quantized(source: Model, **options: Any) -> tuple[Model, Any]:
    result, report = dynamic(source, OnnxOptions(mode="dynamic", **options))
    return result, report


def operators(of: Model) -> list[str]:
    return [node.operator for node in of.nodes]


def constants(of: Model, dtype: Any) -> list[Any]:
    return [tensor.array for tensor in of.graph.tensors.values() if tensor.dtype == dtype]


def test_product() -> None:
    w = normal(6, 4) * [1, 10, 0.1, 0]
    result, (report,) = quantized(
        model([Node.of("MatMul", ["x", "w"], ["z"], name="p")], w=w.astype("f")), search=False
    )
    assert operators(result) == ["DynamicQuantizeLinear", "MatMulInteger", "Mul", "Cast", "Mul"]
    scales = np.abs(w.astype("f")).max(0) / np.float32(127)
    scales[3] = 1
    np.testing.assert_array_equal(constants(result, np.float32)[0], scales)
    np.testing.assert_array_equal(constants(result, np.int8)[0], np.rint(w.astype("f") / scales))
    assert (report.name, report.operator, report.action) == ("p", "MatMul", "int8 per channel")
    assert (report.bytes_before, report.bytes_after) == (96, 24 + 16)
    lost = constants(result, np.int8)[0] * scales - w
    assert report.error == pytest.approx(np.linalg.norm(lost) / np.linalg.norm(w), rel=1e-4)
    assert result.outputs[0].name == result.nodes[-1].outputs[0] == "z"


def test_transposed_forms_store_the_matrix_as_the_kernel_reads_it() -> None:
    w = normal(6, 4)
    for trans_b in (0, 1):
        node = Node.of("Gemm", ["x", "w"], ["z"], transB=trans_b, alpha=-2.0)
        result, _ = quantized(model([node], w=w), search=False)
        matrix = w.T if trans_b else w
        scales = np.abs(matrix).max(0) / np.float32(127)
        np.testing.assert_array_equal(constants(result, np.int8)[0], np.rint(matrix / scales))
        np.testing.assert_array_equal(constants(result, np.float32)[0], scales * -2)


def test_fused() -> None:
    result, _ = quantized(model([Node.of("MatMul", ["x", "w"], ["z"])], w=normal(6, 4)), fused=True)
    assert operators(result) == ["com.microsoft.DynamicQuantizeMatMul"]
    assert result.opsets == {"": 17, "com.microsoft": 1}
    result, _ = quantized(model([Node.of("MatMul", ["x", "w"], ["z"])], w=normal(6, 4)))
    assert result.opsets == {"": 17}


def test_inputs_and_weights_are_quantized_once() -> None:
    nodes = [
        Node.of("MatMul", ["x", "w"], ["a"]),
        Node.of("MatMul", ["x", "w"], ["b"]),
        Node.of("Add", ["a", "b"], ["c"]),
    ]
    result, (first, second) = quantized(model(nodes, w=normal(8, 8)))
    assert operators(result).count("DynamicQuantizeLinear") == 1
    assert len(constants(result, np.int8)) == 1
    assert (first.bytes_before, second.bytes_before, second.bytes_after) == (256, 0, 0)


def test_an_embedding_that_is_the_output_matrix_is_stored_once() -> None:
    table = normal(20, 8)
    for turned in ([Node.of("Transpose", ["w"], ["t"]), Node.of("MatMul", ["e", "t"], ["z"])],
                   [Node.of("Gemm", ["e", "w"], ["z"], transB=1)]):  # fmt: skip
        result, reports = quantized(model([Node.of("Gather", ["w", "y"], ["e"]), *turned], w=table))
        assert [report.action for report in reports] == ["int8 per row", "int8 per channel"]
        assert [codes.shape for codes in constants(result, np.int8)] == [(20, 8)]
        assert operators(result).count("Transpose") == 1


def test_a_transpose_without_effect() -> None:
    w = normal(6, 6)
    nodes = [Node.of("Transpose", ["w"], ["t"], perm=[0, 1]), Node.of("MatMul", ["x", "t"], ["z"])]
    result, _ = quantized(model(nodes, w=w), search=False)
    np.testing.assert_array_equal(constants(result, np.int8)[0], np.rint(w / (np.abs(w).max(0) / np.float32(127))))


def test_rows_of_an_embedding() -> None:
    table = normal(20, 8)
    result, _ = quantized(model([Node.of("Gather", ["w", "y"], ["z"])], w=table), search=False)
    assert operators(result) == ["Gather", "Cast", "Gather", "Mul"]
    codes, scales = constants(result, np.int8)[0], constants(result, np.float32)[0]
    assert scales.shape == (20, 1)
    assert np.abs(codes * scales - table).max() <= scales.max() / 2 * 1.0001


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolution(rank: int) -> None:
    w, bias = normal(6, 2, *[3] * rank), normal(6)
    node = Node.of("Conv", ["x", "w", "b"], ["z"], group=3, pads=[1] * 2 * rank)
    result, _ = quantized(model([node], w=w, b=bias), search=False)
    assert operators(result) == ["DynamicQuantizeLinear", "ConvInteger", "Mul", "Cast", "Mul", "Add"]
    assert result.nodes[1].get("group") == 3
    scales = (np.abs(w.reshape(6, -1)).max(1) / np.float32(127)).reshape(6, *[1] * rank)
    found = constants(result, np.float32)
    assert any(np.array_equal(each, scales) for each in found)
    assert any(np.array_equal(each, bias.reshape(scales.shape)) for each in found)
    np.testing.assert_array_equal(constants(result, np.int8)[0], np.rint(w / scales[:, None]))


def test_lstm() -> None:
    w, r = normal(2, 32, 5), normal(2, 32, 8)
    node = Node.of("LSTM", ["x", "w", "r"], ["z", "h"], direction="bidirectional", hidden_size=8)
    result, _ = quantized(model([node], w=w, r=r), search=False)
    assert operators(result) == ["com.microsoft.DynamicQuantizeLSTM"]
    (lstm,) = result.nodes
    assert len(lstm.inputs) == 12
    assert lstm.outputs == ("z", "h")
    scales = np.abs(w).max(2) / np.float32(127)
    np.testing.assert_array_equal(result.initializers[lstm.inputs[8]], scales)
    np.testing.assert_array_equal(
        result.initializers[lstm.inputs[1]], np.rint(w / scales[..., None]).transpose(0, 2, 1)
    )


def test_weights_that_are_other_views_of_constants() -> None:
    """As converters write them: in Constant nodes, reshaped, transposed; the nodes that made them go."""
    w = normal(4, 6)
    nodes = [
        Node.of("Constant", [], ["c"], value=Tensor.of("", w)),
        Node.of("Transpose", ["c"], ["t"]),
        Node.of("Constant", [], ["s"], value_ints=[-1, 2]),
        Node.of("Reshape", ["t", "s"], ["r"]),
        Node.of("MatMul", ["x", "r"], ["z"]),
    ]
    result, _ = quantized(model(nodes), search=False)
    assert operators(result) == ["DynamicQuantizeLinear", "MatMulInteger", "Mul", "Cast", "Mul"]
    matrix = w.T.reshape(-1, 2)
    np.testing.assert_array_equal(
        constants(result, np.int8)[0], np.rint(matrix / (np.abs(matrix).max(0) / np.float32(127)))
    )


@pytest.mark.parametrize(
    ("node", "tensors", "options", "reason"),
    [
        (Node.of("MatMul", ["x", "y"], ["z"]), {}, {}, "dynamic weight"),
        (Node.of("MatMul", ["w", "x"], ["z"]), {"w": normal(4, 4)}, {}, "left operand"),
        (Node.of("MatMul", ["x", "w"], ["z"]), {"w": normal(4, 4).astype(np.float16)}, {}, "float16"),
        (Node.of("MatMul", ["x", "w"], ["z"]), {"w": normal(4, 4).astype(ml_dtypes.bfloat16)}, {}, "bfloat16"),
        (Node.of("MatMul", ["x", "w"], ["z"]), {"w": np.full((2, 2), np.inf, "f")}, {}, "not finite"),
        (Node.of("MatMul", ["x", "w"], ["z"]), {"w": normal(70000, 1)}, {}, "overflow"),
        (Node.of("MatMul", ["x", "w"], ["z"]), {"w": normal(0, 4)}, {}, "empty"),
        (Node.of("MatMul", ["x", "w"], ["z"]), {"w": normal(4, 4)}, {"exclude_operators": ["MatMul"]}, "excluded"),
        (Node.of("MatMul", ["x", "w"], ["z"]), {"w": normal(4, 4)}, {"exclude_nodes": ["z*"]}, "excluded"),
        (Node.of("Gather", ["w", "y"], ["z"]), {"w": normal(4)}, {}, "too short"),
        (Node.of("LSTM", ["x", "w", "w"], ["z"], layout=1), {"w": normal(1, 4, 1)}, {}, "layout"),
        (Node.of("GRU", ["x", "w", "w"], ["z"]), {"w": normal(1, 3, 1)}, {}, "no kernel"),
    ],
)  # fmt: skip
def test_reasons_for_float(node: Node, tensors: Any, options: Any, reason: str) -> None:
    source = model([node], **tensors)
    result, (report,) = quantized(source, **options)
    assert result is source
    assert report.action == "float"
    assert reason in report.reason


def test_raises_the_opset_to_11() -> None:
    conv = Node.of("Conv", ["x", "w"], ["z"])
    result, (report,) = quantized(model([conv], opset=8, w=normal(2, 2, 1)))
    assert report.is_quantized
    assert result.opset == 11
    # Clip had its limits in attributes.
    clipped = model([conv, Node.of("Clip", ["z"], ["c"], min=0.0)], opset=8, w=normal(2, 2, 1))
    result, (report,) = quantized(clipped)
    assert result is clipped
    assert "needs opset 11: node c: Clip" in report.reason
    assert report.reason.endswith("lowbit onnx optimize IN OUT --opset 11")
    nothing = model([Node.of("MatMul", ["x", "y"], ["z"])], opset=8)
    assert quantized(nothing)[0] is nothing


def test_embeddings_need_no_opset() -> None:
    nodes = [Node.of("Gather", ["w", "y"], ["z"]), Node.of("Clip", ["z"], ["c"], min=0.0)]
    result, (report,) = quantized(model(nodes, opset=9, w=normal(9, 8)))
    assert report.is_quantized
    assert result.opset == 9


def test_old_files_lose_the_inputs_of_weights() -> None:
    result, _ = quantized(model([Node.of("MatMul", ["x", "w"], ["z"])], ir_version=3, opset=11, w=normal(8, 8)))
    assert [value.name for value in result.graph.inputs] == ["x"]


def test_search() -> None:
    w = RNG.standard_t(3, (64, 50)).astype(np.float32)
    plain, searched = quantize_channels(w, (0,), False), quantize_channels(w, (0,), True)
    assert plain is not None
    assert searched is not None
    errors = [np.square(found.codes(w) * found.scales - w).sum(0) for found in (plain, searched)]
    assert (errors[1] <= errors[0]).all()
    assert searched.error < plain.error
    for factor in (1.02, 1, 0.975, 0.95, 0.9, 0.85, 0.8, 0.7):  # no cut of the largest value is better
        codes = np.clip(np.rint(w / (plain.scales * np.float32(factor))), -127, 127)
        scales = (codes * w).sum(0) / np.square(codes).sum(0)
        assert (errors[1] <= 1.00001 * np.square(codes * scales - w).sum(0)).all()


def test_an_empty_weight_has_scales() -> None:
    for shape in ((0, 3), (3, 0)):
        found = quantize_channels(np.zeros(shape, np.float32), (0,), True)
        assert found is not None
        assert (found.scales.shape, found.codes(np.zeros(shape)).shape, found.error) == ((1, shape[1]), shape, 0)


def test_public(tmp_path: Path) -> None:
    lowbit.onnx.write(tmp_path / "m.onnx", model([Node.of("MatMul", ["x", "w"], ["z"])], w=normal(64, 64)))
    report = lowbit.onnx.quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", mode="dynamic")
    assert report.bytes_after == (tmp_path / "q.onnx").stat().st_size < 0.5 * report.bytes_before
    assert [node.action for node in report.nodes] == ["int8 per channel"]
