"""The element types of values between nodes, as far as they follow from the operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from lowbit.onnx.dtypes import BY_NUMBER
from lowbit.onnx.graph import Node
from lowbit.onnx.tensor import Tensor

#: None: unknown, or no tensor.
DType: TypeAlias = "np.dtype[Any] | None"

_BOOL, _INT64, _INT32 = np.dtype(np.bool_), np.dtype(np.int64), np.dtype(np.int32)
_UINT8, _FLOAT = np.dtype(np.uint8), np.dtype(np.float32)
_PREDICATES = (
    "And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Xor",
)  # fmt: skip
_INDICES = ("ArgMax", "ArgMin", "NonMaxSuppression", "NonZero", "Shape", "Size", "StringSplit")
#: Operators whose results are sequences and optional values.
NO_TENSORS = ("Optional", "SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "SplitToSequence")
#: Operators whose outputs have the type of another input than the first.
_LIKE = {"CastLike": 1, "DequantizeLinear": 1, "OneHot": 2, "QLinearConv": 7, "QLinearMatMul": 7, "Where": 1}
#: Operators whose outputs have types of their own, from the second output on.
_FURTHER: Mapping[str, Sequence[DType]] = {
    "Dropout": (_BOOL,),
    "DynamicQuantizeLinear": (_FLOAT, _UINT8),
    "LayerNormalization": (_FLOAT, _FLOAT),
    "MaxPool": (_INT64,),
    "TopK": (_INT64,),
    "Unique": (_INT64, _INT64, _INT64),
}
#: Operators with an attribute that states the type: its name, and what counts without it.
_STATED: Mapping[str, tuple[str, DType]] = {
    "Cast": ("to", None),
    "EyeLike": ("dtype", None),
    "HammingWindow": ("output_datatype", _FLOAT),
    "HannWindow": ("output_datatype", _FLOAT),
    "BlackmanWindow": ("output_datatype", _FLOAT),
    "MelWeightMatrix": ("output_datatype", _FLOAT),
    "Multinomial": ("dtype", _INT32),
    "RandomNormal": ("dtype", _FLOAT),
    "RandomUniform": ("dtype", _FLOAT),
}


def output_types(node: Node, type_of: Callable[[str], DType]) -> list[DType]:
    """The types of a node's outputs from those of its inputs. Not for operators with subgraphs."""
    first = _first_output(node, type_of)
    further = _FURTHER.get(node.operator, ())
    return [*([first] if node.outputs else []), *further, *[first] * len(node.outputs)][: len(node.outputs)]


def _first_output(node: Node, type_of: Callable[[str], DType]) -> DType:
    operator = node.operator
    if operator in _PREDICATES:
        return _BOOL
    if operator in _INDICES:
        return _INT64
    if operator in ("MatMulInteger", "ConvInteger"):
        return _INT32
    if operator == "DynamicQuantizeLinear":
        return _UINT8
    if operator in NO_TENSORS:
        return None
    if operator == "Constant":
        return _constant(node)
    if operator == "ConstantOfShape":
        value = node.get("value")
        return value.dtype if isinstance(value, Tensor) else _FLOAT
    if operator == "QuantizeLinear":
        if len(node.inputs) > 2 and node.inputs[2]:
            return type_of(node.inputs[2])
        return _by_number(node.get("output_dtype", 2))
    if operator in _STATED:
        attribute, default = _STATED[operator]
        return _by_number(node.get(attribute)) if attribute in node.attributes else default
    index = _LIKE.get(operator, 0)
    return type_of(node.inputs[index]) if index < len(node.inputs) else None


def _constant(node: Node) -> DType:
    for attribute in node.attributes.values():
        if isinstance(attribute.value, Tensor):
            return attribute.value.dtype
        if attribute.type.startswith(("INT", "FLOAT")):
            return _INT64 if attribute.type.startswith("INT") else _FLOAT
    return None


def _by_number(number: Any) -> DType:
    return BY_NUMBER[number].dtype if number in BY_NUMBER else None
