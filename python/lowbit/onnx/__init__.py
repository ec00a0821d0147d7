"""ONNX models: read, written, quantized and optimized."""

from lowbit.onnx.graph import Attribute, Function, Graph, Model, Node, Value
from lowbit.onnx.optimizing import OptimizeReport, optimize
from lowbit.onnx.options import OnnxOptions
from lowbit.onnx.quantizing import quantize, sensitivity
from lowbit.onnx.reading import open_model as open
from lowbit.onnx.report import NodeReport, QuantizeReport
from lowbit.onnx.tensor import External, Tensor
from lowbit.onnx.writing import write

__all__ = [
    "Attribute",
    "External",
    "Function",
    "Graph",
    "Model",
    "Node",
    "NodeReport",
    "OnnxOptions",
    "OptimizeReport",
    "QuantizeReport",
    "Tensor",
    "Value",
    "open",
    "optimize",
    "quantize",
    "sensitivity",
    "write",
]
