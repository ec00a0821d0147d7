"""`lowbit.onnx.optimize(opset=...)`: old models raised by the converters of onnx and onnxscript, run on onnxruntime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import run as command
from onnx import TensorProto, helper
from test_onnx_dynamic import DATA, Feeds, Maker, errors, run

import lowbit
from lowbit.onnx.measuring import Comparison
from lowbit.onnx.opsets import converted

pytestmark = pytest.mark.oracle


def old(path: Path, opset: int) -> tuple[Path, Feeds]:
    """What changed between opset 7 and 13, as that opset writes it, between a convolution and products."""
    make = Maker()

    def integers(*values: int) -> str:
        return make.constant(np.array(values))

    def node(op_type: str, x: str, since: int, **attributes: list[int]) -> str:
        """Lists of integers are attributes before an opset, and inputs from it on."""
        if opset < since:
            return make.node(op_type, x, **attributes)
        return make.node(op_type, x, *(integers(*values) for values in attributes.values()))

    def upsample(x: str, mode: str) -> str:
        scales = [1.0, 1.0, 2.0, 2.0]
        if opset < 9:
            return make.node("Upsample", x, mode=mode, scales=scales)
        factors = make.constant(np.array(scales, np.float32))
        if opset == 9:
            return make.node("Upsample", x, factors, mode=mode)
        none = make.constant(np.zeros(0, np.float32))
        return make.node("Resize", x, *([none] if opset > 10 else []), factors, mode=mode)

    x = make.node("Conv", "x", make.weight(4, 3, 3, 3))
    statistics = [make.constant(np.abs(make.normal(4))) for _ in range(4)]
    x = make.node("BatchNormalization", x, *statistics)
    limits = {"min": -0.5, "max": 1.5}
    if opset < 11:
        x = make.node("Clip", x, **limits)
    else:
        x = make.node("Clip", x, *(make.constant(np.array(limit, np.float32)) for limit in limits.values()))
    x = node("Pad", x, 11, pads=[0, 0, 1, 1, 0, 0, 1, 2])
    x = node("Slice", x, 10, starts=[0, 1], ends=[8, 9], axes=[2, 3])
    x = upsample(upsample(x, "nearest"), "linear")
    x = make.node("Dropout", node("Squeeze", node("Unsqueeze", x, 13, axes=[0]), 13, axes=[0]))
    # In one dimension of all behind the first before opset 13.
    softmax = make.node("Softmax", x)
    sums = node("ReduceSum", make.node("Mul", x, softmax), 13, axes=[2])
    x = make.node(
        "Add", make.node("MatMul", sums, make.constant(make.normal(32, 64) / 8)), make.constant(make.normal(64))
    )
    x = make.node(
        "Gemm", make.node("Flatten", x), make.constant(make.normal(256, 64) / 16), make.constant(make.normal(64))
    )
    return make.save(path, {"x": make.normal(2, 3, 10, 10)}, x, opset=opset)


def one_node(path: Path, opset: int, op_type: str, *tensors: Any, **attributes: Any) -> tuple[Path, Feeds]:
    make = Maker()
    y = make.node(op_type, "x", *map(make.constant, tensors), **attributes)
    return make.save(path, {"x": make.normal(2, 4, 6, 6)}, y, opset=opset)


def raise_to(opset: int, source: Path, target: Path, **options: Any) -> lowbit.onnx.OptimizeReport:
    report = lowbit.onnx.optimize(source, target, opset=opset, **options)
    model = lowbit.onnx.open(target)
    assert (report.opset_after, model.opset) == (opset, opset)
    if report.opset_before < opset:
        assert model.ir_version >= helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    onnx.checker.check_model(str(target), full_check=True)
    return report


@pytest.mark.parametrize("after", [21, 23, 25])
@pytest.mark.parametrize("before", [7, 9, 10, 11, 13])
def test_outputs_are_equal_and_standard_blocks_fit(before: int, after: int, tmp_path: Path) -> None:
    source, feeds = old(tmp_path / "old.onnx", before)
    report = raise_to(after, source, tmp_path / "o.onnx")
    assert (report.opset_before, report.notes) == (before, [])
    expected = run(source, feeds)
    assert max(errors(expected, run(tmp_path / "o.onnx", feeds))) < 1e-6
    for bits, bound in ((4, 0.2), (2, 0.8)):
        quantized = lowbit.onnx.quantize(
            tmp_path / "o.onnx", tmp_path / "q.onnx", mode="weight-only", bits=bits, standard=True
        )
        assert len(quantized.nodes) == 2
        if bits == 2 and after < 25:
            assert {node.reason.count("lowbit onnx optimize IN OUT --opset 25") for node in quantized.nodes} == {1}
            continue
        assert quantized.kept == []
        assert max(errors(expected, run(tmp_path / "q.onnx", feeds))) < bound


def test_an_opset_that_static_refuses(tmp_path: Path) -> None:
    source, feeds = old(tmp_path / "old.onnx", 9)
    options: dict[str, Any] = {"mode": "static", "calibration": [feeds]}
    with pytest.raises(lowbit.UnsupportedError, match="lowbit onnx optimize IN OUT --opset 10"):
        lowbit.onnx.quantize(source, tmp_path / "q.onnx", **options)
    raise_to(13, source, tmp_path / "o.onnx")
    report = lowbit.onnx.quantize(tmp_path / "o.onnx", tmp_path / "q.onnx", **options)
    assert sorted(node.operator for node in report.quantized) == ["Conv", "Gemm", "Gemm"]
    assert max(errors(run(source, feeds), run(tmp_path / "q.onnx", feeds))) < 0.05


def test_initializers_that_were_inputs_are_weights(tmp_path: Path) -> None:
    """A file of IR version 3 and opset 8."""
    source = DATA / "mnist.onnx"
    raise_to(21, source, tmp_path / "o.onnx")
    feeds = {lowbit.onnx.open(source).inputs[0].name: np.random.default_rng(0).random((1, 1, 28, 28), np.float32)}
    assert max(errors(run(source, feeds), run(tmp_path / "o.onnx", feeds))) < 1e-6
    report = lowbit.onnx.quantize(tmp_path / "o.onnx", tmp_path / "q.onnx", mode="dynamic")
    assert report.kept == []


def test_subgraphs(tmp_path: Path) -> None:
    """Softmax in a branch means something else from opset 13 on."""
    branches = []
    for name, op_type in (("then", "Softmax"), ("else", "Relu")):
        output = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
        branches.append(helper.make_graph([helper.make_node(op_type, ["x"], [output.name])], name, [], [output]))
    make = Maker()
    y = make.node("If", "flag", then_branch=branches[0], else_branch=branches[1])
    for flag in (False, True):
        source, feeds = make.save(
            tmp_path / "old.onnx", {"x": make.normal(2, 3, 5), "flag": np.array(flag)}, y, opset=11
        )
        raise_to(21, source, tmp_path / "o.onnx")
        assert max(errors(run(source, feeds), run(tmp_path / "o.onnx", feeds))) < 1e-6


def test_functions(tmp_path: Path) -> None:
    source, feeds = one_node(tmp_path / "float.onnx", 14, "Relu")
    model = onnx.load(source)
    body = [helper.make_node("Neg", ["a"], ["b"])]
    model.functions.append(helper.make_function("my", "Negative", ["a"], ["b"], body, [helper.make_opsetid("", 14)]))
    model.opset_import.append(helper.make_opsetid("my", 1))
    model.graph.node[0].op_type, model.graph.node[0].domain = "Negative", "my"
    onnx.save(model, source)
    report = raise_to(21, source, tmp_path / "o.onnx")
    assert report.operators_after == {"Neg": 1}
    np.testing.assert_array_equal(run(tmp_path / "o.onnx", feeds)[0], -feeds["x"])


def test_what_only_onnxscript_converts(tmp_path: Path) -> None:
    """GroupNormalization has a scale for each group at opset 18, and for each channel at 21."""
    make = Maker()
    parameters = make.normal(2), make.normal(2)
    source, feeds = one_node(tmp_path / "old.onnx", 18, "GroupNormalization", *parameters, num_groups=2)
    raise_to(21, source, tmp_path / "o.onnx")
    assert max(errors(run(source, feeds), run(tmp_path / "o.onnx", feeds))) < 1e-6


def test_weights_are_not_copied(tmp_path: Path) -> None:
    source, feeds = old(tmp_path / "old.onnx", 9)
    lowbit.onnx.write(tmp_path / "beside.onnx", lowbit.onnx.open(source), external_data=True)
    model = lowbit.onnx.open(tmp_path / "beside.onnx")
    large = {name: tensor for name, tensor in model.graph.tensors.items() if tensor.external}
    assert len(large) == 2

    def unread() -> Any:
        raise AssertionError("a weight was read")

    class Exact(Comparison):
        def error(self, model: lowbit.onnx.Model) -> float:
            return 0.0

    tensors = {name: replace(tensor, source=unread) for name, tensor in large.items()}
    unreadable = replace(model, graph=replace(model.graph, tensors={**model.graph.tensors, **tensors}))
    (tmp_path / "folder").mkdir()
    result, _ = converted(unreadable, 21, Exact(model, [feeds]), 0, tmp_path / "folder")
    assert all(result.graph.tensors[name] is tensor for name, tensor in tensors.items())
    assert [*result.inputs] == [*model.inputs]
    lowbit.onnx.optimize(tmp_path / "beside.onnx", tmp_path / "o.onnx", opset=21)
    assert (tmp_path / "o.onnx.data").stat().st_size >= 256 * 64 * 4
    assert max(errors(run(source, feeds), run(tmp_path / "o.onnx", feeds))) < 1e-6


def test_other_results_are_an_error_that_names_the_node(tmp_path: Path) -> None:
    """onnx has no converter for Hardmax, which meant something else before opset 13."""
    make = Maker()
    hard = make.node("Hardmax", make.node("Relu", "x"))
    source, _ = make.save(tmp_path / "old.onnx", {"x": make.normal(2, 4, 6, 6)}, make.node("Neg", hard), opset=12)
    with pytest.raises(lowbit.UnsupportedError, match=r"opset 12 .*21.* node node1: Hardmax gives other results"):
        lowbit.onnx.optimize(source, tmp_path / "o.onnx", opset=21)
    assert [*tmp_path.iterdir()] == [source]


def test_an_operator_without_a_converter_is_an_error_that_names_the_node(tmp_path: Path) -> None:
    """BatchNormalization with spatial=0 exists up to opset 8."""
    make = Maker()
    statistics = [make.constant(np.abs(make.normal(4, 6, 6))) for _ in range(4)]
    y = make.node("BatchNormalization", make.node("Relu", "x"), *statistics, spatial=0)
    x = make.normal(2, 4, 6, 6)
    source, _ = make.save(tmp_path / "old.onnx", {"x": x}, make.node("Neg", make.node("Exp", y)), opset=8)
    with pytest.raises(lowbit.UnsupportedError, match=r"opset 8 .*21: onnx.* node node1: BatchNormalization failed: "):
        lowbit.onnx.optimize(source, tmp_path / "o.onnx", opset=21)
    assert [*tmp_path.iterdir()] == [source]


@pytest.mark.parametrize(
    ("opset", "error"),
    [
        (12, r"opset: expected 13, the model's, or higher, found 12"),
        (6, "opset"),
        (29, "opset"),
        ("21", "opset"),
    ],
)
def test_wrong_opsets(opset: Any, error: str, tmp_path: Path) -> None:
    source, _ = one_node(tmp_path / "float.onnx", 13, "Relu")
    with pytest.raises(lowbit.Error, match=error):
        lowbit.onnx.optimize(source, tmp_path / "o.onnx", opset=opset)
    assert [*tmp_path.iterdir()] == [source]


def test_the_opset_of_the_model_changes_nothing(tmp_path: Path) -> None:
    source = DATA / "mnist.onnx"
    lowbit.onnx.optimize(source, tmp_path / "a.onnx")
    raise_to(8, source, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_fusions_that_need_a_higher_opset(tmp_path: Path) -> None:
    source, _ = one_node(tmp_path / "float.onnx", 18, "Relu")
    report = lowbit.onnx.optimize(source, tmp_path / "o.onnx", fusions=["gelu", "layer-norm", "attention"])
    assert [note.partition(" ")[0] for note in report.notes] == ["gelu", "attention"]
    assert report.notes[0].endswith("opset 20, the model has 18: raise it with: lowbit onnx optimize IN OUT --opset 20")
    assert raise_to(23, source, tmp_path / "o.onnx", fusions=["gelu", "layer-norm", "attention"]).notes == []


def test_command(tmp_path: Path) -> None:
    source, feeds = old(tmp_path / "old.onnx", 9)
    result = command("onnx", "optimize", str(source), str(tmp_path / "o.onnx"), "--opset", "21")
    assert (result.returncode, result.stderr) == (0, "")
    assert "opset 9 -> 21, " in result.stdout
    assert max(errors(run(source, feeds), run(tmp_path / "o.onnx", feeds))) < 1e-6
    result = command("onnx", "optimize", str(tmp_path / "o.onnx"), str(tmp_path / "p.onnx"), "--opset", "20")
    assert (result.returncode, result.stdout) == (1, "")
    assert "opset" in result.stderr
