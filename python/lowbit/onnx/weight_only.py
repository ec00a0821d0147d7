"""Mode "weight-only": weights in blocks of small integers; activations stay float.

    MatMul, Gemm    com.microsoft.MatMulNBits, or DequantizeLinear with blocks and MatMul or Gemm
    Gather          com.microsoft.GatherBlockQuantized

A weight that several nodes use is stored once, also one that is an embedding and, transposed, the output matrix.
Weights are quantized when the model is written, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit.base.errors import InputError
from lowbit.base.quoting import quoted
from lowbit.onnx.blocks import BITS, STANDARD, BlockFormat, BlockTensors, block_tensors, multiplies_right
from lowbit.onnx.channel_values import Channels, channels_of, weight_importance
from lowbit.onnx.graph import Graph, Model, Node
from lowbit.onnx.opsets import lacking
from lowbit.onnx.options import OnnxOptions
from lowbit.onnx.report import FLOAT, NodeReport, PendingReport
from lowbit.onnx.rewriting import Scope, rewrite
from lowbit.onnx.tensor import Tensor

_MICROSOFT = "com.microsoft"
#: ONNX Runtime rounds activations to 8 bits.
_INT8_ACTIVATIONS = 4


def weight_only(
    model: Model, options: OnnxOptions, channels: Channels = MappingProxyType({}), is_beside: bool = False
) -> tuple[Model, list[NodeReport]]:
    """The model with quantized weights. The errors of the reports are measured when they are asked for.

    channels: statistics of products' inputs, for importances that the options do not give. is_beside: initializers with
    the same bytes are stored once, because they are written beside the model. Raises InputError for bits and
    importances that do not fit.
    """
    change = _WeightOnly(model, options, channels)
    changed = rewrite(model, change)
    if not is_beside:
        changed = change.tied(changed)
    if change.ir_version > changed.ir_version:
        changed = replace(changed, ir_version=change.ir_version)
    if change.uses_microsoft:
        changed = replace(changed, opsets={_MICROSOFT: 1, **changed.opsets})
    return changed, change.reports


class _StaysFloatError(Exception):
    """Why a node stays float."""


class _Weight:
    """A quantized weight of the new model, with the names of its initializers."""

    def __init__(self, tensors: BlockTensors, scope: Scope) -> None:
        self.tensors = tensors
        self._scope = scope
        self._names: dict[str, str] = {}

    def name(self, part: str) -> str:
        """The initializer of "codes", "rows" (codes in two dimensions), "scales" or "zero_points"; "" if none."""
        if part not in self._names:
            tensor = self.tensors.codes if part == "rows" else getattr(self.tensors, part)
            if part == "rows":
                tensor = replace(tensor, shape=(tensor.shape[0], tensor.shape[1] * tensor.shape[2]))
            self._names[part] = self._scope.add(tensor) if tensor else ""
        return self._names[part]

    @property
    def inputs(self) -> list[str]:
        """Scales, and zero points if there are some."""
        return [name for name in (self.name("scales"), self.name("zero_points")) if name]

    @property
    def tied(self) -> tuple[str, str] | None:
        """The names of the codes as a product and as a table have them, if both are used."""
        return (self._names["codes"], self._names["rows"]) if {"codes", "rows"} <= self._names.keys() else None


class _WeightOnly:
    """The change of each node, and the reports."""

    def __init__(self, model: Model, options: OnnxOptions, channels: Channels) -> None:
        self.reports: list[NodeReport] = []
        self.uses_microsoft = False
        self.ir_version = 0
        self._options = options
        self._opset = model.opset
        self._weights: dict[Any, _Weight] = {}
        given = options.importances or {}
        self._importances = _importances(model, channels, given) if options.method == "search" else {}

    def __call__(self, node: Node, scope: Scope) -> list[Node] | None:
        handler = _HANDLERS.get(node.operator)
        if handler is None or len(node.inputs) < 2 or len(node.outputs) != 1:
            return None
        if handler is _WeightOnly._gather and not _is_float(scope.constant(node.inputs[0])):
            return None  # not an embedding
        self._bytes = (0, 0)
        try:
            if reason := self._options.selects(node):
                raise _StaysFloatError(reason)
            nodes, weight, format = handler(self, node, scope)
        except _StaysFloatError as reason:
            self.reports.append(NodeReport(node.label, node.operator, FLOAT, str(reason)))
            return None
        action = f"int{format.bits} block {format.block_size}{'' if format.symmetric else ' with zero points'}"
        self.reports.append(
            PendingReport(
                node.label,
                node.operator,
                action,
                bytes_before=self._bytes[0],
                bytes_after=self._bytes[1],
                measure=weight.tensors.error,
            )
        )
        return nodes

    def tied(self, model: Model) -> Model:
        """The model with one initializer for codes that a product and a table use: the table gets a Reshape."""
        graph: Graph = model.graph
        for codes, rows in filter(None, (weight.tied for weight in self._weights.values())):
            if not {codes, rows} <= graph.tensors.keys():
                continue  # nothing reads the result of one
            tensors = dict(graph.tensors)
            table = tensors.pop(rows)
            shape = Tensor.of(f"{rows}_shape", np.array(table.shape, np.int64))
            tensors[shape.name] = shape
            reshape = Node.of("Reshape", [codes, shape.name], [rows], name=f"{rows}_reshape")
            graph = replace(graph, nodes=(reshape, *graph.nodes), tensors=tensors)
        return model if graph is model.graph else replace(model, graph=graph)

    # --- weights

    def _format(self, node: Node, layout: str) -> BlockFormat:
        options, bits = self._options, self._options.bits_of(node)
        if bits not in BITS:
            raise InputError(
                f"node {quoted(node.label)}: bits:", expected="2, 4 or 8: no runtime has others", found=bits
            )
        return BlockFormat(bits, options.block_size, options.symmetric, options.method, layout)

    def _constant(self, name: str, scope: Scope) -> Tensor:
        tensor = scope.constant(name)
        if tensor is None:
            raise _StaysFloatError("dynamic weight")
        if tensor.dtype not in (np.float32, np.float16):
            raise _StaysFloatError(f"the weight is {tensor.dtype}, the kernels need float32 or float16")
        if not tensor.size:
            raise _StaysFloatError("the weight is empty")
        if len(tensor.shape) != 2:
            raise _StaysFloatError(f"the weight has {len(tensor.shape)} dimensions, the kernels need 2")
        return tensor

    def _weight(
        self, node: Node, name: str, scope: Scope, format: BlockFormat, outputs_first: bool, factor: float = 1.0
    ) -> tuple[_Weight, tuple[int, int]]:
        """Quantizes a constant once for all nodes. Returns it with its numbers of outputs and inputs.

        outputs_first: the constant is [outputs, inputs].
        """
        tensor = self._constant(name, scope)
        if (base := scope.transposed(name)) is not None:
            tensor, outputs_first = self._constant(base, scope), not outputs_first
        outputs, inputs = tensor.shape if outputs_first else tensor.shape[::-1]
        importance = self._importances.get((tensor.sharing, outputs_first), self._importance(node, inputs))
        key = (tensor.sharing, tensor.shape, outputs_first, format, factor, importance is not None and id(importance))
        weight = self._weights.get(key)
        if weight is None:
            before, after = tensor.nbytes, format.nbytes(outputs, inputs, tensor.dtype.itemsize)
            if after >= before:
                raise _StaysFloatError(f"{before} bytes would become {after}")

            def matrix() -> npt.NDArray[Any]:
                return tensor.array if outputs_first else tensor.array.T

            base_name = tensor.name or name
            tensors = block_tensors(
                base_name, matrix, (outputs, inputs), tensor.dtype, format, self._options.threads, importance, factor
            )
            weight = self._weights[key] = _Weight(tensors, scope)
            self._bytes = before, after
        return weight, (outputs, inputs)

    def _importance(self, node: Node, inputs: int) -> npt.NDArray[np.float32] | None:
        given = (self._options.importances or {}).get(node.label)
        if given is not None and given.shape != (inputs,):
            found = f"shape {given.shape}"
            raise InputError(f"importances of node {quoted(node.label)}:", expected=f"{inputs} numbers", found=found)
        return given

    # --- operators

    def _matmul(self, node: Node, scope: Scope) -> tuple[list[Node], _Weight, BlockFormat]:
        left, right = node.inputs[:2]
        if scope.constant(right) is None and scope.constant(left) is not None:
            raise _StaysFloatError("the weight is the left operand")
        if self._options.standard:
            return self._dequantized(node, scope, outputs_first=False)
        format = self._format(node, "rows")
        weight, sizes = self._weight(node, right, scope, format, outputs_first=False)
        return [self._product(node, left, node.outputs, weight, sizes, format)], weight, format

    def _gemm(self, node: Node, scope: Scope) -> tuple[list[Node], _Weight, BlockFormat]:
        outputs_first = bool(node.get("transB", 0))
        if self._options.standard:
            return self._dequantized(node, scope, outputs_first)
        format = self._format(node, "rows")
        alpha = float(node.get("alpha", 1.0))
        weight, sizes = self._weight(node, node.inputs[1], scope, format, outputs_first, alpha)
        nodes: list[Node] = []
        left = node.inputs[0]
        if node.get("transA", 0):
            left = self._added(node, scope, nodes, "Transpose", [left], perm=[1, 0])
        beta = node.get("beta", 1.0)
        addend = node.inputs[2] if len(node.inputs) > 2 and beta else ""
        constant = scope.constant(addend) if addend else None
        if constant is not None and (constant.size == 1 or constant.shape in ((sizes[0],), (1, sizes[0]))):
            row = np.broadcast_to(constant.array.reshape(-1) * constant.dtype.type(beta), sizes[:1])
            bias = scope.add(Tensor.of(f"{node.label}_bias", np.ascontiguousarray(row)))
            nodes.append(self._product(node, left, node.outputs, weight, sizes, format, bias))
        elif addend:
            product = scope.fresh(f"{node.outputs[0]}_product")
            nodes.append(self._product(node, left, (product,), weight, sizes, format))
            if beta != 1:
                factor = scope.add(Tensor.of(f"{node.label}_beta", np.array(beta, weight.tensors.scales.dtype)))
                addend = self._added(node, scope, nodes, "Mul", [addend, factor])
            nodes.append(Node.of("Add", [product, addend], node.outputs, name=scope.fresh(f"{node.label}_add")))
        else:
            nodes.append(self._product(node, left, node.outputs, weight, sizes, format))
        return nodes, weight, format

    def _added(
        self, node: Node, scope: Scope, nodes: list[Node], op_type: str, inputs: list[str], **values: Any
    ) -> str:
        output = scope.fresh(f"{node.label}_{op_type.lower()}")
        nodes.append(Node.of(op_type, inputs, [output], name=output, **values))
        return output

    def _product(
        self,
        node: Node,
        left: str,
        outputs: tuple[str, ...],
        weight: _Weight,
        sizes: tuple[int, int],
        format: BlockFormat,
        bias: str = "",
    ) -> Node:
        """MatMulNBits."""
        self.uses_microsoft = True
        inputs = [left, weight.name("codes"), *weight.inputs]
        if bias:  # behind zero points and g_idx
            inputs += [*[""] * (5 - len(inputs)), bias]
        # With 2 and 8 bits, the exact way expands the whole weight in each call: 100 times as slow.
        level = self._options.accuracy_level if format.bits == 4 else _INT8_ACTIVATIONS
        return Node.of(
            "MatMulNBits",
            inputs,
            outputs,
            name=node.name,
            domain=_MICROSOFT,
            K=sizes[1],
            N=sizes[0],
            bits=format.bits,
            block_size=format.block_size,
            accuracy_level=level,
        )

    def _dequantized(self, node: Node, scope: Scope, outputs_first: bool) -> tuple[list[Node], _Weight, BlockFormat]:
        """The node with a weight from DequantizeLinear: [inputs, outputs] with blocks along the inputs.

        Runtimes fuse only this layout, and only if the result has one reader: each node gets its own DequantizeLinear.
        """
        format = self._format(node, "columns")
        opset, ir_version = STANDARD[format.bits]
        if self._opset < opset:
            why = lacking(f"int{format.bits} blocks in DequantizeLinear need", opset, self._opset)
            raise _StaysFloatError(f"{why}, or leave out standard")
        outputs = self._constant(node.inputs[1], scope).shape[0 if outputs_first else 1]
        if not multiplies_right(format.bits, outputs):
            raise _StaysFloatError(f"{outputs} outputs: onnxruntime needs a multiple of 4 for int2 in DequantizeLinear")
        weight, _ = self._weight(node, node.inputs[1], scope, format, outputs_first)
        nodes: list[Node] = []
        inputs = [weight.name("codes"), *weight.inputs]
        floats = self._added(node, scope, nodes, "DequantizeLinear", inputs, axis=0, block_size=format.block_size)
        attributes = {name: value for name, value in node.attributes.items() if name != "transB"}
        nodes.append(replace(node, inputs=(node.inputs[0], floats, *node.inputs[2:]), attributes=attributes))
        self.ir_version = max(self.ir_version, ir_version)
        return nodes, weight, format

    def _gather(self, node: Node, scope: Scope) -> tuple[list[Node], _Weight, BlockFormat]:
        if self._options.standard:
            raise _StaysFloatError("ai.onnx has no operator that reads rows of blocks")
        if node.get("axis", 0) not in (0, -2):
            raise _StaysFloatError("it does not read rows")
        format = self._format(node, "rows")
        _, columns = self._constant(node.inputs[0], scope).shape
        if columns % format.block_size:
            raise _StaysFloatError(f"rows of {columns} values are not a multiple of block_size {format.block_size}")
        weight, _ = self._weight(node, node.inputs[0], scope, format, outputs_first=True)
        self.uses_microsoft = True
        gather = Node.of(
            "GatherBlockQuantized",
            [weight.name("rows"), node.inputs[1], *weight.inputs],
            node.outputs,
            name=node.name,
            domain=_MICROSOFT,
            bits=format.bits,
            block_size=format.block_size,
            gather_axis=0,
            quantize_axis=1,
        )
        return [gather], weight, format


def _importances(
    model: Model, channels: Channels, given: Mapping[str, npt.NDArray[np.float32]]
) -> dict[Any, npt.NDArray[np.float32]]:
    """The importances of inputs for each constant, and whether it is [outputs, inputs]; the sum of its products'.

    given: name of a node -> importances that take the place of those by the channels' statistics.
    """
    scope = Scope.of_graph(model)
    found: dict[Any, npt.NDArray[np.float32]] = {}
    for node in model.graph.nodes:
        weight = (
            scope.constant(node.inputs[1]) if node.operator in ("MatMul", "Gemm") and len(node.inputs) > 1 else None
        )
        if weight is None or len(weight.shape) != 2:
            continue
        outputs_first = bool(node.get("transB", 0))
        counts: npt.NDArray[Any] | None = given.get(node.label)
        if counts is None:
            counts = weight_importance(node, weight.shape, channels_of(node, channels), False)
        if counts is None or counts.size != weight.shape[int(outputs_first)]:
            continue
        if (base := scope.transposed(node.inputs[1])) is not None and (stored := scope.constant(base)) is not None:
            weight, outputs_first = stored, not outputs_first
        key = weight.sharing, outputs_first
        found[key] = found.get(key, np.float32(0)) + counts.reshape(-1).astype(np.float32)
    return found


def _is_float(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.dtype.kind == "f" and len(tensor.shape) > 1


_HANDLERS: Mapping[str, Callable[[_WeightOnly, Node, Scope], tuple[list[Node], _Weight, BlockFormat]]] = {
    "MatMul": _WeightOnly._matmul,
    "Gemm": _WeightOnly._gemm,
    "Gather": _WeightOnly._gather,
}
#: The operators that the mode quantizes.
OPERATORS = tuple(_HANDLERS)
