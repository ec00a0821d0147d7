"""`lowbit.onnx.optimize`: fewer nodes, equal outputs on onnxruntime, files that every runtime reads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from command import run as command
from onnx import TensorProto, helper
from test_onnx_dynamic import Feeds, Maker, errors, run
from transformers import BertConfig, BertModel

import lowbit

pytestmark = pytest.mark.oracle


def transformer(path: Path, opset: int = 23) -> tuple[Path, Feeds]:
    """A norm of each kind and a GELU of each kind in single operators, and residual sums."""
    make = Maker()

    def number(value: float) -> str:
        return make.constant(np.array(value, np.float32))

    def mean(x: str) -> str:
        if opset < 18:
            return make.node("ReduceMean", x, axes=[-1])
        return make.node("ReduceMean", x, make.constant(np.array([-1])))

    def over_deviation(x: str, centered: str) -> str:
        variance = mean(make.node("Pow", centered, number(2)))
        return make.node("Div", x, make.node("Sqrt", make.node("Add", variance, number(1e-5))))

    def layer_norm(x: str) -> str:
        centered = make.node("Sub", x, mean(x))
        scaled = make.node("Mul", over_deviation(centered, centered), make.constant(make.normal(64)))
        return make.node("Add", scaled, make.constant(make.normal(64)))

    def product(x: str) -> str:
        return make.node("MatMul", x, make.constant(make.normal(64, 64) / 8))

    def gelu(x: str) -> str:
        erf = make.node("Erf", make.node("Div", x, number(math.sqrt(2))))
        return make.node("Mul", make.node("Mul", x, make.node("Add", erf, number(1))), number(0.5))

    x = make.node("Add", "x", product(layer_norm("x")))
    x = make.node("Add", x, product(gelu(make.node("Add", product(layer_norm(x)), make.constant(make.normal(64))))))
    x = make.node("Add", x, product(make.node("Mul", make.constant(make.normal(64)), over_deviation(x, x))))
    return make.save(path, {"x": make.normal(3, 24, 64)}, x, opset=opset)


def image(path: Path) -> tuple[Path, Feeds]:
    """What exporters leave: a norm that can go into the convolution, nodes without effect, and constants to fold."""
    make = Maker()
    statistics = [make.constant(np.abs(make.normal(16))) for _ in range(4)]
    x = make.node("BatchNormalization", make.node("Conv", "x", make.weight(16, 3, 3, 3)), *statistics)
    make.node("Exp", x)
    x = make.node("Identity", make.node("Relu", x))
    x = make.node("Flatten", make.node("GlobalAveragePool", x))
    bias = make.node("Add", make.weight(8), make.constant(make.normal(8)))
    x = make.node("Add", make.node("MatMul", x, make.weight(16, 8)), bias)
    return make.save(path, {"x": make.normal(2, 3, 20, 20)}, x)


def optimized(source: Path, target: Path, **options: Any) -> lowbit.onnx.OptimizeReport:
    report = lowbit.onnx.optimize(source, target, **options)
    model = lowbit.onnx.open(target)
    assert sum(len(graph.nodes) for graph in model.graph.graphs()) == report.nodes_after
    assert target.stat().st_size == report.bytes_after
    if options.get("level") != "all":
        assert {node.domain for graph in model.graph.graphs() for node in graph.nodes} == {""}
        assert set(model.opsets) == {""}
        onnx.checker.check_model(str(target), full_check=True)
    return report


def test_constants_dead_code_and_fusions(tmp_path: Path) -> None:
    source, feeds = image(tmp_path / "float.onnx")
    report = optimized(source, tmp_path / "o.onnx")
    operators = report.operators_after
    assert {"Conv", "Relu", "GlobalAveragePool", "Gemm"} <= operators.keys()
    assert operators.keys().isdisjoint({"BatchNormalization", "Identity", "Exp", "MatMul", "Add"})
    assert (report.nodes_before, report.nodes_after) == (10, 5)
    assert report.notes == []
    assert max(errors(run(source, feeds), run(tmp_path / "o.onnx", feeds))) <= 1e-6


@pytest.mark.parametrize(
    ("opset", "expected"),
    [
        (17, {"LayerNormalization"}),
        (20, {"LayerNormalization", "Gelu"}),
        (23, {"LayerNormalization", "Gelu", "RMSNormalization"}),
    ],
)
def test_transformer(opset: int, expected: set[str], tmp_path: Path) -> None:
    source, feeds = transformer(tmp_path / "float.onnx", opset)
    report = optimized(source, tmp_path / "o.onnx")
    new = report.operators_after.keys() & {"LayerNormalization", "Gelu", "RMSNormalization"}
    assert new == expected
    assert report.nodes_after < report.nodes_before
    assert report.error < 1e-6
    assert max(errors(run(source, feeds), run(tmp_path / "o.onnx", feeds))) < 1e-6


def test_all(tmp_path: Path) -> None:
    source, feeds = image(tmp_path / "float.onnx")
    report = optimized(source, tmp_path / "o.onnx", level="all")
    assert "com.microsoft.FusedConv" in report.operators_after
    assert max(errors(run(source, feeds), run(tmp_path / "o.onnx", feeds))) <= 1e-6
    # Not laid out for this machine's processor.
    assert set(lowbit.onnx.open(tmp_path / "o.onnx").opsets) == {"", "com.microsoft"}


def test_exported_encoder(tmp_path: Path) -> None:
    """BERT as torch exports it."""
    config = BertConfig(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertModel(config).eval()
    source, target = tmp_path / "float.onnx", tmp_path / "o.onnx"
    names = ["input_ids", "attention_mask"]
    shapes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        model, tuple(torch.ones(2, 9, dtype=torch.int64) for _ in names), source, input_names=names,
        opset_version=18, dynamo=True, external_data=False, dynamic_shapes=dict.fromkeys(names, shapes), verbose=False,
    )  # fmt: skip
    report = optimized(source, target, level="all")
    expected = {"com.microsoft.Attention": 1, "com.microsoft.SkipLayerNormalization": 2, "com.microsoft.BiasGelu": 1}
    assert {name: report.operators_after.get(name) for name in expected} == expected
    assert report.nodes_after < 0.6 * report.nodes_before
    feeds = {"input_ids": np.arange(60).reshape(3, 20), "attention_mask": np.ones((3, 20), np.int64)}
    feeds["attention_mask"][1, 12:] = 0
    assert max(errors(run(source, feeds), run(target, feeds))) < 1e-5


def test_fusions_are_chosen(tmp_path: Path) -> None:
    source, _ = transformer(tmp_path / "float.onnx")
    report = optimized(source, tmp_path / "o.onnx", fusions=["gelu"])
    assert "Gelu" in report.operators_after
    assert report.operators_after.keys().isdisjoint({"LayerNormalization", "RMSNormalization", "Gemm"})


def test_weights_that_become_constants_are_quantized(tmp_path: Path) -> None:
    """As in exported LSTMs: gates in another order, by nodes that only constants enter."""
    make = Maker()
    w = make.constant(make.normal(1, 64, 16) / 4)
    halves = [
        make.node("Slice", w, *(make.constant(np.array([n])) for n in part)) for part in ((32, 64, 1), (0, 32, 1))
    ]
    turned = make.node("Concat", *halves, axis=1)
    y = make.node("LSTM", "x", turned, make.constant(make.normal(1, 64, 16) / 4), hidden_size=16, outputs=2)
    source, feeds = make.save(tmp_path / "float.onnx", {"x": make.normal(9, 2, 16)}, y)
    report = lowbit.onnx.quantize(source, tmp_path / "q.onnx", mode="dynamic")
    assert [node.reason for node in report.nodes] == ["dynamic weight"]
    optimized(source, tmp_path / "o.onnx")
    report = lowbit.onnx.quantize(tmp_path / "o.onnx", tmp_path / "q.onnx", mode="dynamic")
    assert report.kept == []
    assert max(errors(run(source, feeds), run(tmp_path / "q.onnx", feeds))) < 0.02


def test_an_optimization_that_changes_the_outputs_is_left_out(tmp_path: Path) -> None:
    source, feeds = transformer(tmp_path / "float.onnx")
    report = optimized(source, tmp_path / "o.onnx", tolerance=0, inputs=[feeds])
    assert report.error == 0
    assert "RMS norms was left out" in report.notes[0]
    np.testing.assert_array_equal(run(source, feeds)[0], run(tmp_path / "o.onnx", feeds)[0])


def test_large_weights_beside_the_model(tmp_path: Path) -> None:
    source, feeds = transformer(tmp_path / "float.onnx")
    lowbit.onnx.write(tmp_path / "beside.onnx", lowbit.onnx.open(source), external_data=True)
    lowbit.onnx.optimize(tmp_path / "beside.onnx", tmp_path / "o.onnx", external_data=True)
    assert (tmp_path / "o.onnx.data").stat().st_size >= 64 * 64 * 4 * 4
    assert max(errors(run(source, feeds), run(tmp_path / "o.onnx", feeds))) < 1e-6


def test_random_inputs_find_sizes_that_run(tmp_path: Path) -> None:
    """A window of 40 samples does not fit into 2."""
    make = Maker()
    x = make.node("Relu", make.node("Identity", make.node("Conv", "x", make.weight(4, 1, 40))))
    source, feeds = make.save(tmp_path / "float.onnx", {"x": make.normal(1, 1, 64)}, x)
    model = onnx.load(source)
    for value, last in ((model.graph.input[0], "samples"), (model.graph.output[0], "frames")):
        value.type.tensor_type.shape.dim[2].dim_param = last
    del model.graph.value_info[:]
    onnx.save(model, source)
    assert optimized(source, tmp_path / "o.onnx").nodes_after == 2
    assert max(errors(run(source, feeds), run(tmp_path / "o.onnx", feeds))) <= 1e-6


def test_refusals(tmp_path: Path) -> None:
    make = Maker()
    x = make.node("Add", "x", make.constant(make.normal(7)))
    source, _ = make.save(tmp_path / "float.onnx", {"x": make.normal(3, 7)}, x)
    model = onnx.load(source)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 5]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(x, TensorProto.FLOAT, ["a", "b"]))
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "wrong.onnx")
    target = tmp_path / "o.onnx"
    with pytest.raises(lowbit.Error):  # no inputs run
        lowbit.onnx.optimize(tmp_path / "wrong.onnx", target)
    for options in ({"level": "most"}, {"fusions": ["gelus"]}, {"tolerance": -1}, {"inputs": [{"y": 1}]}):
        with pytest.raises(lowbit.InputError, match=next(iter(options)).rstrip("s")[:5] + "|calibration"):
            lowbit.onnx.optimize(source, target, **options)  # type: ignore[arg-type]
    with pytest.raises(lowbit.InputError):
        lowbit.onnx.optimize(source, source)
    assert not target.exists()


def test_command(tmp_path: Path) -> None:
    source, feeds = image(tmp_path / "float.onnx")
    np.savez(tmp_path / "inputs.npz", **feeds)  # type: ignore[arg-type]
    target = tmp_path / "o.onnx"
    result = command("onnx", "optimize", str(source), str(target), "--inputs", str(tmp_path / "inputs.npz"))
    assert (result.returncode, result.stderr) == (0, "")
    assert ["BatchNormalization", "1", "0"] in [line.split() for line in result.stdout.splitlines()]
    assert "10 -> 5 nodes" in result.stdout
    assert len(lowbit.onnx.open(target).nodes) == 5
    result = command("onnx", "optimize", str(source), str(target), "--fusions", "batch-norm", "--json", "--dry-run")
    report = json.loads(result.stdout)
    assert report["operators_after"].keys() >= {"MatMul", "Add"}
    assert (report["written"], report["notes"]) == (False, [])
    assert len(lowbit.onnx.open(target).nodes) == 5
    result = command("onnx", "optimize", str(source), str(tmp_path / "dry.onnx"), "--dry-run")
    assert f"{tmp_path / 'dry.onnx'}: would be 10 -> 5 nodes" in result.stdout
    result = command("onnx", "optimize", str(source), str(target), "--fusions", "x")
    assert (result.returncode, result.stdout) == (1, "")
    assert "fusions" in result.stderr
