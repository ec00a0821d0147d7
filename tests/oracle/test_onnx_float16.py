"""Modes "float16" and "bfloat16" on onnxruntime, against its own converter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from test_onnx_dynamic import MODELS, Feeds, Maker, errors, language, run, total

import lowbit

pytestmark = pytest.mark.oracle


def converted(source: Path, target: Path, mode: str = "float16", **options: Any) -> Any:
    report = lowbit.onnx.quantize(source, target, mode=mode, **options)
    onnx.checker.check_model(str(target), full_check=True)
    return report


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_error_is_that_of_half_precision(build: Any, tmp_path: Path) -> None:
    source, feeds = build(tmp_path / "float.onnx")
    target, theirs = tmp_path / "half.onnx", tmp_path / "theirs.onnx"
    report = converted(source, target)
    expected = run(source, feeds)
    own = total(errors(expected, run(target, feeds)))
    assert own < 2e-3
    assert report.bytes_after < 0.6 * report.bytes_before + 2000
    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), theirs)
    assert own <= 1.1 * total(errors(expected, run(theirs, feeds)))


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_bfloat16_weights(build: Any, tmp_path: Path) -> None:
    source, feeds = build(tmp_path / "float.onnx")
    converted(source, tmp_path / "b.onnx", "bfloat16")
    assert max(errors(run(source, feeds), run(tmp_path / "b.onnx", feeds))) < 8e-3
    assert max(errors(run(source, feeds), run(tmp_path / "b.onnx", feeds, basic=True))) < 8e-3
    weights = sum(tensor.size for tensor in lowbit.onnx.open(source).graph.tensors.values())
    if weights > 10000:
        assert (tmp_path / "b.onnx").stat().st_size < 2.1 * weights + 12000


def test_inputs_and_outputs_in_16_bits(tmp_path: Path) -> None:
    for build in MODELS:
        source, feeds = build(tmp_path / "float.onnx")
        converted(source, tmp_path / "half.onnx", keep_io=False)
        halves = {name: x.astype(np.float16) if x.dtype == np.float32 else x for name, x in feeds.items()}
        results = run(tmp_path / "half.onnx", halves)
        assert {result.dtype for result in results} == {np.dtype(np.float16)}
        floats = [result.astype(np.float32) for result in results]
        assert max(errors(run(source, feeds), floats)) < 4e-3


def test_what_stays_float(tmp_path: Path) -> None:
    """A norm whose squares overflow, angles of positions, an epsilon and a mask that float16 cannot hold."""
    make = Maker()
    f = np.float32
    squares = make.node("ReduceMean", make.node("Pow", "x", make.constant(f(2))), axes=[-1])
    norm = make.node("Sqrt", make.node("Add", squares, make.constant(f(1e-12))))
    x = make.node("Div", "x", make.node("Add", norm, make.constant(f(1e-9))))
    angles = make.node("Mul", make.node("Cast", "positions", to=1), make.constant(make.normal(1, 64)))
    x = make.node("Add", x, make.node("Cos", angles))
    y = make.node("Softmax", make.node("Where", "mask", x, make.constant(f(-3e38))))
    shape = make.node("Resize", make.node("Reshape", x, make.constant(np.array([1, 1, 8, 64]))), "",
                      make.constant(np.array([1, 1, 2, 2], f)), mode="linear")  # fmt: skip
    values = make.normal(8, 64)
    values[0] *= 1000
    values[1] = 0
    mask = make.rng.random((8, 64)) < 0.5
    mask[0] = False
    feeds: Feeds = {"x": values, "positions": 4001 + np.arange(8)[:, None], "mask": mask}
    source, _ = make.save(tmp_path / "float.onnx", feeds, x, y, shape)
    report = converted(source, tmp_path / "half.onnx")
    assert max(errors(run(source, feeds), run(tmp_path / "half.onnx", feeds))) < 2e-3
    kept = {node.operator: node.reason for node in report.kept}
    assert {"Pow", "Cos", "Mul", "Cast"} <= kept.keys()
    assert kept["Mul"] == "it calculates angles"
    report = converted(source, tmp_path / "half.onnx", out_of_range="float")
    assert "Where" in {node.operator for node in report.kept}


def test_subgraphs(tmp_path: Path) -> None:
    make = Maker()
    w = make.constant(make.normal(16, 16) / 4)
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", w], ["p"], name="inner"),
            helper.make_node("Add", ["p", "h"], ["new"]),
            helper.make_node("Identity", ["go"], ["going"]),
            helper.make_node("ReduceMean", ["new"], ["scan"], axes=[1], keepdims=0),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [5, 16]),
        ],
        [
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("new", TensorProto.FLOAT, [5, 16]),
            helper.make_tensor_value_info("scan", TensorProto.FLOAT, [5]),
        ],
    )
    make.nodes.append(helper.make_node("Tanh", ["x"], ["h"]))
    count, go = make.constant(np.array(3)), make.constant(np.array(True))
    state = make.node("Loop", count, go, "h", body=body, outputs=2)
    y = make.node("MatMul", state, w)
    feeds = {"x": make.normal(5, 16)}
    source, _ = make.save(tmp_path / "float.onnx", feeds, y, state.replace("_0", "_1"))
    model = onnx.load(source)
    inner = next(node for node in model.graph.node if node.op_type == "Loop").attribute[0].g
    inner.input[2].ClearField("type")  # it has the type of the loop's input
    del inner.value_info[:]
    onnx.save(model, source)
    for mode, bound in (("float16", 2e-3), ("bfloat16", 1e-2)):
        report = lowbit.onnx.quantize(source, tmp_path / "half.onnx", mode=mode)
        assert max(errors(run(source, feeds), run(tmp_path / "half.onnx", feeds))) < bound
        assert {node.name: node.is_quantized for node in report.nodes}["inner"]


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    source, _ = language(tmp_path / "float.onnx")
    for mode in ("float16", "bfloat16"):
        converted(source, tmp_path / "half.onnx", mode)
        tensors = lowbit.onnx.open(tmp_path / "half.onnx").graph.tensors.values()
        assert sum(tensor.size >= 500 * 64 for tensor in tensors) == 1


@pytest.mark.parametrize("perm", [[1, 0, 2], [1, 2, 0], [1, 2, 0, 3], [1, 2, 3, 0]])
def test_a_batch_that_is_moved_before_a_product(perm: list[int], tmp_path: Path) -> None:
    """onnxruntime 1.32 cannot load such a Transpose in float16, so it stays float."""
    make = Maker()
    feeds: Feeds = {"x": make.normal(2, 3, 4, 5)[(0,) * (4 - len(perm))]}
    others = [axis for axis in range(len(perm)) if axis != len(perm) - 2]
    turned = make.node("Transpose", make.node("Transpose", "x", perm=perm), perm=[*others, len(perm) - 2])
    inner = feeds["x"].shape[perm[-1]]
    product = make.node("MatMul", make.node("Transpose", "x", perm=perm), make.constant(make.normal(inner, 6)))
    source, _ = make.save(tmp_path / "float.onnx", feeds, product, turned)
    report = converted(source, tmp_path / "half.onnx")
    assert [node.operator for node in report.kept] == ["Transpose"]
    assert max(errors(run(source, feeds), run(tmp_path / "half.onnx", feeds))) < 2e-3


def test_sequences_stay_float(tmp_path: Path) -> None:
    """What is in a sequence has a type that only the operators before it tell."""
    make = Maker()
    product = make.node("MatMul", "x", make.constant(make.normal(8, 8)))
    parts = make.node("SplitToSequence", product, make.constant(np.array(4)), axis=1)
    sequence = make.node("SequenceInsert", parts, make.node("Relu", product))
    x = make.node("SequenceAt", sequence, make.constant(np.array(-1)))
    y = make.node("MatMul", x, make.constant(make.normal(8, 8)))
    source, feeds = make.save(tmp_path / "float.onnx", {"x": make.normal(3, 8)}, y)
    target = tmp_path / "half.onnx"
    report = lowbit.onnx.quantize(source, target, mode="float16")
    assert {node.operator for node in report.kept} == {"SplitToSequence", "SequenceInsert", "SequenceAt"}
    assert max(errors(run(source, feeds), run(target, feeds))) < 2e-3
