"""The graphs of mode "static" and their parameters, against NumPy. tests/oracle runs them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_networks as networks
import pytest

import lowbit
from lowbit.onnx import Model, Node, NodeReport, OnnxOptions, Tensor, Value
from lowbit.onnx.channel_values import ChannelValues
from lowbit.onnx.opsets import raised
from lowbit.onnx.ranges import affine
from lowbit.onnx.rewriting import Scope
from lowbit.onnx.static_nodes import Calibrated, Rewriting
from lowbit.onnx.static_plan import make_plan, ranged

Array = npt.NDArray[Any]
LOW, HIGH = -2.0, 3.0


def rewritten(
    model: Model,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    channels: Any = None,
    matrices: Sequence[str] = (),
    **given: Any,
) -> tuple[Model, dict[str, NodeReport]]:
    """The model that results if calibration finds these ranges, LOW to HIGH for other values, 0 to HIGH after Relu."""
    options = OnnxOptions(mode="static", **given)
    scope = Scope(model)
    scope.enter(model.graph)
    plan = make_plan(model, options, scope, {}, matrices)
    makers = {node.outputs[0]: node.op_type for node in model.nodes}
    found = {}
    for name in ranged(plan, scope):
        usual = (0.0 if makers.get(name) == "Relu" else LOW, HIGH)
        low, high = (ranges or {}).get(name, usual)
        found[name] = affine(low, high, options.activations, options.symmetric_activations)
    changed, reports = Rewriting(model, options, Calibrated(plan, scope, found, channels or {})).run()
    return changed, {report.name: report for report in reports}


def operators(model: Model) -> Counter[str]:
    return Counter(node.operator for node in model.nodes)


def node_of(model: Model, operator: str, at: int = 0) -> Node:
    return [node for node in model.nodes if node.operator == operator][at]


def maker(model: Model, value: str) -> Node:
    (node,) = (node for node in model.nodes if value in node.outputs)
    return node


def readers(model: Model, value: str) -> list[Node]:
    return [node for node in model.nodes if value in node.inputs]


def array(model: Model, name: str) -> Array:
    return model.initializers[name]


def one_node(operator: str, weight: Array | None, *more: Array, opset: int = 17, **attributes: Any) -> Model:
    """A network of one product."""
    net = networks.Network()
    names = [net.constant(f"w{at}", each) for at, each in enumerate([weight, *more]) if each is not None]
    net.add(operator, ["x", *names], "y", **attributes)
    return net.model([Value.of("x", np.float32)], [Value.of("y", np.float32)], opset)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_qdq_of_a_convolutional_network() -> None:
    model, reports = rewritten(networks.conv_network())
    found = operators(model)
    assert found["Conv"] == 4
    assert "Relu" not in found
    assert {report.action for report in reports.values() if report.operator == "Conv"} == {"int8 per channel, uint8"}
    assert all(report.is_quantized for report in reports.values())
    for node in model.nodes:
        if node.op_type in ("Conv", "Gemm"):
            assert [maker(model, name).op_type for name in node.inputs] == ["DequantizeLinear"] * 3
        if node.op_type in ("Conv", "Add"):
            assert [reader.op_type for reader in readers(model, node.outputs[0])] == ["QuantizeLinear"]
    assert node_of(model, "Gemm").outputs == ("y",)  # what is read as float is not rounded again


def test_moving_operators_share_the_parameters() -> None:
    model, reports = rewritten(networks.conv_network())
    pool = node_of(model, "MaxPool")
    before, after = maker(model, pool.inputs[0]), readers(model, pool.outputs[0])[0]
    assert before.inputs[1:] == after.inputs[1:]
    assert "p1/MaxPool" not in reports


@pytest.mark.parametrize("per_channel", [True, False])
def test_parameters_of_a_product(per_channel: bool) -> None:
    weight, bias = normal(5, 3, 2, 2), normal(5, seed=1)
    weight[2] *= 20
    model, reports = rewritten(one_node("Conv", weight, bias), search=False, per_channel=per_channel)
    conv = node_of(model, "Conv")
    x, w, b = (maker(model, name) for name in conv.inputs)
    x_scale = array(model, x.inputs[1])
    assert x_scale == np.float32((HIGH - LOW) / 255)
    assert array(model, x.inputs[2]) == round(-LOW / (HIGH - LOW) * 255)
    scale = np.abs(weight).max(axis=(1, 2, 3)) / 127 if per_channel else np.abs(weight).max() / 127
    np.testing.assert_allclose(array(model, w.inputs[1]), scale, rtol=1e-6)
    wide = array(model, w.inputs[1]).reshape(-1, 1, 1, 1)
    codes = array(model, w.inputs[0])
    np.testing.assert_array_equal(codes, np.rint(weight / wide))
    assert codes.dtype == np.int8
    assert not array(model, w.inputs[2]).any()
    np.testing.assert_allclose(array(model, b.inputs[1]), array(model, w.inputs[1]) * x_scale, rtol=1e-6)
    np.testing.assert_array_equal(array(model, b.inputs[0]), np.rint(bias / array(model, b.inputs[1])))
    assert array(model, b.inputs[0]).dtype == np.int32
    assert [w.get("axis"), b.get("axis")] == ([0, 0] if per_channel else [None, None])
    error = np.linalg.norm(codes * wide - weight) / np.linalg.norm(weight)
    assert reports["y/Conv"].error == pytest.approx(error, rel=1e-3)
    assert (reports["y/Conv"].bytes_before, reports["y/Conv"].bytes_after) == (240, 60 + (20 if per_channel else 4))


def test_a_bias_that_int32_does_not_hold_widens_its_channel() -> None:
    weight, bias = np.full((2, 4), 1e-6, np.float32), np.float32([0, 4000])
    model, _ = rewritten(one_node("Gemm", weight, bias, transB=1))
    b = maker(model, node_of(model, "Gemm").inputs[2])
    restored = array(model, b.inputs[0]) * array(model, b.inputs[1]).astype(np.float64)
    np.testing.assert_allclose(restored, bias, rtol=1e-6)


@pytest.mark.parametrize("trans_b", [0, 1])
def test_factors_of_gemm_are_in_weight_and_bias(trans_b: int) -> None:
    weight, bias = normal(6, 6), normal(6, seed=1)
    factors = {"alpha": 2.0, "beta": 0.5, "transB": trans_b}
    model, _ = rewritten(one_node("Gemm", weight, bias, **factors))
    gemm = node_of(model, "Gemm")
    assert {*gemm.attributes} == {"transB"}
    _, w, b = (maker(model, name) for name in gemm.inputs)
    scale = array(model, w.inputs[1])
    wide = scale[:, None] if trans_b else scale
    np.testing.assert_allclose(array(model, w.inputs[0]) * wide, 2 * weight, atol=0.02 * np.abs(2 * weight).max())
    restored = array(model, b.inputs[0]) * array(model, b.inputs[1])
    np.testing.assert_allclose(restored, bias / 2, atol=float(array(model, b.inputs[1]).max()))


def test_qoperator() -> None:
    model, reports = rewritten(networks.conv_network(), format="QOperator")
    found = operators(model)
    microsoft = {f"com.microsoft.{name}": 1 for name in ("QLinearAdd", "QLinearGlobalAveragePool", "QGemm")}
    assert found == {"QuantizeLinear": 1, "QLinearConv": 4, "MaxPool": 1, "Flatten": 1, **microsoft}
    assert model.opsets["com.microsoft"] == 1
    assert all(report.is_quantized for report in reports.values())
    conv = node_of(model, "QLinearConv")
    assert len(conv.inputs) == 9
    assert array(model, conv.inputs[8]).dtype == np.int32
    assert len(node_of(model, "com.microsoft.QGemm").inputs) == 7  # without a scale of the result: float


def test_activations_of_16_bits_use_the_operators_that_the_opset_has() -> None:
    for opset, domain in ((17, "com.microsoft"), (21, "")):
        model, _ = rewritten(networks.mlp(opset), activations="int16")
        (x,) = (node for node in readers(model, "x") if node.op_type == "QuantizeLinear")
        assert x.domain == domain
        assert array(model, x.inputs[2]).dtype == np.int16
        assert model.opset == opset


def test_scales_for_channels_use_the_operators_that_the_opset_has() -> None:
    for opset, domain in ((11, "com.microsoft"), (13, "")):
        model, _ = rewritten(networks.conv_network(opset))
        conv = node_of(model, "Conv")
        assert [maker(model, name).domain for name in conv.inputs] == ["", domain, domain]
        model, _ = rewritten(networks.conv_network(opset), per_channel=False)
        assert [maker(model, name).domain for name in node_of(model, "Conv").inputs] == ["", "", ""]


def test_a_clip_stays_where_the_range_goes_further() -> None:
    net = networks.Network()
    net.constant("w", normal(4, 3, 1, 1))
    net.constant("zero", np.array(0, np.float32))
    net.constant("six", np.array(6, np.float32))
    net.add("Conv", ["x", "w"], "c")
    net.add("Clip", ["c", "zero", "six"], "r")
    net.add("Conv", ["r", net.constant("w2", normal(2, 4, 1, 1))], "y")
    model = net.model([Value.of("x", np.float32)], [Value.of("y", np.float32)])
    assert "Clip" not in operators(rewritten(model, {"r": (0, 5.5)})[0])
    assert "Clip" not in operators(rewritten(model, {"r": (0, 6)})[0])
    assert operators(rewritten(model, {"r": (-6, 6)})[0])["Clip"] == 1
    assert operators(rewritten(model, {"r": (0, 5.5)}, symmetric_activations=True)[0])["Clip"] == 1


def test_a_relu_stays_where_the_range_is_symmetric() -> None:
    for format in ("QDQ", "QOperator"):
        options = {"activations": "int8", "symmetric_activations": True, "format": format}
        model, _ = rewritten(networks.conv_network(), **options)
        assert operators(model)["Relu"] == 4
        relu = node_of(model, "Relu")
        before, after = maker(model, relu.inputs[0]), readers(model, relu.outputs[0])[0]
        assert before.inputs[1:] == after.inputs[1:]


def test_operators_around_products_stay_float() -> None:
    model, reports = rewritten(networks.transformer())
    assert reports["l0_q/Add"].reason == "its inputs are float"
    found = operators(model)
    assert found["MatMul"] == 17
    assert found["LayerNormalization"] == 4
    assert reports["l0_qk/MatMul"].action == "uint8"
    for node in model.nodes:
        if node.op_type == "MatMul":
            assert [maker(model, name).op_type for name in node.inputs] == ["DequantizeLinear"] * 2
    net = networks.Network()
    net.add("Conv", ["x", net.constant("w", normal(4, 3, 1, 1))], "c")
    net.add("Sigmoid", ["c"], "y")
    last = net.model([Value.of("x", np.float32)], [Value.of("y", np.float32)])
    assert rewritten(last)[1]["y/Sigmoid"].reason == "no quantized node reads its result"


def added_to(operator: str, bias: Array, **attributes: Any) -> Model:
    net = networks.Network()
    net.constant("w", normal(3, 4) if operator == "MatMul" else normal(4, 3, 2, 2))
    net.add("Add", [net.constant("b", bias), net.add(operator, ["x", "w"], "h", **attributes)], "a")
    net.add("Relu", ["a"], "y")
    return net.model([Value.of("x", np.float32)], [Value.of("y", np.float32)])


@pytest.mark.parametrize("format", ["QDQ", "QOperator"])
def test_a_constant_that_is_added_for_each_channel_is_a_bias(format: str) -> None:
    bias = normal(4, seed=1)
    model, reports = rewritten(added_to("Conv", bias.reshape(1, 4, 1, 1)), format=format)
    (codes,) = (values for values in (array(model, name) for name in model.initializers) if values.dtype == "i4")
    scales = array(model, "w_scale").astype(np.float64) * (HIGH - LOW) / 255
    np.testing.assert_allclose(codes * scales, bias, atol=float(scales.max()))
    assert not {"Add", "Relu", "com.microsoft.QLinearAdd"} & {*operators(model)}
    assert {*reports} == {"h/Conv"}
    model, reports = rewritten(added_to("MatMul", bias), format=format, matrices=["x"])
    assert operators(model)["Gemm" if format == "QDQ" else "com.microsoft.QGemm"] == 1
    assert operators(model)["Relu"] == 1  # of a float
    assert reports["h/MatMul"].action == "int8 per channel, uint8"


@pytest.mark.parametrize(
    ("operator", "bias", "matrices"),
    [
        ("MatMul", normal(4), []),
        ("MatMul", normal(3, 4), ["x"]),
        ("Conv", normal(4), []),
        ("Conv", normal(2, 1, 1), []),
    ],
)
def test_other_constants_are_added(operator: str, bias: Array, matrices: list[str]) -> None:
    model, _ = rewritten(added_to(operator, bias), matrices=matrices, bias_correction=False)
    assert operators(model)["Add"] == operators(model)[operator] == 1


@pytest.mark.parametrize("constant", [np.float32([-np.inf, 0, 0, 0]), np.zeros((1, 0, 2, 2), np.float32)])
def test_constants_without_a_range_keep_their_node_float(constant: Array) -> None:
    net = networks.Network()
    net.constant("c", constant)
    net.add("Conv", ["x", net.constant("w", normal(4, 3, 1, 1))], "h")
    net.add("Concat", ["h", "c"], "a", axis=1)
    net.add("Conv", ["a", net.constant("v", normal(2, 4, 1, 1))], "y")
    model, reports = rewritten(net.model([Value.of("x", np.float32)], [Value.of("y", np.float32)]))
    assert node_of(model, "Concat").inputs == ("h", "c")
    assert {*reports} == {"h/Conv", "y/Conv"}


def test_no_bias_correction() -> None:
    channels = ChannelValues(-1)
    channels.add(normal(20, 8) + 3)
    model, _ = rewritten(one_node("MatMul", normal(8, 5)), channels={("x", -1): channels}, bias_correction=False)
    assert "Add" not in operators(model)


def test_a_table_has_a_scale_for_each_row() -> None:
    table = networks.transformer().initializers["table"] * np.linspace(0.1, 5, networks.VOCABULARY)[:, None]
    net = networks.Network()
    net.add("Gather", [net.constant("table", table.astype(np.float32)), "ids"], "y")
    model, reports = rewritten(net.model([Value.of("ids", np.int64)], [Value.of("y", np.float32)]), search=False)
    codes, scales = (array(model, node.inputs[0]) for node in model.nodes if node.op_type == "Gather")
    np.testing.assert_allclose(scales[:, 0], np.abs(table).max(axis=1) / 127, rtol=1e-6)
    np.testing.assert_array_equal(codes, np.rint(table.astype(np.float32) / scales))
    assert reports["y/Gather"].action == "int8 per row"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"exclude_nodes": ["c1/*"]}, "node is excluded"),
        ({"exclude_operators": ["Conv"]}, "operator Conv is excluded"),
        ({"include_operators": ["Gemm"]}, "operator Conv is not included"),
    ],
)
def test_excluded_nodes(options: dict[str, Any], reason: str) -> None:
    model, reports = rewritten(networks.conv_network(), **options)
    assert reports["c1/Conv"] == NodeReport("c1/Conv", "Conv", "float", reason)
    assert node_of(model, "Conv").inputs == ("x", "w1", "b1")
    assert reports["y/Gemm"].is_quantized


def net_with(operator: str, inputs: Sequence[str], constants: Mapping[str, Array], **attributes: Any) -> Model:
    net = networks.Network()
    for name, values in constants.items():
        net.constant(name, values)
    net.add(operator, inputs, "y", **attributes)
    given = [Value.of(name, np.float32) for name in inputs if name not in constants]
    return net.model(given, [Value.of("y", np.float32)])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (net_with("Conv", ["x", "w"], {}), "dynamic weight"),
        (net_with("Conv", ["x", "w", "b"], {"w": normal(2, 3, 1, 1)}), "the bias is dynamic"),
        (net_with("Gemm", ["x", "w", "b"], {"w": normal(3, 2), "b": normal(4, 2)}), "the bias has the shape [4, 2]"),
        (net_with("Gemm", ["x", "w", "b"], {"w": normal(3, 2), "b": normal(2, 1)}), "the bias has the shape [2, 1]"),
        (net_with("MatMul", ["w", "x"], {"w": normal(3, 2)}), "the weight is the left operand"),
        (net_with("MatMul", ["x", "w"], {"w": normal(3)}), "the weight is a vector"),
        (net_with("MatMul", ["v", "w"], {"v": normal(3, 3), "w": normal(3, 3)}), "its inputs are constant"),
        (net_with("LSTM", ["x", "w", "r"], {"w": normal(1, 8, 2), "r": normal(1, 8, 2)}, hidden_size=2), "no static"),
        (net_with("Gather", ["w", "x"], {"w": normal(3, 2)}, axis=1), "only tables of rows are quantized"),
        (net_with("Gather", ["w", "x"], {"w": normal(3, 2).astype(np.float16)}), "the table is float16"),
    ],
)
def test_reasons(model: Model, reason: str) -> None:
    changed, reports = rewritten(model)
    (report,) = reports.values()
    assert report.action == "float"
    assert report.reason.startswith(reason)
    assert [node.outputs for node in changed.nodes] == [node.outputs for node in model.nodes]


def test_a_transposed_convolution_has_no_form_in_qoperator() -> None:
    model = one_node("ConvTranspose", normal(3, 4, 2, 2), normal(8), group=2)
    assert rewritten(model, format="QOperator")[1]["y/ConvTranspose"].reason == "format QOperator has no ConvTranspose"
    changed, reports = rewritten(model)
    assert reports["y/ConvTranspose"].is_quantized
    bias = maker(changed, node_of(changed, "ConvTranspose").inputs[2])
    assert array(changed, bias.inputs[1]).shape == (8,)


def test_nodes_of_subgraphs_are_reported() -> None:
    inner = networks.mlp().graph
    net = networks.Network()
    net.nodes.append(Node.of("If", ["c"], ["y"], then_branch=inner, else_branch=inner))
    _, reports = rewritten(net.model([Value.of("c", np.bool_)], [Value.of("y", np.float32)]))
    assert {report.reason for report in reports.values()} == {"values in a subgraph cannot be observed"}


def test_a_value_that_a_subgraph_reads_keeps_its_name() -> None:
    base = networks.conv_network()
    inner = networks.Network()
    inner.add("Identity", ["r1"], "inner")
    graph = inner.model([], [Value.of("inner", np.float32)]).graph
    branch = Node.of("If", ["c"], ["z"], then_branch=graph, else_branch=graph)
    outputs = (*base.outputs, Value.of("z", np.float32))
    model = replace(base, graph=replace(base.graph, nodes=(*base.nodes, branch), outputs=outputs))
    changed, _ = rewritten(model)
    assert maker(changed, "r1").op_type == "DequantizeLinear"


def test_old_opsets() -> None:
    assert raised(networks.conv_network(8), 10).opset == 10
    assert raised(networks.conv_network(17), 10).opset == 17
    old = replace(net_with("Upsample", ["x", "w"], {"w": normal(4)}), opsets={"": 8})
    with pytest.raises(
        lowbit.UnsupportedError, match=r"node y/Upsample: Upsample .* opset 8 .*expected opset 10"
    ) as error:
        raised(old, 10)
    assert str(error.value).endswith("found 8: raise it with: lowbit onnx optimize IN OUT --opset 10")


def test_initializers_of_old_files_are_no_inputs() -> None:
    net = networks.Network()
    net.add("MatMul", ["x", net.constant("w", normal(3, 3))], "y")
    model = net.model([Value.of("x", np.float32), Value.of("w", np.float32)], [Value.of("y", np.float32)], 11, 3)
    changed, _ = rewritten(model)
    assert changed.ir_version == 4
    assert [value.name for value in changed.graph.inputs] == ["x"]


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
@pytest.mark.parametrize("format", ["QDQ", "QOperator"])
def test_bias_correction_keeps_the_mean(operator: str, format: str) -> None:
    weight, means = normal(8, 5), np.linspace(1, 3, 8)
    seen = ChannelValues(-1)
    seen.add(np.stack([means - 0.5, means + 0.5]))
    attributes = {"transB": 1} if operator == "Gemm" else {}
    stored = np.ascontiguousarray(weight.T) if attributes else weight
    model, _ = rewritten(
        one_node(operator, stored, **attributes), channels={("x", -1): seen}, format=format, bias_correction=True
    )
    codes = next(name for name in model.initializers if name.startswith("w0_quantized"))
    scales = array(model, "w0_scale")
    restored = array(model, codes) * (scales[:, None] if attributes else scales)
    restored = restored.T if attributes else restored
    if operator == "MatMul":
        correction = array(model, "y/MatMul_correction")
    else:
        bias = next(name for name in model.initializers if name.startswith("y/Gemm_bias_quantized"))
        correction = array(model, bias) * scales.astype(np.float64) * float(array(model, "x_scale"))
    step = float(scales.max()) * (HIGH - LOW) / 255
    np.testing.assert_allclose(means @ restored + correction, means @ weight, atol=step)
    assert np.abs(means @ restored - means @ weight).max() > 2 * step


def test_weights_that_are_not_finite() -> None:
    weight = normal(3, 3)
    weight[1, 1] = np.nan
    with pytest.raises(lowbit.InputError, match="weight w0: values that are not finite") as raised:
        rewritten(one_node("MatMul", weight))
    assert raised.value.tensor == "w0"


def test_options_of_static() -> None:
    for options, message in (
        ({"format": "QOperator", "activations": "int16"}, "QOperator has no operators for int16: use format QDQ"),
        ({"activations": "int4"}, "activations: expected one of uint8, int8, uint16, int16, got 'int4'"),
        ({"percentile": 10}, "percentile: expected 50 to 100, got 10"),
        ({"smooth": 2}, "smooth: expected 0 to 1, got 2"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
    ):
        with pytest.raises(lowbit.InputError, match=message):
            OnnxOptions(mode="static", **options)  # type: ignore[arg-type]


def test_tensors_are_not_kept_twice() -> None:
    """A weight that two products use is stored once."""
    net = networks.Network()
    net.constant("w", normal(4, 4))
    net.add("MatMul", [net.add("MatMul", ["x", "w"], "h"), "w"], "y")
    model, reports = rewritten(net.model([Value.of("x", np.float32)], [Value.of("y", np.float32)]))
    assert sum(tensor.dtype == np.int8 and tensor.size == 16 for tensor in model.graph.tensors.values()) == 1
    assert [report.bytes_after for report in reports.values()] == [16 + 16, 0]


def test_no_weight_stays_float() -> None:
    model, _ = rewritten(networks.conv_network())
    assert not [t for t in model.graph.tensors.values() if t.dtype == np.float32 and t.size > 32]
    assert isinstance(next(iter(model.graph.tensors.values())), Tensor)
