"""Modes "float16" and "bfloat16": weights and calculations in 16 bits.

float16: nodes calculate in float16 unless an operator is listed below. ONNX Runtime calculates those that its processor
kernels have not in float16 as float32, and converts around them.

bfloat16: ONNX Runtime's kernels for processors know bfloat16 only as a format to store. So weights are stored in it and
cast where they are used, embeddings after the rows are gathered, and nodes calculate in float32.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from lowbit.base.errors import UnsupportedError
from lowbit.onnx.dtypes import Bytes, element_type, pack
from lowbit.onnx.graph import Attribute, Graph, Model, Node, Value
from lowbit.onnx.opsets import lacking, raise_with
from lowbit.onnx.options import OnnxOptions
from lowbit.onnx.report import FLOAT, NodeReport
from lowbit.onnx.rewriting import Scope, with_added, with_subgraphs
from lowbit.onnx.tensor import Tensor
from lowbit.onnx.types import NO_TENSORS, DType, output_types
from lowbit.onnx.writing import THRESHOLD

_FLOAT32 = np.dtype(np.float32)
_SUMS = "its sums overflow float16 early"
_FLOAT_ONLY = "it has no float16 form in every opset"
_RANDOM = "its results would be others"
_QUANTIZED = "it is quantized already"
#: Operators that stay float by default, and why. Sin and Cos take nodes along that calculate only their angles.
STAY_FLOAT: Mapping[str, str] = {
    **dict.fromkeys(("CumSum", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd"), _SUMS),
    **dict.fromkeys(("ReduceSum", "ReduceSumSquare"), _SUMS),
    "Pow": "squares above 255 overflow float16",
    **dict.fromkeys(("Sin", "Cos"), "angles of large positions need more bits"),
    **dict.fromkeys(("Range", "Upsample", "NonMaxSuppression", "RoiAlign", "MaxRoiPool", "DFT", "STFT"), _FLOAT_ONLY),
    **dict.fromkeys(("EyeLike", "MelWeightMatrix", "HannWindow", "HammingWindow", "BlackmanWindow"), _FLOAT_ONLY),
    **dict.fromkeys(("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"), _RANDOM),
    **dict.fromkeys(("Bernoulli", "Multinomial"), _RANDOM),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"), _QUANTIZED),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul"), _QUANTIZED),
    **dict.fromkeys(NO_TENSORS, "the types of what is in a sequence are unknown"),
}
#: Inputs that are float32 whatever the type of the others is: sizes, not values.
_FLOAT_INPUTS: Mapping[str, Sequence[int]] = {"Resize": (1, 2)}
#: Operators whose constants are numbers to calculate with, and no masks that may be clamped.
_NO_MASKS = (
    "BatchNormalization", "Conv", "ConvTranspose", "Div", "GRU", "Gemm", "InstanceNormalization", "LSTM",
    "LayerNormalization", "MatMul", "RNN",
)  # fmt: skip
#: Operators of com.microsoft whose values have one float type.
_MICROSOFT = (
    "BiasGelu", "FastGelu", "FusedMatMul", "Gelu", "GroupQueryAttention", "MultiHeadAttention", "QuickGelu",
    "RotaryEmbedding", "SimplifiedLayerNormalization",
)  # fmt: skip
_ANGLES = ("Sin", "Cos")
_BFLOAT16_OPSET = 13


def float16(model: Model, options: OnnxOptions) -> tuple[Model, list[NodeReport]]:
    """The model in 16 bits. options.mode: "float16" or "bfloat16". Also `keep_io`, `out_of_range`.

    Raises UnsupportedError if inputs and outputs would be bfloat16 below the opset whose Cast knows it.
    """
    if options.mode == "bfloat16" and not options.keep_io and model.opset < _BFLOAT16_OPSET:
        expected, rest = f"opset {_BFLOAT16_OPSET}", f": {raise_with(_BFLOAT16_OPSET)}"
        raise UnsupportedError("keep_io=False: bfloat16 inputs:", expected=expected, found=model.opset, rest=rest)
    change = _Conversion(model, options)
    graph, _ = change.graph(model.graph, is_main=True)
    return with_added(replace(model, graph=graph), change.scope), change.reports


class _Conversion:
    def __init__(self, model: Model, options: OnnxOptions) -> None:
        self.reports: list[NodeReport] = []
        self.scope = Scope(model)
        self._options = options
        self._low = np.dtype(np.float16 if options.mode == "float16" else ml_dtypes.bfloat16)
        self._stores_only = options.mode == "bfloat16"
        self._types: ChainMap[str, DType] = ChainMap()  # in the float model
        self._held: ChainMap[str, DType] = ChainMap()  # in the new one
        self._declared: dict[str, DType] = {}
        self._stored: dict[Any, str] = {}
        self._calculated: set[str] = set()  # names of what nodes calculate
        self._opset = model.opset

    # --- graphs

    def graph(self, graph: Graph, *, is_main: bool = False, given: Sequence[DType] = ()) -> tuple[Graph, list[DType]]:
        """The graph in 16 bits, and the float model's types of its outputs. given: those of its inputs, if known.

        Inputs and outputs of subgraphs stay float32.
        """
        self.scope.enter(graph)
        self._types, self._held = self._types.new_child(), self._held.new_child()
        self._declared |= {value.name: value.dtype for value in (*graph.values, *graph.outputs) if value.dtype}
        lowers_io = is_main and not self._options.keep_io
        for tensor in graph.tensors.values():
            self._note(tensor.name, tensor.dtype, tensor.dtype)
        inputs = []
        for number, value in enumerate(graph.inputs):
            dtype = value.dtype or (given[number] if number < len(given) else None)
            if value.name in graph.tensors:
                inputs.append(value)
                continue
            lowered = lowers_io and dtype == _FLOAT32
            self._note(value.name, dtype, self._low if lowered else dtype)
            inputs.append(replace(value, dtype=self._low) if lowered else value)
        wanted = {value.name: self._low if lowers_io else _FLOAT32 for value in graph.outputs}
        reasons = dict.fromkeys(_calculate_angles(graph), "it calculates angles")
        reasons |= dict.fromkeys(_move_batches(graph), "ONNX Runtime 1.32 cannot load it before a MatMul")
        nodes: list[Node] = []
        for node in graph.nodes:
            self._convert(node, nodes, wanted, reasons.get(id(node), ""))
        outputs = tuple(self._typed(value) for value in graph.outputs)
        values = tuple(self._typed(value) for value in graph.values)
        types = [self._types.get(value.name) for value in graph.outputs]
        self.scope.leave()
        self._types, self._held = self._types.parents, self._held.parents
        return replace(graph, nodes=tuple(nodes), inputs=tuple(inputs), outputs=outputs, values=values), types

    def _note(self, name: str, dtype: DType, held: DType) -> None:
        self._types[name], self._held[name] = dtype, held

    def _typed(self, value: Value) -> Value:
        held = self._held.get(value.name)
        return replace(value, dtype=held) if value.dtype == _FLOAT32 and held == self._low else value

    # --- nodes

    def _convert(self, node: Node, nodes: list[Node], wanted: Mapping[str, np.dtype[Any]], reason: str) -> None:
        """Appends a node in its new form and the casts that it needs."""
        if any(True for _ in node.subgraphs):
            self._convert_control(node, nodes, wanted)
            return
        types = [
            self._declared.get(name) or dtype
            for name, dtype in zip(node.outputs, self._output_types(node), strict=True)
        ]
        if node.operator == "Constant":
            nodes.append(node)
            self._emit(node, types, types, nodes, wanted)
            return
        is_float = _FLOAT32 in types or any(self._types.get(name) == _FLOAT32 for name in node.inputs)
        reason = self._reason(node, reason) if is_float else ""
        low = is_float and not reason and not (self._stores_only and not self._is_embedding(node))
        before = after = 0
        inputs = []
        for number, name in enumerate(node.inputs):
            if self._types.get(name) != _FLOAT32 or (low and node.operator == "Cast"):
                inputs.append(name)
                continue
            to_low = low and number not in _FLOAT_INPUTS.get(node.operator, ())
            target = self._low if to_low else _FLOAT32
            stored = self._is_stored(name) and not reason
            inputs.append(self._as(name, target, nodes, stored))
            tensor = self._initializer(name)
            if tensor is not None:
                before += tensor.nbytes
                after += tensor.size * 2 if to_low or stored else tensor.nbytes
        held_types = [self._low if low and dtype == _FLOAT32 else dtype for dtype in types]
        if node.operator == "LayerNormalization":
            held_types[1:] = types[1:]
        new = replace(node, inputs=tuple(inputs)) if tuple(inputs) != node.inputs else node
        nodes.append(_with_type(new, self._low) if low else new)
        self._emit(node, types, held_types, nodes, wanted)
        if is_float and (before or reason or not self._stores_only):
            action = FLOAT if reason or (not low and before == after) else self._low.name + ("" if low else " weights")
            if action == FLOAT and not reason:
                reason = "its weights are small"
            self.reports.append(NodeReport(node.label, node.operator, action, reason, before, after))

    def _emit(
        self,
        node: Node,
        types: Sequence[DType],
        held: Sequence[DType],
        nodes: list[Node],
        wanted: Mapping[str, np.dtype[Any]],
    ) -> None:
        """Notes the outputs of the last of the nodes. Outputs of the graph get the type that it promises."""
        outputs, casts = list(node.outputs), []
        if node.operator != "Constant":
            self._calculated.update(node.outputs)
        for number, (name, dtype, has) in enumerate(zip(node.outputs, types, held, strict=True)):
            self._note(name, dtype, has)
            if name in wanted and dtype == _FLOAT32 and has != wanted[name]:
                outputs[number] = self.scope.fresh(f"{name}_{has}")
                self.scope.notes[name, has] = outputs[number]
                casts.append(self._cast(outputs[number], wanted[name], name))
                self._held[name] = wanted[name]
        if casts:
            nodes[-1] = replace(nodes[-1], outputs=tuple(outputs))
            nodes.extend(casts)

    def _convert_control(self, node: Node, nodes: list[Node], wanted: Mapping[str, np.dtype[Any]]) -> None:
        """A node with subgraphs: their inputs and outputs stay float32."""
        skipped = {"Loop": 2, "Scan": 0}.get(node.operator, len(node.inputs))
        given = [self._types.get(name) for name in node.inputs]
        given = [np.dtype(np.int64), np.dtype(np.bool_), *given[2:]] if node.operator == "Loop" else given
        found: list[DType] = []

        def change(graph: Graph) -> Graph:
            nonlocal found
            new, found = self.graph(graph, given=given if skipped < len(node.inputs) else ())
            return new

        changed = with_subgraphs(node, change)
        inputs = [
            self._as(name, _FLOAT32, nodes, False) if self._types.get(name) == _FLOAT32 else name
            for name in node.inputs
        ]
        nodes.append(replace(changed, inputs=tuple(inputs)))
        found = found[1:] if node.operator == "Loop" else found
        types = [*found, *[None] * len(node.outputs)][: len(node.outputs)]
        self._emit(node, types, types, nodes, wanted)

    def _output_types(self, node: Node) -> list[DType]:
        return output_types(node, lambda name: self._types.get(name))

    def _reason(self, node: Node, reason: str) -> str:
        """Why a node stays float, or nothing."""
        if selected := self._options.selects(node):
            return selected
        if self._stores_only and self._opset < _BFLOAT16_OPSET:
            return lacking("bfloat16 needs", _BFLOAT16_OPSET, self._opset)
        if reason and not self._stores_only:
            return reason
        if not self._stores_only or self._is_embedding(node):
            unknown = [name for name in node.inputs if name and self._types.get(name) is None]
            if unknown:
                return f"the type of {unknown[0]} is unknown"
        if node.operator not in self._options.include_operators and not self._stores_only:
            if why := STAY_FLOAT.get(node.operator):
                return why
            known = (
                not node.domain
                or node.domain == "ai.onnx"
                or (node.domain == "com.microsoft" and node.op_type in _MICROSOFT)
            )
            if not known:
                return f"an operator of {node.domain}"
        if self._options.out_of_range == "float" or (node.operator in _NO_MASKS and not self._stores_only):
            for name in node.inputs:
                tensor = self._initializer(name)
                if tensor is not None and tensor.dtype == _FLOAT32 and _exceeds(tensor, self._low):
                    return f"{name} has values beyond {self._low}"
        return ""

    def _is_embedding(self, node: Node) -> bool:
        return node.operator == "Gather" and self._is_stored(node.inputs[0])

    def _initializer(self, name: str) -> Tensor | None:
        """The constant of this name, if no node but Constant makes it."""
        return None if name in self._calculated else self.scope.constant(name)

    def _is_stored(self, name: str) -> bool:
        """Whether mode bfloat16 stores a constant in 16 bits."""
        tensor = self._initializer(name) if self._stores_only else None
        return tensor is not None and tensor.dtype == _FLOAT32 and tensor.nbytes >= THRESHOLD

    # --- values

    def _as(self, name: str, dtype: np.dtype[Any], nodes: list[Node], stored: bool) -> str:
        """The name of a float value in another type. Appends a cast, unless there was one.

        stored: whether a constant is stored in 16 bits, and cast.
        """
        if self._held.get(name) == dtype and not stored:
            return name
        notes = self.scope.notes
        if (name, dtype) not in notes:
            tensor = self._initializer(name)
            if tensor is None:
                notes[name, dtype] = self._cast(name, dtype)
            elif dtype == self._low:
                return self._store(tensor, name)
            else:
                notes[name, dtype] = self._cast(self._store(tensor, name), dtype)
            if isinstance(made := notes[name, dtype], Node):
                nodes.append(made)
                notes[name, dtype] = made.outputs[0]
        found: str = notes[name, dtype]
        return found

    def _cast(self, name: str, dtype: np.dtype[Any], output: str | None = None) -> Node:
        fresh = self.scope.fresh
        output = output or fresh(f"{name}_{dtype}")
        return Node.of("Cast", [name], [output], name=fresh(f"{name}/Cast"), to=element_type(dtype).number)

    def _store(self, tensor: Tensor, name: str) -> str:
        """Adds a constant in 16 bits, once. Its elements are converted when they are written."""
        key = (tensor.sharing, tensor.shape)
        if key not in self._stored:
            low = self._low
            made = Tensor(f"{name}_{low}", low, tensor.shape, _Lowered(tensor, low))
            self._stored[key] = self.scope.add(made)
        return self._stored[key]


class _Lowered:
    """The bytes of a tensor in 16 bits."""

    def __init__(self, tensor: Tensor, low: np.dtype[Any]) -> None:
        self._tensor, self._low = tensor, low

    def __call__(self) -> Bytes:
        raw = pack(lowered(self._tensor.array, self._low))
        self._tensor.release()
        return raw


def lowered(array: npt.NDArray[Any], low: np.dtype[Any]) -> npt.NDArray[Any]:
    """An array in 16 bits. Finite values beyond the range become the largest ones.

    A single value stays different from 0: it may be an epsilon that keeps a divisor from 0.
    """
    limits = _limits(low)
    largest = np.float32(limits.max)
    clamped = np.where(np.isfinite(array), np.clip(array, -largest, largest), array)
    result = clamped.astype(low)
    if array.size == 1 and np.any(array) and not np.any(result.astype(_FLOAT32)):
        result = np.copysign(np.float32(limits.smallest_subnormal), array).astype(low)
    return result


def _limits(low: np.dtype[Any]) -> Any:
    return ml_dtypes.finfo(low)  # type: ignore[no-untyped-call]


def _exceeds(tensor: Tensor, low: np.dtype[Any]) -> bool:
    """Whether a finite value is beyond the range."""
    array = np.abs(tensor.array)
    tensor.release()
    return bool((np.isfinite(array) & (array > np.float32(_limits(low).max))).any())


def _with_type(node: Node, low: np.dtype[Any]) -> Node:
    """The node with `low` in place of float32 in its attributes."""
    number = element_type(low).number
    if node.operator == "Cast" and node.get("to") == element_type(_FLOAT32).number:
        return replace(node, attributes={**node.attributes, "to": Attribute.of("to", number)})
    if node.operator == "ConstantOfShape":
        value = node.get("value")
        array = value.array if isinstance(value, Tensor) else np.zeros(1, np.float32)
        if array.dtype == _FLOAT32:
            made = Attribute.of("value", Tensor.of("", lowered(array, low)))
            return replace(node, attributes={**node.attributes, "value": made})
    return node


def _move_batches(graph: Graph) -> set[int]:
    """The ids of the nodes that move the first axis before or behind the last one, for a MatMul.

    ONNX Runtime 1.32 cannot load the two in float16.
    """
    factors = {name for node in graph.nodes if node.operator == "MatMul" for name in node.inputs}
    found = set()
    for node in graph.nodes:
        perm = node.get("perm")
        if node.operator == "Transpose" and isinstance(perm, tuple) and not factors.isdisjoint(node.outputs):
            *axes, last = range(1, max(len(perm), 2))
            if axes and perm in ((*axes, 0, last), (*axes, last, 0)):
                found.add(id(node))
    return found


def _calculate_angles(graph: Graph) -> set[int]:
    """The ids of the nodes whose results only Sin and Cos see, directly or through each other."""
    readers: dict[str, list[Node]] = {}
    for reader in graph.nodes:
        inner = (
            name for each in reader.subgraphs for part in each.graphs() for node in part.nodes for name in node.inputs
        )
        for name in (*reader.inputs, *inner):
            readers.setdefault(name, []).append(reader)
    outputs = {value.name for value in graph.outputs}
    found: set[int] = set()
    for node in reversed(graph.nodes):
        users = [user for name in node.outputs for user in readers.get(name, ())]
        if users and outputs.isdisjoint(node.outputs) and all(id(u) in found or u.operator in _ANGLES for u in users):
            found.add(id(node))
    return found
