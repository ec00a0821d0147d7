"""Errors of single nodes and `max_error`, measured on onnxruntime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from test_onnx_dynamic import Feeds, Maker, attention, errors, run

import lowbit
from lowbit import _core
from lowbit.onnx import OnnxOptions, static
from lowbit.onnx.measuring import random_runs

pytestmark = pytest.mark.oracle


def network(path: Path) -> tuple[Path, Feeds]:
    """Three products; the activations of the second have an outlier that costs it most bits."""
    make = Maker()
    x = make.node("MatMul", "x", make.constant(make.normal(32, 32) / 6))
    outlier = np.ones(32, np.float32)
    outlier[3] = 1000
    weight = make.normal(32, 32) / 6
    weight[3] /= 1000
    x = make.node("MatMul", make.node("Mul", x, make.constant(outlier)), make.constant(weight))
    x = make.node("MatMul", make.node("Relu", x), make.constant(make.normal(32, 32) / 6))
    return make.save(path, {"x": make.normal(8, 32)}, x)


def alone(source: Path, target: Path, feeds: Feeds, name: str, **options: Any) -> float:
    lowbit.onnx.quantize(source, target, mode="dynamic", include_nodes=[name], **options)
    return max(errors(run(source, feeds), run(target, feeds)))


def test_errors_of_single_nodes(tmp_path: Path) -> None:
    source, feeds = network(tmp_path / "float.onnx")
    report = lowbit.onnx.sensitivity(source, OnnxOptions(mode="dynamic"), inputs=[feeds])
    assert sorted(node.name for node in report) == ["node0", "node2", "node4"]
    assert report[0].name == "node2"
    found = [node.error or 0 for node in report]
    assert found == sorted(found, reverse=True)
    for node in report:
        assert node.error == pytest.approx(alone(source, tmp_path / "q.onnx", feeds, node.name), rel=1e-3)


def test_inputs_of_npz_files_and_random_ones(tmp_path: Path) -> None:
    source, feeds = network(tmp_path / "float.onnx")
    options = OnnxOptions(mode="dynamic", exclude_nodes=["node0"])
    np.savez(tmp_path / "inputs.npz", **feeds)  # type: ignore[arg-type]
    of_file = lowbit.onnx.sensitivity(source, options, inputs=tmp_path / "inputs.npz")
    assert [node.name for node in of_file] == ["node2", "node4"]
    assert of_file == lowbit.onnx.sensitivity(source, options, inputs=[feeds])
    of_random = lowbit.onnx.sensitivity(source, options)
    assert [node.name for node in of_random] == ["node2", "node4"]
    assert of_random == lowbit.onnx.sensitivity(source, options)
    assert of_random != of_file


def test_errors_name_the_data(tmp_path: Path) -> None:
    source, feeds = network(tmp_path / "float.onnx")
    for name, data, text in (
        ("inputs", {"y": feeds["x"]}, "^inputs, run 0: the model has no input 'y'"),
        ("calibration", {"y": feeds["x"]}, "^calibration, run 0: the model has no input 'y'"),
        ("inputs", {"x": feeds["x"] * np.nan}, "^no output of the model has a finite value: give other inputs"),
    ):
        options: dict[str, Any] = {"mode": "static", "calibration": [feeds], "max_error": 1} | {name: [data]}
        with pytest.raises(lowbit.InputError, match=text):
            lowbit.onnx.quantize(source, tmp_path / "q.onnx", **options)


def test_outputs_that_are_sequences(tmp_path: Path) -> None:
    """Of tensors with different shapes. The second of these has no error."""
    make = Maker()
    x = make.node("MatMul", "x", make.constant(make.normal(32, 32)))
    source, feeds = make.save(tmp_path / "float.onnx", {"x": make.normal(8, 32)}, x)
    model = lowbit.onnx.open(source)
    node = lowbit.onnx.Node.of("SequenceConstruct", [x, "w0"], ["s"])
    sequence = onnx.helper.make_tensor_sequence_value_info("s", 1, None).SerializeToString()
    output = replace(lowbit.onnx.Value("s"), rest=_core.onnx_fields("ValueInfoProto", np.frombuffer(sequence, "u1")))
    both = model.with_graph(replace(model.graph, nodes=(*model.nodes, node), outputs=(output,)))
    reports = [
        lowbit.onnx.quantize(each, tmp_path / "q.onnx", mode="dynamic", inputs=[feeds], max_error=1)
        for each in (model, both)
    ]
    assert [len(report.quantized) for report in reports] == [1, 1]
    assert 0 < (reports[1].error or 0) < (reports[0].error or 0)


def test_worst_nodes_stay_float(tmp_path: Path) -> None:
    source, feeds = network(tmp_path / "float.onnx")
    target = tmp_path / "q.onnx"
    everything = lowbit.onnx.quantize(source, target, mode="dynamic", inputs=[feeds], max_error=1)
    assert everything.kept == []
    assert everything.error == pytest.approx(max(errors(run(source, feeds), run(target, feeds))), rel=1e-3)
    report = lowbit.onnx.quantize(source, target, mode="dynamic", inputs=[feeds], max_error=0.02)
    assert [node.name for node in report.kept] == ["node2"]
    assert "changes the output by" in report.kept[0].reason
    assert report.error is not None
    assert report.error <= 0.02 < (everything.error or 0)
    assert max(errors(run(source, feeds), run(target, feeds))) == pytest.approx(report.error, rel=1e-3)
    report = lowbit.onnx.quantize(source, target, mode="dynamic", inputs=[feeds], max_error=0)
    assert report.quantized == []
    assert report.error == 0


def test_names_with_signs_of_patterns(tmp_path: Path) -> None:
    source, feeds = network(tmp_path / "float.onnx")
    model = lowbit.onnx.open(source)
    names = iter(["a[0]", "a0", "a*"])
    nodes = [lowbit.onnx.Node(n.op_type, n.inputs, n.outputs, n.attributes, next(names))
             if n.op_type == "MatMul" else n for n in model.nodes]  # fmt: skip
    graph = lowbit.onnx.Graph("g", tuple(nodes), model.graph.tensors, model.graph.inputs, model.graph.outputs)
    found = lowbit.onnx.sensitivity(model.with_graph(graph), OnnxOptions(mode="dynamic"), inputs=[feeds])
    assert {node.name for node in found} == {"a[0]", "a0", "a*"}
    expected = lowbit.onnx.sensitivity(source, OnnxOptions(mode="dynamic"), inputs=[feeds])
    assert [node.error for node in found] == [node.error for node in expected]


@pytest.mark.parametrize("mode", ["weight-only", "float16", "bfloat16", "static"])
def test_other_modes(mode: str, tmp_path: Path) -> None:
    source, feeds = attention(tmp_path / "float.onnx")
    more: dict[str, Any] = {"calibration": [feeds]} if mode == "static" else {"inputs": [feeds]}
    free = lowbit.onnx.quantize(source, tmp_path / "q.onnx", mode=mode, max_error=10, **more)
    assert free.error
    bound = free.error * 0.9
    report = lowbit.onnx.quantize(source, tmp_path / "q.onnx", mode=mode, max_error=bound, **more)
    assert report.error is not None
    assert report.error <= bound
    assert len(report.kept) > len(free.kept)


def test_data_brings_outputs_closer(tmp_path: Path) -> None:
    """Fitted to inputs whose channels differ, the outputs for those inputs are closer."""
    make = Maker()
    x = make.node("MatMul", "x", make.constant(make.normal(64, 64) / 8))
    x = make.node("MatMul", make.node("Relu", x), make.constant(make.normal(64, 64) / 8))
    feeds = {"x": (make.normal(32, 64) + 1) * np.exp(1.5 * make.normal(64))}
    source, feeds = make.save(tmp_path / "float.onnx", feeds, x)
    errors_of = []
    for calibration in (None, [feeds]):
        target = tmp_path / "q.onnx"
        lowbit.onnx.quantize(source, target, mode="weight-only", bits=2, calibration=calibration)
        errors_of.append(max(errors(run(source, feeds), run(target, feeds))))
    assert errors_of[1] < 0.9 * errors_of[0]


def test_static_observes_each_value_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, feeds = network(tmp_path / "float.onnx")
    passes = []
    observe = static.observe

    def counted(*args: Any) -> Any:
        passes.append(args[1])
        return observe(*args)

    monkeypatch.setattr(static, "observe", counted)
    runs = iter([feeds])
    report = lowbit.onnx.sensitivity(source, OnnxOptions(mode="static"), calibration=runs)
    assert len(report) >= 3
    assert len(passes) == 1


def test_inputs_of_another_type(tmp_path: Path) -> None:
    source, feeds = attention(tmp_path / "float.onnx")
    report = lowbit.onnx.quantize(
        source, tmp_path / "q.onnx", mode="float16", keep_io=False, max_error=0.01, inputs=[feeds]
    )
    assert 0 < (report.error or 0) < 0.01
    assert report.kept == []


def test_refusals(tmp_path: Path) -> None:
    source, feeds = network(tmp_path / "float.onnx")
    for options in ({"max_error": -1}, {"max_error": "small"}, {"inputs": [feeds]}):
        with pytest.raises(lowbit.InputError):
            lowbit.onnx.quantize(source, tmp_path / "q.onnx", mode="dynamic", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "q.onnx").exists()


def test_random_inputs_of_many_open_dimensions_stay_small(tmp_path: Path) -> None:
    """An image of 1,024 x 1,025 in each of 1,026 samples needs more memory than there is."""
    node = lowbit.onnx.Node.of("Slice", ["x"], ["y"], axes=[1], starts=[0], ends=[1])
    inputs = (lowbit.onnx.Value.of("x", np.float32, ["n", "a", "b", 64]),)
    graph = lowbit.onnx.Graph("g", (node,), {}, inputs, (lowbit.onnx.Value.of("y", np.float32),))
    sizes = []

    class Session:
        def run(self, feed: dict[str, Any]) -> dict[str, Any]:
            sizes.append(feed["x"].size)
            raise lowbit.UnsupportedError("no")

    with pytest.raises(lowbit.InputError, match="does not run with random inputs"):
        random_runs(lowbit.onnx.Model(graph, {"": 9}, 6), Session())  # type: ignore[arg-type]
    assert len({*sizes}) >= 3
    assert max(sizes) <= 1 << 20
