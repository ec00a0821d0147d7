"""Options and report of `lowbit.onnx.quantize`, and what it does around the modes."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lowbit
from lowbit import onnx
from lowbit.onnx import Graph, Model, Node, NodeReport, OnnxOptions, Tensor, Value


def two_products() -> Model:
    """x @ a, then relu, then @ b; the last node has no name."""
    weights = {name: Tensor.of(name, np.full((16, 16), 0.5, np.float32)) for name in "ab"}
    nodes = (
        Node.of("MatMul", ["x", "a"], ["xa"], name="/layers.0/MatMul"),
        Node.of("Relu", ["xa"], ["r"], name="relu"),
        Node.of("MatMul", ["r", "b"], ["y"]),
    )
    graph = Graph("g", nodes, weights, (Value.of("x", np.float32, ["n", 16]),), (Value.of("y", np.float32, ["n", 16]),))
    return Model(graph, {"": 21}, 10)


def reasons(**options: Any) -> list[str | None]:
    chosen = OnnxOptions(mode="dynamic", **options)
    return [chosen.selects(node) for node in two_products().nodes]


def test_the_function_spells_out_each_option() -> None:
    parameters = inspect.signature(onnx.quantize).parameters
    options = dataclasses.fields(OnnxOptions)
    assert {option.name for option in options} <= parameters.keys()
    for option in options:
        parameter = parameters[option.name]
        assert parameter.annotation == option.type
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        if option.name != "mode":
            assert parameter.default == option.default


def test_nodes_are_selected_by_name_and_operator() -> None:
    assert reasons() == [None, None, None]
    assert reasons(exclude_nodes=["/layers.*"]) == ["node is excluded", None, None]
    assert reasons(include_nodes=["y", "relu"]) == ["node is not included", None, None]
    assert reasons(include_operators=["MatMul"]) == [None, "operator Relu is not included", None]
    assert reasons(exclude_operators=["Relu"]) == [None, "operator Relu is excluded", None]
    assert reasons(include_nodes=["r*", "y"], exclude_nodes=["y"]) == ["node is not included", None, "node is excluded"]


def test_bits_of_a_node() -> None:
    options = OnnxOptions(mode="weight-only", bits={"/layers.0/*": 8, "/*": 2})
    assert [options.bits_of(node) for node in two_products().nodes] == [8, 4, 4]
    assert OnnxOptions(mode="weight-only", bits=2).bits_of(two_products().nodes[0]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "int8"}, "mode: expected one of dynamic, static, weight-only, float16, bfloat16, got 'int8'"),
        ({"exclude_nodes": "relu"}, "exclude_nodes: expected a list, got 'relu'"),
        ({"exclude_operators": [1]}, "exclude_operators: expected a str, got 1"),
        ({"bits": 8}, "bits is an option of mode weight-only, not of dynamic"),
        ({"mode": "weight-only", "bits": {"*": 9}}, "bits: expected 1 to 8, got 9"),
        ({"threads": 0}, "threads: expected 1 to 1024, got 0"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(lowbit.InputError) as raised:
        OnnxOptions(**{"mode": "dynamic"} | options)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclude_nodes": ["/layers.1/*"]}, "exclude_nodes: no node of the model matches '/layers.1/*'"),
        ({"include_nodes": ["rleu"]}, "include_nodes: no node of the model matches 'rleu', did you mean relu?"),
        ({"importances": {"rel*": [1]}, "mode": "weight-only"}, "importances: no node of the model matches 'rel*'"),
        ({"include_operators": ["Matmul"]}, "include_operators: no node of the model matches 'Matmul', did you mean"),
    ],
)
def test_a_pattern_that_matches_nothing_is_a_mistake(options: dict[str, Any], message: str) -> None:
    with pytest.raises(lowbit.InputError, match=message.replace("*", r"\*").replace("?", r"\?")):
        OnnxOptions(**{"mode": "dynamic"} | options).check(two_products())


def test_report() -> None:
    nodes = [NodeReport("a", "MatMul", "int8"), NodeReport("b", "MatMul", "float", "dynamic weight")]
    report = onnx.QuantizeReport("out.onnx", "dynamic", nodes, 10, 5)
    assert (report.quantized, report.kept) == (nodes[:1], nodes[1:])


def test_size_of_the_files(tmp_path: Path) -> None:
    from lowbit.onnx.writing import file_bytes

    model = two_products()
    for external_data in (None, True, "weights.bin"):
        onnx.write(tmp_path / "model.onnx", model, external_data=external_data)
        size = sum(path.stat().st_size for path in tmp_path.iterdir())
        assert file_bytes(model, external_data=external_data) == size
        for path in tmp_path.iterdir():
            path.unlink()


@pytest.mark.parametrize("mode", ["dynamic", "weight-only"])
def test_size_of_what_was_read_and_written(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder of a model with data beside it; mode weight-only changes nothing here, and copies."""
    monkeypatch.chdir(tmp_path)
    onnx.write("in.onnx", two_products(), external_data="weights")
    before = sum(path.stat().st_size for path in tmp_path.iterdir())
    data = True if mode == "dynamic" else None
    (tmp_path / "beside").mkdir()
    target = Path("beside", "a_long_name.onnx")
    report = onnx.quantize("in.onnx", target, mode=mode, exclude_nodes=["*"] * (data is None), external_data=data)
    after = sum(path.stat().st_size for path in target.parent.iterdir())
    assert (report.bytes_before, report.bytes_after) == (before, after)


def test_wrong_types_are_named(tmp_path: Path) -> None:
    target, options = tmp_path / "out.onnx", OnnxOptions(mode="dynamic")
    with pytest.raises(lowbit.InputError, match=r"options: expected lowbit\.onnx.OnnxOptions, got 'dynamic'"):
        onnx.sensitivity(two_products(), "dynamic")  # type: ignore[arg-type]
    with pytest.raises(lowbit.InputError, match=r"model: expected a lowbit\.onnx.Model, got 3"):
        onnx.write(target, 3)  # type: ignore[arg-type]
    with pytest.raises(lowbit.InputError, match="external_data: expected a str, got 3"):
        onnx.quantize(two_products(), target, mode=options.mode, external_data=3)  # type: ignore[arg-type]
    with pytest.raises(lowbit.InputError, match="block_size: expected one of 16, 32, 64, 128, 256, got ndarray"):
        OnnxOptions(mode="weight-only", block_size=np.array([16, 32]))  # type: ignore[arg-type]
    assert not target.exists()
