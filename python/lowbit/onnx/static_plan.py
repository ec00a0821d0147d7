"""What mode "static" quantizes: the nodes, and the values that need a range.

A product (Conv, ConvTranspose, MatMul, Gemm) is quantized wherever it can be. Other operators are quantized between
products: all of their inputs exist in 8 bits only, and a quantized node reads their result. Elsewhere they stay float,
since rounding there costs accuracy and saves no time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from lowbit.onnx.graph import Graph, Model, Node
from lowbit.onnx.options import OnnxOptions
from lowbit.onnx.rewriting import Scope
from lowbit.onnx.tensor import Tensor

PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
#: Operators with a range of their own for the result.
BETWEEN = ("Add", "Mul", "AveragePool", "GlobalAveragePool", "Concat", "Sigmoid", "LeakyRelu")
#: Operators that only move or choose values: input and result have the same scale and zero point.
MOVING = ("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice")
#: Operators that a range does as well: values outside become its limits.
CLAMPS = ("Relu", "Clip")
#: An embedding's table has a scale for each row.
TABLES = ("Gather",)
OPERATORS = (*PRODUCTS, *BETWEEN, *MOVING, *TABLES)
#: Operators with weights that no runtime has in 8 bits with calibrated activations.
WITHOUT = {"LSTM": "mode dynamic quantizes it", "GRU": "no runtime has it", "RNN": "no runtime has it"}
#: Operators that QOperator has no form of.
_ONLY_QDQ = ("ConvTranspose",)


@dataclass
class Step:
    """A node to quantize, with what follows it and needs no kernel of its own.

    original: the node of the model. addend: an Add of a constant for each channel; `node` is the product with that bias
    then, a Gemm in place of a MatMul of matrices. clamp: a Relu or Clip that the range of the result may replace.
    output: the value behind these.
    """

    original: Node
    node: Node
    output: str
    addend: Node | None = None
    clamp: Node | None = None
    is_integer: bool = True  #: the output exists as codes only; else as float, too


@dataclass
class Plan:
    """The steps by id of their node, the reasons of others, and who reads each value."""

    graph: Graph
    steps: dict[int, Step] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    readers: dict[str, list[Node]] = field(default_factory=lambda: defaultdict(list))
    producers: dict[str, Node] = field(default_factory=dict)
    outside: set[str] = field(default_factory=set)  #: outputs of the graph, and what subgraphs read

    def followers(self) -> set[int]:
        """The ids of the nodes that are parts of steps."""
        return {id(node) for step in self.steps.values() for node in (step.addend, step.clamp) if node is not None}

    def is_read_quantized(self, name: str) -> bool:
        """Whether a quantized node reads a value."""
        return any(id(node) in self.steps for node in self.readers[name])

    def is_read_float(self, name: str) -> bool:
        """Whether something else does."""
        return name in self.outside or any(id(node) not in self.steps for node in self.readers[name])


def activations(node: Node, scope: Scope) -> list[str]:
    """The inputs of a node that vary from run to run and are quantized."""
    if node.op_type in (*MOVING, *CLAMPS, "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu"):
        return [node.inputs[0]]
    names = node.inputs if node.op_type == "Concat" else node.inputs[:2]
    return [name for name in names if scope.constant(name) is None]


def candidates(model: Model, scope: Scope) -> list[str]:
    """The values that a plan may have to observe."""
    names: dict[str, None] = {}
    for node in model.graph.nodes:
        if node.operator in (*PRODUCTS, *BETWEEN, *MOVING, *CLAMPS):
            names.update(dict.fromkeys([*activations(node, scope), node.outputs[0]]))
    return [name for name in names if name and scope.constant(name) is None]


def make_plan(
    model: Model, options: OnnxOptions, scope: Scope, refused: Mapping[str, str], matrices: Container[str] = ()
) -> Plan:
    """The plan for a model. refused: values that cannot be quantized, with the reasons. matrices: those of rank 2."""
    plan = Plan(model.graph)
    for node in model.graph.nodes:
        for name in filter(None, node.inputs):
            plan.readers[name].append(node)
        for name in filter(None, node.outputs):
            plan.producers[name] = node
        plan.outside.update(name for graph in node.subgraphs for name in _read_in(graph))
    plan.outside.update(value.name for value in model.outputs)
    added: set[int] = set()
    for node in model.graph.nodes:
        if id(node) in added:
            continue
        reason = _reason(node, options, scope, refused)
        if reason is None:
            step = plan.steps[id(node)] = _step(node, plan, scope, refused, matrices)
            if step.addend is not None:
                added.add(id(step.addend))
            elif options.bias_correction and _is_matrix_product(node, scope, matrices):
                step.node = replace(node, op_type="Gemm")
        elif reason:
            plan.reasons[id(node)] = reason
    _drop_useless(plan, model, scope)
    return plan


def _read_in(graph: Graph) -> Iterator[str]:
    for inner in graph.graphs():
        for node in inner.nodes:
            yield from filter(None, node.inputs)
        yield from (value.name for value in inner.outputs)


def _reason(node: Node, options: OnnxOptions, scope: Scope, refused: Mapping[str, str]) -> str | None:
    """Why a node stays float, or None; an empty text for operators that are not ours."""
    operator = node.operator
    if operator in WITHOUT:
        return options.selects(node) or f"no static form of {operator}: {WITHOUT[operator]}"
    if operator not in OPERATORS or len(node.outputs) != 1:
        return ""
    if operator in TABLES:
        table = scope.constant(node.inputs[0])
        if table is None or table.dtype.kind != "f":
            return ""  # it chooses among something else than weights
        if len(table.shape) != 2 or node.get("axis", 0) != 0:
            return "only tables of rows are quantized"
        if table.dtype != np.float32:
            return f"the table is {table.dtype}"
        return options.selects(node)
    names = activations(node, scope)
    if not names:
        return "its inputs are constant"
    if reason := options.selects(node):
        return reason
    if operator in BETWEEN and not all(map(_has_range, map(scope.constant, node.inputs))):
        return ""
    for name in (*names, node.outputs[0]):
        if name in refused:
            return refused[name] if operator in PRODUCTS else ""
    return _unsupported(node, options, scope) if operator in PRODUCTS else None


def _has_range(constant: Tensor | None) -> bool:
    """Whether a constant can be quantized as an activation; True for what is none."""
    return constant is None or bool(constant.size and np.isfinite(constant.array).all())


def _unsupported(node: Node, options: OnnxOptions, scope: Scope) -> str | None:
    is_qoperator = options.format == "QOperator"
    if is_qoperator and node.op_type in _ONLY_QDQ:
        return f"format QOperator has no {node.op_type}"
    weight = scope.constant(node.inputs[1])
    if node.op_type == "MatMul":
        if scope.constant(node.inputs[0]) is not None:
            return "the weight is the left operand"
        return None if weight is None or len(weight.shape) >= 2 else "the weight is a vector"
    if weight is None:
        return "dynamic weight"
    if len(node.inputs) < 3 or not node.inputs[2]:
        return None
    bias = scope.constant(node.inputs[2])
    if bias is None:
        return "the bias is dynamic"
    channels = _channels(node, weight.shape)
    return None if bias.shape in ((channels,), (1, channels)) else f"the bias has the shape {list(bias.shape)}"


def _channels(node: Node, shape: tuple[int, ...]) -> int:
    if node.op_type == "ConvTranspose":
        return shape[1] * int(node.get("group", 1))
    return shape[0] if node.op_type == "Conv" or node.get("transB", 0) else shape[1]


def _step(node: Node, plan: Plan, scope: Scope, refused: Mapping[str, str], matrices: Container[str]) -> Step:
    step = Step(node, node, node.outputs[0])
    if node.op_type in MOVING:
        return step
    addend = _only_reader(step.output, plan)
    if addend is not None and addend.operator == "Add" and addend.outputs[0] not in refused:
        bias = next((name for name in addend.inputs if scope.constant(name) is not None), "")
        if (product := _with_bias(node, bias, scope, matrices)) is not None:
            step = Step(node, replace(product, outputs=addend.outputs), addend.outputs[0], addend)
    clamp = _only_reader(step.output, plan)
    if clamp is None or clamp.operator not in CLAMPS or clamp.outputs[0] in refused:
        return step
    if all(scope.constant(name) is not None for name in clamp.inputs[1:] if name):
        step.clamp, step.output = clamp, clamp.outputs[0]
    return step


def _only_reader(value: str, plan: Plan) -> Node | None:
    """The node that reads a value as its first input or in a sum, if nothing else reads it."""
    readers = plan.readers[value]
    if value in plan.outside or len(readers) != 1:
        return None
    return readers[0] if readers[0].operator == "Add" or readers[0].inputs[0] == value else None


def _with_bias(node: Node, bias: str, scope: Scope, matrices: Container[str]) -> Node | None:
    """A product with a bias, if it has none and the constant has a value for each channel of the result."""
    constant, weight = scope.constant(bias), scope.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if constant is None or weight is None or constant.dtype != np.float32 or any(node.inputs[2:]):
        return None
    if _is_matrix_product(node, scope, matrices):
        columns = weight.shape[1]
        is_row = constant.shape in ((columns,), (1, columns))
        return replace(node, op_type="Gemm", inputs=(*node.inputs[:2], bias)) if is_row else None
    if node.op_type not in ("Conv", "ConvTranspose"):
        return None
    column = (_channels(node, weight.shape), *(1 for _ in weight.shape[2:]))
    return replace(node, inputs=(*node.inputs[:2], bias)) if constant.shape in (column, (1, *column)) else None


def _is_matrix_product(node: Node, scope: Scope, matrices: Container[str]) -> bool:
    """Whether a MatMul could be a Gemm, as which runtimes take it with a bias."""
    weight = scope.constant(node.inputs[1]) if node.op_type == "MatMul" else None
    return weight is not None and len(weight.shape) == 2 and node.inputs[0] in matrices


def _drop_useless(plan: Plan, model: Model, scope: Scope) -> None:
    """Drops steps between products that would only cost accuracy."""
    integer: set[str] = set()
    for node in model.graph.nodes:
        step = plan.steps.get(id(node))
        if step is None or node.op_type in TABLES:
            continue
        if node.op_type in ("Conv", "ConvTranspose"):
            integer.add(step.output)
        elif node.op_type not in PRODUCTS:
            if all(name in integer for name in activations(node, scope)):
                integer.add(step.output)
            else:
                _drop(plan, node, "its inputs are float")
    for node in reversed(model.graph.nodes):
        step = plan.steps.get(id(node))
        if step is None or node.op_type in (*PRODUCTS, *TABLES):
            continue
        if not plan.is_read_quantized(step.output):
            _drop(plan, node, "no quantized node reads its result")
    for step in plan.steps.values():
        if step.node.op_type in ("MatMul", "Gemm", *TABLES):
            step.is_integer = not plan.is_read_float(step.output) and step.node.op_type not in TABLES
            if not step.is_integer:
                step.clamp, step.output = None, step.node.outputs[0]


def _drop(plan: Plan, node: Node, reason: str) -> None:
    del plan.steps[id(node)]
    if node.op_type not in MOVING:
        plan.reasons[id(node)] = reason


def ranged(plan: Plan, scope: Scope) -> list[str]:
    """The values whose ranges the plan needs, each once."""
    names: Counter[str] = Counter()
    for step in plan.steps.values():
        if step.node.op_type in TABLES:
            continue
        if step.node.op_type in PRODUCTS:
            names.update(activations(step.node, scope))
        if step.is_integer and step.node.op_type not in MOVING:
            names[step.output] += 1
    return [*names]
