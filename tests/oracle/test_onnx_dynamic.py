"""Mode "dynamic" against float models and against onnxruntime's own quantizer, on onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

import lowbit
from lowbit.onnx.dynamic import dynamic
from lowbit.onnx.options import OnnxOptions
from lowbit.onnx.report import NodeReport

pytestmark = pytest.mark.oracle

DATA = Path(__file__).parents[1] / "data" / "onnx"

Array = npt.NDArray[Any]
Feeds = dict[str, Array]


class Maker:
    """A small model, and inputs for it."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def weight(self, *shape: int, spread: float = 1.0) -> str:
        """Weights of channels that differ in size by a factor of up to 10 ** spread, as those of real networks."""
        values = self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        values *= 10 ** self.rng.uniform(-spread, 0, (shape[0], *[1] * (len(shape) - 1)))
        return self.constant(values.astype(np.float32))

    def constant(self, array: Array) -> str:
        name = f"w{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op_type: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> str:
        names = [f"{op_type.lower()}{len(self.nodes)}_{i}" for i in range(outputs)]
        name = f"node{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, names, name=name, domain=domain, **attributes))
        return names[0]

    def save(self, path: Path, feeds: Feeds, *outputs: str, opset: int = 17) -> tuple[Path, Feeds]:
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in feeds.items()
        ]
        results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "graph", inputs, results, self.tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        onnx.save(onnx.shape_inference.infer_shapes(model), path)
        return path, feeds

    def normal(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape).astype(np.float32) + np.float32(0.3)


def convolutional(path: Path) -> tuple[Path, Feeds]:
    make = Maker()
    x = make.node("Conv", "x", make.weight(16, 3, 3, 3), make.weight(16), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    x = make.node("Relu", x)
    x = make.node("Conv", x, make.weight(16, 4, 3, 3), group=4, strides=[2, 2], auto_pad="SAME_UPPER")
    x = make.node("Relu", x)
    x = make.node("Conv", x, make.weight(16, 1, 3, 3), make.weight(16), group=16, dilations=[2, 2])
    return make.save(path, {"x": make.normal(2, 3, 20, 20)}, x)


def one_and_three_dimensions(path: Path) -> tuple[Path, Feeds]:
    make = Maker()
    a = make.node("Conv", "a", make.weight(16, 8, 5), make.weight(16), pads=[2, 2])
    b = make.node("Conv", "b", make.weight(16, 4, 3, 3, 3), make.weight(16))
    return make.save(path, {"a": make.normal(2, 8, 50), "b": make.normal(1, 4, 9, 9, 9)}, a, b)


def multilayer(path: Path) -> tuple[Path, Feeds]:
    make = Maker()
    x = make.node("Gemm", "x", make.weight(64, 48), make.weight(48))
    x = make.node("Gemm", make.node("Relu", x), make.weight(96, 48), make.weight(96), transB=1)
    return make.save(path, {"x": make.normal(200, 64)}, x)


def gemms(path: Path) -> tuple[Path, Feeds]:
    """Gemm in all forms; onnxruntime's quantizer leaves most of them float."""
    make = Maker()
    outputs = []
    for trans_a in (0, 1):
        for trans_b in (0, 1):
            for alpha, beta, bias in ((1.0, 1.0, (48,)), (0.5, 2.0, (1, 48)), (1.0, 0.5, ()), (-2.0, 1.0, None)):
                b = make.weight(48, 64) if trans_b else make.constant(make.normal(64, 48))
                c = [] if bias is None else [make.constant(make.normal(*bias))]
                attributes = {"transA": trans_a, "transB": trans_b, "alpha": alpha, "beta": beta}
                outputs.append(make.node("Gemm", "at" if trans_a else "a", b, *c, **attributes))
    a = make.normal(40, 64)
    return make.save(path, {"a": a, "at": np.ascontiguousarray(a.T)}, *outputs)


def attention(path: Path) -> tuple[Path, Feeds]:
    make = Maker()
    heads = []
    for _ in range(3):
        x = make.node("MatMul", "x", make.constant(make.normal(64, 64) / 8))
        heads.append(make.node("Add", x, make.constant(make.normal(64))))
    scores = make.node("MatMul", heads[0], make.node("Transpose", heads[1], perm=[0, 2, 1]))
    scores = make.node("Softmax", make.node("Mul", scores, make.constant(np.array(0.02, np.float32))), axis=-1)
    x = make.node("MatMul", make.node("MatMul", scores, heads[2]), make.constant(make.normal(64, 64) / 8))
    x = make.node("Relu", make.node("Add", x, "x"))
    return make.save(path, {"x": make.normal(3, 24, 64)}, make.node("MatMul", x, make.constant(make.normal(64, 128))))


def recurrent(path: Path) -> tuple[Path, Feeds]:
    make = Maker()
    outputs, size = [], 24
    for direction, count in (("forward", 1), ("reverse", 1), ("bidirectional", 2)):
        weights = [make.constant(make.normal(count, 4 * size, n) / 4) for n in (16, size)]
        more = [make.constant(make.normal(count, 8 * size) / 4), "", "", ""]
        if direction == "reverse":
            more.append(make.constant(make.normal(count, 3 * size) / 4))
        outputs.append(make.node("LSTM", "x", *weights, *more, direction=direction, hidden_size=size, outputs=3))
    return make.save(path, {"x": make.normal(20, 4, 16)}, *outputs)


def embeddings(path: Path) -> tuple[Path, Feeds]:
    make = Maker()
    ids = make.rng.integers(-500, 500, (2, 300))
    return make.save(
        path,
        {"ids": ids, "columns": make.rng.integers(0, 300, 40)},
        make.node("Gather", make.weight(500, 64), "ids"),
        make.node("Gather", make.constant(make.normal(64, 300)), "columns", axis=1),
    )


def language(path: Path) -> tuple[Path, Feeds]:
    """An embedding that is the output matrix, too."""
    make = Maker()
    table = make.weight(500, 64, spread=0.3)
    x = make.node("Gather", table, "ids")
    x = make.node("Add", x, make.node("Relu", make.node("MatMul", x, make.constant(make.normal(64, 64) / 8))))
    logits = make.node("MatMul", x, make.node("Transpose", table, perm=[1, 0]))
    return make.save(path, {"ids": make.rng.integers(0, 500, (4, 100))}, logits)


MODELS = [
    convolutional, one_and_three_dimensions, multilayer, attention, recurrent, embeddings, language,
]  # fmt: skip


def run(path: Path | bytes, feeds: Feeds, basic: bool = False) -> list[Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if basic:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = path if isinstance(path, bytes) else str(path)
    results: list[Array] = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"]).run(None, feeds)
    return results


def errors(expected: list[Array], found: list[Array]) -> list[float]:
    for a, b in zip(expected, found, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
    return [float(np.linalg.norm(a - b) / np.linalg.norm(a)) for a, b in zip(expected, found, strict=True)]


def quantized(source: Path, target: Path, **options: Any) -> list[NodeReport]:
    model, report = dynamic(lowbit.onnx.open(source), OnnxOptions(mode="dynamic", **options))
    lowbit.onnx.write(target, model)
    onnx.checker.check_model(str(target), full_check=True)
    return report


def reference(source: Path, target: Path) -> None:
    quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8)


def total(values: list[float]) -> float:
    return float(np.linalg.norm(values))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_error_is_not_larger_than_that_of_onnxruntime(build: Any, fused: bool, tmp_path: Path) -> None:
    source, feeds = build(tmp_path / "float.onnx")
    ours, theirs = tmp_path / "ours.onnx", tmp_path / "theirs.onnx"
    report = quantized(source, ours, fused=fused)
    reference(source, theirs)
    expected = run(source, feeds)
    own, other = errors(expected, run(ours, feeds)), errors(expected, run(theirs, feeds))
    assert max(own) < 0.02
    assert total(own) <= total(other)
    assert {node.operator for node in report if not node.is_quantized} <= {"MatMul"}
    if sum(node.bytes_before for node in report) > 16000:
        assert ours.stat().st_size < 0.42 * source.stat().st_size


def test_embeddings_have_a_scale_for_each_row(tmp_path: Path) -> None:
    make = Maker()
    table = make.weight(500, 64, spread=2)
    source, feeds = make.save(tmp_path / "f.onnx", {"ids": np.arange(500)}, make.node("Gather", table, "ids"))
    assert 3 * per_channel(source, feeds, tmp_path, 1) < per_channel(source, feeds, tmp_path, 1, reference)


def test_channels_of_convolutions_have_a_scale_each(tmp_path: Path) -> None:
    make = Maker()
    x = make.node("Conv", "x", make.weight(64, 8, 3, 3, spread=2))
    source, feeds = make.save(tmp_path / "f.onnx", {"x": make.normal(2, 8, 20, 20)}, x)
    axes = (0, 2, 3)
    assert 3 * per_channel(source, feeds, tmp_path, axes) < per_channel(source, feeds, tmp_path, axes, reference)


def per_channel(source: Path, feeds: Feeds, folder: Path, axes: Any, quantize: Any = quantized) -> float:
    """The mean of the channels' relative errors."""
    quantize(source, folder / "quantized.onnx")
    (expected,), (found,) = run(source, feeds), run(folder / "quantized.onnx", feeds)
    lost = np.square(expected - found).sum(axes) / np.square(expected).sum(axes)
    return float(np.sqrt(lost).mean())


@pytest.mark.parametrize("fused", [False, True])
def test_gemm_in_all_forms(fused: bool, tmp_path: Path) -> None:
    source, feeds = gemms(tmp_path / "float.onnx")
    report = quantized(source, tmp_path / "q.onnx", fused=fused)
    assert all(node.is_quantized for node in report)
    assert max(errors(run(source, feeds), run(tmp_path / "q.onnx", feeds))) < 0.012


def test_the_search_makes_the_error_smaller(tmp_path: Path) -> None:
    found = []
    for search in (False, True):
        report = []
        for build in MODELS:
            source, _ = build(tmp_path / "float.onnx")
            report += quantized(source, tmp_path / "q.onnx", search=search)
        found.append([node.error for node in report if node.error is not None])
    assert all(b <= a for a, b in zip(*found, strict=True))
    assert np.mean(found[1]) < 0.98 * np.mean(found[0])


def test_the_same_without_optimizations_of_the_runtime(tmp_path: Path) -> None:
    source, feeds = language(tmp_path / "float.onnx")
    quantized(source, tmp_path / "q.onnx")
    np.testing.assert_allclose(
        run(tmp_path / "q.onnx", feeds, basic=True)[0], run(tmp_path / "q.onnx", feeds)[0], rtol=1e-4, atol=1e-4
    )


def test_branches(tmp_path: Path) -> None:
    """Both branches read a value of the graph around them, which quantizes it only later."""
    make = Maker()
    branches = []
    for name in ("then", "else"):
        inner = Maker(seed=len(name))
        inner.tensors = make.tensors
        y = inner.node("MatMul", "h", make.constant(make.normal(32, 32)))
        inner.nodes[0].output[0] = f"{name}_out"
        out = [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)]
        branches.append(helper.make_graph(inner.nodes, name, [], out))
        assert y
    make.nodes.append(helper.make_node("Relu", ["x"], ["h"]))
    x = make.node("If", "flag", then_branch=branches[0], else_branch=branches[1])
    y = make.node("MatMul", "h", make.constant(make.normal(32, 16)))
    for flag in (False, True):
        feeds = {"x": make.normal(20, 32), "flag": np.array(flag)}
        source, _ = make.save(tmp_path / "float.onnx", feeds, x, y)
        report = quantized(source, tmp_path / "q.onnx")
        assert [node.is_quantized for node in report] == [True] * 3
        assert max(errors(run(source, feeds), run(tmp_path / "q.onnx", feeds))) < 0.02


def test_mnist(tmp_path: Path) -> None:
    """A file of opset 8, whose weights are inputs, and one of them is reshaped by a node."""
    source, ours, theirs = DATA / "mnist.onnx", tmp_path / "ours.onnx", tmp_path / "theirs.onnx"
    report = quantized(source, ours)
    assert [node.is_quantized for node in report] == [True] * 3
    reference(source, theirs)
    rng = np.random.default_rng(0)
    name = lowbit.onnx.open(source).inputs[0].name
    own, other = [], []
    for _ in range(20):
        feeds = {name: rng.random((1, 1, 28, 28), np.float32)}
        expected = run(source, feeds)
        own += errors(expected, run(ours, feeds))
        other += errors(expected, run(theirs, feeds))
    assert total(own) <= total(other)
    assert ours.stat().st_size < 0.6 * theirs.stat().st_size
