"""ONNX models: read, written, quantized and optimized."""

from lowbit.onnx.block_matrix import BlockMatrix
from lowbit.onnx.block_reading import block_matrix
from lowbit.onnx.blocks_to_gguf import PackedBlocks, to_gguf
from lowbit.onnx.fidelity import Fidelity
from lowbit.onnx.gguf_blocks import GgufBlocks, PackedRows, from_gguf
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
    "BlockMatrix",
    "External",
    "Fidelity",
    "Function",
    "GgufBlocks",
    "Graph",
    "Model",
    "Node",
    "NodeReport",
    "OnnxOptions",
    "OptimizeReport",
    "PackedBlocks",
    "PackedRows",
    "QuantizeReport",
    "Tensor",
    "Value",
    "block_matrix",
    "from_gguf",
    "open",
    "optimize",
    "quantize",
    "sensitivity",
    "to_gguf",
    "write",
]
