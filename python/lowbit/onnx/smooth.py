"""SmoothQuant: a part of an activation's range moves into the weights that it is multiplied with.

x @ W is (x / s) @ (s * W), with s = max|x| ** smooth / max|W| ** (1 - smooth) for each channel. Channels with outliers
then leave the other ones more codes. 1 / s goes into the normalization or product by a constant before, else into a
new Mul.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lowbit.onnx.channel_values import Vector, channel_axis
from lowbit.onnx.graph import Model, Node
from lowbit.onnx.rewriting import Scope, without_unused
from lowbit.onnx.static_plan import Plan
from lowbit.onnx.tensor import Tensor

#: Operators before a product whose constants can take 1 / s: the inputs that have one value for each channel.
_FOLDED = {
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "com.microsoft.SimplifiedLayerNormalization": (1,),
}
#: The largest and, inverted, the least s.
_MOST = 1e5


def smoothed_inputs(plan: Plan, scope: Scope) -> dict[str, list[Node]]:
    """The values that can be smoothed, with the products that read them."""
    found: dict[str, list[Node]] = defaultdict(list)
    for step in plan.steps.values():
        node = step.original
        if node.op_type in ("MatMul", "Gemm") and channel_axis(node) is not None:
            weight = scope.constant(node.inputs[1])
            if weight is not None and len(weight.shape) == 2:
                found[node.inputs[0]].append(node)
    return found


def smoothed(
    model: Model,
    plan: Plan,
    scope: Scope,
    largest: Mapping[str, Vector],
    groups: Mapping[str, list[Node]],
    share: float,
) -> Model:
    """The model with smoothed inputs of products. largest: the magnitudes of their channels."""
    changed: dict[int, Node] = {}
    before: dict[int, list[Node]] = defaultdict(list)
    for name, nodes in groups.items():
        factors = _factors(largest[name], [_rows(node, scope) for node in nodes], share)
        value = name
        if not _fold(name, nodes, factors, plan, scope, changed):
            value = scope.fresh(f"{name}_smooth")
            inverse = scope.add(Tensor.of(f"{name}_smoothing", (1 / factors).astype(np.float32)))
            first = min(nodes, key=model.graph.nodes.index)
            before[id(first)].append(Node.of("Mul", [name, inverse], [value], name=scope.fresh(f"{name}_smooth_Mul")))
        for node in nodes:
            wide = factors if node.get("transB", 0) else factors[:, None]
            weight = scope.constant(node.inputs[1])
            assert weight is not None
            added = scope.add(Tensor.of(f"{node.inputs[1]}_smooth", (weight.array * wide).astype(np.float32)))
            changed[id(node)] = replace(node, inputs=(value, added, *node.inputs[2:]))
    nodes = []
    for node in model.graph.nodes:
        nodes += [*before[id(node)], changed.get(id(node), node)]
    graph = replace(model.graph, nodes=tuple(nodes), tensors={**model.graph.tensors, **scope.added})
    return replace(model, graph=without_unused(graph))


def _rows(node: Node, scope: Scope) -> Vector:
    """The largest magnitude of each row of a weight."""
    weight = scope.constant(node.inputs[1])
    assert weight is not None
    return np.asarray(np.abs(weight.array).max(axis=int(not node.get("transB", 0))), np.float64)


def _factors(largest: Vector, rows: list[Vector], share: float) -> Vector:
    weights = np.max(rows, axis=0)
    is_used = (largest > 0) & (weights > 0)
    factors = np.ones(len(weights))
    factors[is_used] = largest[is_used] ** share / weights[is_used] ** (1 - share)
    return np.asarray(np.clip(factors, 1 / _MOST, _MOST))


def _fold(name: str, nodes: list[Node], factors: Vector, plan: Plan, scope: Scope, changed: dict[int, Node]) -> bool:
    """Divides the constants of the node that makes a value, if only the products read it."""
    producer = plan.producers.get(name)
    if producer is None or name in plan.outside or {id(node) for node in plan.readers[name]} != {*map(id, nodes)}:
        return False
    places: tuple[int, ...] = _FOLDED.get(producer.operator, ())
    if producer.operator == "Mul":
        places = tuple(at for at in (0, 1) if _is_vector(producer.inputs[at], factors, scope))[:1]
    places = tuple(at for at in places if at < len(producer.inputs) and producer.inputs[at])
    if not places or not all(_is_vector(producer.inputs[at], factors, scope) for at in places):
        return False
    inputs = [*changed.get(id(producer), producer).inputs]
    for at in places:
        constant = scope.constant(producer.inputs[at])
        assert constant is not None
        values = (constant.array / factors).astype(np.float32)
        inputs[at] = scope.add(Tensor.of(f"{producer.inputs[at]}_smooth", values))
    changed[id(producer)] = replace(producer, inputs=tuple(inputs))
    return True


def _is_vector(name: str, factors: Vector, scope: Scope) -> bool:
    constant = scope.constant(name)
    return constant is not None and constant.dtype == np.float32 and constant.shape == factors.shape
