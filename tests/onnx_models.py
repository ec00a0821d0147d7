"""ONNX models that use every part of the format, made by the `onnx` package."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
TYPES = {number: name for name, number in TensorProto.DataType.items() if number}
SHAPES = [(), (0,), (1,), (5,), (3, 3), (2, 0, 3), (4, 8)]


def elements(number: int, shape: tuple[int, ...]) -> np.ndarray:
    """An array of random bits; of strings, some that are not ASCII."""
    if number == TensorProto.STRING:
        texts = [f"t\u00e9xt {i}" if i else "" for i in range(int(np.prod(shape)))]
        return np.array(texts, object).reshape(shape)
    dtype = helper.tensor_dtype_to_np_dtype(number)
    random = np.random.default_rng(number)
    if dtype == np.bool_:
        return random.integers(0, 2, shape).astype(dtype)
    most = {  # of codes of less than a byte
        "int4": 16, "uint4": 16, "float4_e2m1fn": 16, "int2": 4, "uint2": 4, "float6_e2m3fn": 64, "float6_e3m2fn": 64,
    }.get(dtype.name, 256)  # fmt: skip
    codes = random.integers(0, most, int(np.prod(shape)) * dtype.itemsize, dtype=np.uint8)
    if np.issubdtype(dtype, np.inexact) and dtype.itemsize > 1:
        codes &= 0x3F  # finite: other ways of making a tensor change the bits of NaNs
    return codes.view(dtype).reshape(shape)


def value(name: str, shape: list[Any] | None = None, number: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, number, shape)


def small(ir_version: int = 10, opset: int = 21, *, size: int = 64, seed: int = 0) -> onnx.ModelProto:
    """A network that onnxruntime runs: one weight of size * size, one of size."""
    random = np.random.default_rng(seed)
    weights = {"w": random.standard_normal((size, size)), "b": random.standard_normal(size)}
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Add", ["h", "b"], ["y"], name="sum"),
    ]
    inputs = [value("x", ["n", size])]
    if ir_version < 4:  # initializers had to be inputs
        inputs += [value("w", [size, size]), value("b", [size])]
    graph = helper.make_graph(nodes, "small", inputs, [value("y", ["n", size])], tensors)
    return helper.make_model(graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", opset)])


def everything() -> onnx.ModelProto:
    """Every attribute type and value type, subgraphs, functions, sparse tensors, training info, annotations."""
    tensor = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "inner")
    typed = helper.make_tensor("typed", TensorProto.INT64, [3], [1, -2, 2**40])
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.float32([1, 2]), "sparse"), numpy_helper.from_array(np.int64([0, 3]), "indices"), [5]
    )
    inner = helper.make_graph([helper.make_node("Add", ["x", "inner"], ["out"])], "then", [], [value("out")], [tensor])
    types = [
        helper.make_tensor_type_proto(FLOAT, [1, "n", None]),
        helper.make_sparse_tensor_type_proto(FLOAT, [2]),
        helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None)),
        helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(FLOAT, [])),
        helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.INT4, [3])),
    ]
    opaque = onnx.TypeProto()
    opaque.opaque_type.domain, opaque.opaque_type.name = "d", "n"
    opaque.denotation = "IMAGE"
    types[0].tensor_type.shape.dim[1].denotation = "DATA_BATCH"
    attributes = {
        "f": 1.5, "i": -7, "s": "t\u00e9xt", "raw": b"\xff\x00", "floats": [0.5, -1.0], "ints": [3, -(2**62)],
        "strings": ["a", "b"], "t": tensor, "tensors": [tensor, typed], "g": inner, "graphs": [inner, inner],
        "sp": sparse, "sps": [sparse], "tp": types[0], "tps": types,
    }  # fmt: skip
    nodes = [
        helper.make_node("Custom", ["x", "", "w"], ["y"], name="n", domain="my", doc_string="doc", **attributes),
        helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner),
        helper.make_node("Twice", ["x"], ["v"], domain="my"),
    ]
    nodes[0].overload = "o"
    nodes[0].metadata_props.add(key="k", value="v")
    empty = nodes[0].attribute.add(name="nothing", type=onnx.AttributeProto.INTS)
    empty.doc_string = "an empty list"
    device = nodes[0].device_configurations.add(configuration_id="c")
    device.sharding_spec.add(tensor_name="w", device=[1, 2]).sharded_dim.add(axis=1).simple_sharding.add(num_shards=2)
    inputs = [helper.make_value_info(f"in{i}", kind) for i, kind in enumerate([*types, opaque])]
    graph = helper.make_graph(
        nodes,
        "main",
        [value("x", [2, 3]), value("c", [], TensorProto.BOOL), *inputs],
        [value("y"), value("z", []), onnx.ValueInfoProto(name="v")],
        [typed, helper.make_tensor("w", TensorProto.STRING, [2], [b"\xff", b"b"])],
        "doc",
        [value("h", ["a", None, 3])],
        sparse_initializer=[sparse],
    )
    annotation = graph.quantization_annotation.add(tensor_name="typed")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    body = [helper.make_node("Add", ["a", "a"], ["b"]), helper.make_node("Constant", [], ["k"], value=tensor)]
    body[0].attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="outer")
    function = helper.make_function("my", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 21)], ["outer"])
    model = helper.make_model(
        graph, functions=[function], producer_name="maker", producer_version="1", ir_version=13,
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("my", 1)],
    )  # fmt: skip
    helper.set_model_props(model, {"author": "a", "licence": "l"})
    training = model.training_info.add()
    training.algorithm.CopyFrom(inner)
    training.update_binding.add(key="w", value="w2")
    model.configuration.add(name="c", num_devices=2, device=["a", "b"])
    return model
