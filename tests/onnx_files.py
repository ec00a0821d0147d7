"""A small ONNX model with most parts of the format, made without the `onnx` package, and the bytes of messages."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from lowbit import _core
from lowbit.onnx import Attribute, Function, Graph, Model, Node, Tensor, Value


def message(kind: str, **fields: Any) -> np.ndarray:
    """The bytes of a message. Messages inside it are dicts or bytes."""
    return np.frombuffer(b"".join(map(bytes, _core.encode_onnx(kind, fields))), np.uint8)


def whole_model() -> Model:
    """Every kind of attribute and value, a subgraph, a function, typed, raw, packed and string tensors, metadata."""
    weight = np.arange(600, dtype=np.float32).reshape(20, 30) / 7
    typed = {"dims": [2], "data_type": 7, "int64_data": [1, -2], "name": "typed"}
    sparse = {"values": typed, "indices": typed, "dims": [9]}
    inner = Graph("then", (Node.of("Neg", ["x"], ["out"]),), {"k": Tensor.of("k", weight[:2])}, (), (Value("out"),))
    attributes = {
        "f": 0.5, "i": -3, "s": "t\u00e9xt", "fs": [1.0, 2.5], "is": [1, 2**40], "ss": ["a", ""],
        "t": Tensor.of("t", np.int8([1])), "ts": [Tensor.of("u", weight[0])], "g": inner, "gs": [inner],
    }  # fmt: skip
    node = Node.of("Custom", ["x", "", "w"], ["y"], name="n", domain="my", **attributes)
    others = {
        "sp": Attribute("sp", "SPARSE_TENSOR", message("SparseTensorProto", **sparse)),
        "tp": Attribute("tp", "TYPE_PROTO", message("TypeProto", sequence_type={"elem_type": {"denotation": "d"}})),
        "none": Attribute("none", "INTS", ()),
    }
    node = Node(node.op_type, node.inputs, node.outputs, {**node.attributes, **others}, "n", "my", {"doc_string": "d"})
    tensors = {
        "w": Tensor.of("w", weight),
        "int4": Tensor.of("int4", np.arange(-3, 4).astype(ml_dtypes.int4)),
        "bf16": Tensor.of("bf16", np.ones((2, 0, 3), ml_dtypes.bfloat16)),
        "texts": Tensor.of("texts", np.array(["a", "\u00e9"])),
    }
    branch = Node.of("If", ["c"], ["z"], name="branch", then_branch=inner, else_branch=inner)
    values = (Value.of("x", np.float32, ["n", None, 3]), Value.of("c", np.bool_, []))
    graph = Graph("main", (node, branch), tensors, values, (Value("y"), Value.of("z", np.float16)), (Value("h"),))
    body = (Node.of("Add", ["a", "a"], ["b"]), Node.of("Constant", [], ["k"], value=Tensor.of("", np.int64([3]))))
    function = Function("Twice", "my", ("a",), ("b",), body, {"": 21})
    return Model(graph, {"": 21, "my": 1}, 10, {"author": "a"}, "maker", (function,), {"model_version": 4})


def network(size: int = 64, **more: Tensor) -> Model:
    """y = x @ w + b, and tensors that no node uses."""
    random = np.random.default_rng(0)
    tensors = {
        "w": Tensor.of("w", random.standard_normal((size, size), np.float32)),
        "b": Tensor.of("b", random.standard_normal(size, np.float32)),
        **more,
    }
    nodes = (Node.of("MatMul", ["x", "w"], ["h"], name="product"), Node.of("Add", ["h", "b"], ["y"], name="sum"))
    graph = Graph(
        "g", nodes, tensors, (Value.of("x", np.float32, ["n", size]),), (Value.of("y", np.float32, ["n", size]),)
    )
    return Model(graph, {"": 17}, 8)
