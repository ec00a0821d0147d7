"""Nodes that no operator has: every mode leaves them, or raises an error of lowbit's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import lowbit
from lowbit.onnx import Attribute, Graph, Model, Node, OnnxOptions, Tensor, Value
from lowbit.onnx.dynamic import dynamic
from lowbit.onnx.float16 import float16

MATRIX = np.ones((16, 16), np.float32)
TENSORS = {
    "w": MATRIX, "v": MATRIX[0], "s": np.float32(1), "c": np.ones((16, 16, 3, 3), np.float32),
    "l": np.ones((1, 64, 16), np.float32), "e": np.ones((0, 16), np.float32), "i": np.array([1, 16]),
    "t": np.array([b"a"], object), "d": MATRIX.astype(np.float64),
}  # fmt: skip
BRANCH = Graph("b", (Node.of("Relu", ["a"], ["br"]),), {}, (), (Value.of("br", np.float32),))
NODES = [
    Node.of("MatMul", ["a", "w"], ["z"]),
    Node.of("Gemm", ["a", "w", "v"], ["z"], transA=0, transB=1, alpha=1.0, beta=2.0),
    Node.of("Conv", ["a", "c", "v"], ["z"], pads=[1, 1, 1, 1]),
    Node.of("LSTM", ["a", "l", "l"], ["z"], hidden_size=16, layout=0),
    Node.of("Gather", ["w", "i"], ["z"], axis=0),
    Node.of("Transpose", ["w"], ["z"], perm=[1, 0]),
    Node.of("Reshape", ["w", "i"], ["z"]),
    Node.of("Cast", ["a"], ["z"], to=1),
    Node.of("Constant", [], ["z"], value=Tensor.of("", MATRIX)),
    Node.of("ConstantOfShape", ["i"], ["z"], value=Tensor.of("", MATRIX[0, :1])),
    Node.of("LayerNormalization", ["a", "v"], ["z"], axis=-1),
    Node.of("If", ["a"], ["z"], then_branch=BRANCH, else_branch=BRANCH),
    Node.of("Loop", ["i", "", "a"], ["z"], body=BRANCH),
]
VALUES = (0, -3, 1.5, "text", (0, 0), (5,), ("a", "b"), Tensor.of("", MATRIX), BRANCH)


def variants(node: Node) -> Iterator[Node]:
    """The node with inputs, outputs and attributes left out and exchanged."""
    for count in range(len(node.inputs)):
        yield replace(node, inputs=node.inputs[:count])
        for other in ("", "a", *TENSORS):
            yield replace(node, inputs=(*node.inputs[:count], other, *node.inputs[count + 1 :]))
    yield replace(node, inputs=(*node.inputs, "", "w", "z"))
    yield replace(node, outputs=())
    yield replace(node, outputs=("",))
    yield replace(node, outputs=("z", "y", "x", "a"))
    for name in (*node.attributes, "perm", "axis", "to", "value", "transB"):
        yield replace(node, attributes={key: value for key, value in node.attributes.items() if key != name})
        for value in VALUES:
            yield replace(node, attributes={**node.attributes, name: Attribute.of(name, value)})


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.op_type)
@pytest.mark.parametrize(
    "options",
    [{"mode": "dynamic"}, {"mode": "dynamic", "fused": True}, {"mode": "float16", "out_of_range": "float"},
     {"mode": "bfloat16"}],
    ids=str,
)  # fmt: skip
def test_no_other_errors(node: Node, options: Any) -> None:
    made = {name: Tensor.of(name, array) for name, array in TENSORS.items()}
    change = dynamic if options["mode"] == "dynamic" else float16
    for variant in variants(node):
        reader = Node.of("MatMul", ["a", "z"], ["out"])
        graph = Graph("g", (variant, reader), made, (Value.of("a", np.float32),), (Value.of("out", np.float32),))
        with contextlib.suppress(lowbit.Error):
            result, _ = change(Model(graph, {"": 17}, 8), OnnxOptions(**options))
            result.fields()
