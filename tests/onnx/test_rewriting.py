"""What a rewrite sees of a graph, and what it leaves of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from lowbit.onnx import Graph, Model, Node, Tensor, Value
from lowbit.onnx.rewriting import Scope, rewrite

MATRIX = np.arange(6, dtype=np.float32).reshape(2, 3)


def model(*nodes: Node, ir_version: int = 8, inputs: tuple[str, ...] = ("x",), **tensors: Any) -> Model:
    made = {name: Tensor.of(name, array) for name, array in tensors.items()}
    values = tuple(Value.of(name, np.float32) for name in inputs)
    return Model(Graph("g", nodes, made, values, (Value.of("z", np.float32),)), {"": 17}, ir_version)


def scope_of(of: Model) -> Scope:
    scope = Scope(of)
    scope.enter(of.graph)
    return scope


def test_constants_that_nodes_make() -> None:
    scope = scope_of(model(
        Node.of("Constant", [], ["ints"], value_ints=[0, -1]), Node.of("Constant", [], ["float"], value_float=2.0),
        Node.of("Transpose", ["m"], ["t"]), Node.of("Reshape", ["t", "ints"], ["r"]),
        Node.of("Reshape", ["m", "x"], ["unknown"]), Node.of("Identity", ["r"], ["i"]),
        Node.of("Relu", ["m"], ["relu"]),
        Node.of("Transpose", ["m"], ["bad"], perm=[0, 2]), Node.of("Reshape", ["m", "seven"], ["worse"]),
        m=MATRIX, seven=np.array([7]),
    ))  # fmt: skip
    found = {name: scope.constant(name) for name in ("ints", "float", "t", "r", "i")}
    arrays = {name: tensor.array.tolist() for name, tensor in found.items() if tensor}
    turned = MATRIX.T.tolist()
    assert arrays == {"ints": [0, -1], "float": 2.0, "t": turned, "r": turned, "i": turned}
    assert [scope.constant(name) for name in ("x", "unknown", "relu", "bad", "worse")] == [None] * 5
    assert (scope.transposed("t"), scope.transposed("r"), scope.transposed("m")) == ("m", None, None)


def test_transposed_constants_of_each_graph() -> None:
    """Branches may give one name to different values."""
    outer = model(Node.of("Transpose", ["m"], ["a"]), Node.of("Transpose", ["n"], ["b"]), m=MATRIX, n=MATRIX + 1)
    scope = scope_of(outer)
    scope.enter(Graph("then", (Node.of("Transpose", ["n"], ["t"]),), {}, (), ()))
    assert [scope.transposed(name) for name in "abt"] == ["m", "n", "n"]
    scope.leave()
    scope.enter(Graph("else", (), {"t": Tensor.of("t", MATRIX)}, (), ()))
    assert [scope.transposed(name) for name in "abt"] == ["m", "n", None]


def test_an_input_of_a_new_file_is_no_constant() -> None:
    assert scope_of(model(inputs=("x", "m"), m=MATRIX)).constant("m") is None
    assert scope_of(model(inputs=("x", "m"), m=MATRIX, ir_version=3)).constant("m") is not None


def test_notes_of_a_branch_are_forgotten() -> None:
    outer, branch = model(m=MATRIX), Graph("b", (), {}, (), ())
    scope = scope_of(outer)
    scope.notes["outer"] = 1
    scope.enter(branch)
    scope.notes["inner"] = 2
    assert scope.notes["outer"] == 1
    scope.leave()
    assert dict(scope.notes) == {"outer": 1}


def test_what_nothing_uses_is_removed() -> None:
    branch = Graph("b", (Node.of("Relu", ["a"], ["r"]), Node.of("Exp", ["a"], ["e"])), {}, (), (Value.of("r", "f4"),))
    source = model(
        Node.of("Relu", ["x"], ["a"]), Node.of("Exp", ["m"], ["b"]), Node.of("Exp", ["b"], ["c"]),
        Node.of("If", ["x"], ["z"], then_branch=branch, else_branch=branch), m=MATRIX,
    )  # fmt: skip
    result = rewrite(source, lambda node, scope: None)
    assert [node.op_type for node in result.nodes] == ["Relu", "If"]
    assert [[node.op_type for node in graph.nodes] for graph in result.nodes[1].subgraphs] == [["Relu"]] * 2
    assert not result.graph.tensors
    assert rewrite(result, lambda node, scope: None) is result


def test_old_files_get_a_version_that_has_what_is_added() -> None:
    def change(node: Node, scope: Scope) -> list[Node]:
        return [Node.of("Add", ["x", scope.add(Tensor.of("m", MATRIX))], node.outputs)]

    source = model(Node.of("Add", ["x", "m"], ["z"]), ir_version=3, inputs=("x", "m"), m=MATRIX)
    result = rewrite(source, change)
    assert (result.ir_version, list(result.graph.tensors)) == (4, ["m_2"])
    assert [value.name for value in result.graph.inputs] == ["x"]
