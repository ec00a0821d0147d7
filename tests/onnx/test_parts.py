"""Parts of ONNX models that are made of values of the wrong kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import lowbit
from lowbit.onnx import Attribute, Graph, Model, Node, Tensor, Value


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Attribute.of("a", []), "attribute 'a': an empty list has no type"),
        (lambda: Attribute.of("a", [1, "b"]), "attribute 'a': a list of (INT and STRING|STRING and INT)"),
        (lambda: Attribute.of("a", object()), "attribute 'a': expected int, float, str, Tensor"),
        (lambda: Attribute("a", "INTEGER", 1).fields(), "attribute 'a': expected a type of UNDEFINED, FLOAT"),
        (lambda: Tensor.packed("t", np.zeros(3, np.uint8), np.float32, (1,)), "tensor t: float32 .* expected 4 bytes"),
        (lambda: Tensor.packed("t", np.zeros(1, np.int8), np.int8, (1,)), "tensor t: .*expected bytes as an array"),
        (lambda: Tensor.packed("t", np.zeros(0, np.uint8), object, (0,)), "tensor t: strings are not packed"),
        (lambda: Tensor("t", np.dtype(np.int8), (1,), lambda: b"1").raw, "tensor t: .*expected bytes as an array"),  # type: ignore[arg-type,return-value]
        (lambda: Graph("g", (), [Tensor.of("a", [1])], (), ()), "Graph.tensors: expected a mapping, got list"),  # type: ignore[arg-type]
        (lambda: Graph("g", (), {"a": np.zeros(1)}, (), ()), "Graph.tensors: expected Tensor, got ndarray"),  # type: ignore[dict-item]
        (lambda: Graph("g", (), {"b": Tensor.of("a", [1])}, (), ()), "tensors: the key of 'a': expected its name"),
        (lambda: Graph("g", Node.of("A", [], []), {}, (), ()), "Graph.nodes: expected a list, got Node"),  # type: ignore[arg-type]
        (lambda: Graph("g", (), {}, ("x",), ()), "Graph.inputs: expected Value, got 'x'"),  # type: ignore[arg-type]
        (lambda: Node("A", (), (), {"a": 1}), "Node.attributes: expected Attribute, got 1"),  # type: ignore[dict-item]
        (lambda: Model(None, {"": 17}, 8), "Model.graph: expected Graph, got None"),  # type: ignore[arg-type]
        (lambda: Model(Graph("g", (), {}, (), ()), 17, 8), "Model.opsets: expected a mapping, got 17"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_wrong_parts(make: Callable[[], object], text: str) -> None:
    with pytest.raises(lowbit.InputError, match=text):
        make()


def test_lists_become_tuples() -> None:
    graph = Graph("g", [Node("A", ["x"], ["y"])], {}, [Value("x")], [Value("y")])  # type: ignore[arg-type]
    assert [type(part) for part in (graph.nodes, graph.inputs, graph.outputs, graph.nodes[0].inputs)] == [tuple] * 4


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (Node.of("A", [], [1]), "field output: expected a string, got int"),  # type: ignore[list-item]
        (Node.of("A", [], [], a=2**64), "field i: expected an integer of 64 bits, got 18446744073709551616"),
        (Node.of("A", [], [], a=1e300), "field f: 1e\\+300 exceeds float32"),
        (Node("A", (), (), rest={"unknown": 1}), "NodeProto: some of the fields are unknown"),
        (Node.of("A", [], ["\ud800x"]), "field output: expected a string that UTF-8 can encode"),
    ],
)
def test_wrong_values(tmp_path: Path, part: Node, text: str) -> None:
    with pytest.raises(lowbit.InputError, match=text):
        lowbit.onnx.write(tmp_path / "m.onnx", Model(Graph("g", (part,), {}, (), ()), {"": 17}, 8))
    assert list(tmp_path.iterdir()) == []
