"""What statistics of channels are used for: SmoothQuant, corrected biases, and how much errors of weights count.

SmoothQuant moves a part of an activation's range into the weights that it is multiplied with: x @ W is
(x / s) @ (s * W), with s = max|x| ** smooth / max|W| ** (1 - smooth) for each channel. Channels with outliers then
leave the other ones more codes. 1 / s goes into the normalization or product by a constant before, else into a new Mul.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit.onnx.graph import Model, Node
from lowbit.onnx.rewriting import Scope, without_unused
from lowbit.onnx.static_plan import Plan
from lowbit.onnx.tensor import Tensor

Vector = npt.NDArray[np.float64]
#: Operators before a product whose constants can take 1 / s: the inputs that have one value for each channel.
_FOLDED = {
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "com.microsoft.SimplifiedLayerNormalization": (1,),
}
#: The importance of a channel that is always the same, relative to the mean one.
_LEAST_IMPORTANCE = 0.05
#: The largest and, inverted, the least s.
_MOST = 1e5


class ChannelValues:
    """The means, variances and largest magnitudes of the channels along an axis."""

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._sums: Vector | None = None
        self._squares: Vector = np.zeros(1)
        self._count = 0
        self.largest: Vector = np.zeros(1)

    def add(self, values: npt.NDArray[Any]) -> None:
        """The values of a run."""
        if not values.size:
            return
        rows = np.moveaxis(values, self._axis, -1).reshape(-1, values.shape[self._axis]).astype(np.float64)
        sums = rows.sum(axis=0)
        self._sums = sums if self._sums is None else self._sums + sums
        self._squares = self._squares + np.square(rows).sum(axis=0)
        self._count += len(rows)
        self.largest = np.maximum(self.largest, np.abs(rows).max(axis=0))

    @property
    def means(self) -> Vector | None:
        """The mean of each channel, None if nothing was seen."""
        return None if self._sums is None else self._sums / self._count

    @property
    def variances(self) -> Vector | None:
        """The variance of each channel, None if nothing was seen."""
        means = self.means
        return None if means is None else np.maximum(self._squares / self._count - np.square(means), 0)


def importance(node: Node, shape: tuple[int, ...], channels: ChannelValues) -> Vector | None:
    """How much an error of each weight of a product counts, to be broadcast to the weight; None if it is unknown."""
    variances = channels.variances
    if variances is None or (len(shape) != 2 and node.op_type in ("MatMul", "Gemm")):
        return None
    values = variances + _LEAST_IMPORTANCE * variances.mean()  # channels that were not seen may come
    if not values.any():
        return None
    if node.op_type in ("MatMul", "Gemm"):
        wide = values if node.get("transB", 0) else values[:, None]
    elif node.op_type == "ConvTranspose":
        wide = values.reshape(-1, *(1 for _ in shape[1:]))
    else:
        groups = values.reshape(node.get("group", 1), -1)
        wide = np.repeat(groups, shape[0] // len(groups), axis=0).reshape(shape[0], -1, *(1 for _ in shape[2:]))
    return np.asarray(wide)


def channel_axis(node: Node) -> int | None:
    """The axis of a product's input that its sum runs over; None for Gemm with transA."""
    if node.op_type in ("Conv", "ConvTranspose"):
        return 1
    return None if node.get("transA", 0) else -1


def mean_shift(node: Node, difference: npt.NDArray[Any], means: Vector) -> Vector | None:
    """The mean that a difference of the weight adds to each channel of a product's result."""
    difference = difference.astype(np.float64)
    if node.op_type in ("MatMul", "Gemm"):
        if difference.ndim != 2:
            return None
        matrix = difference.T if node.get("transB", 0) else difference
        return np.asarray(means @ matrix) if len(means) == len(matrix) else None
    taps = difference.sum(axis=tuple(range(2, difference.ndim)))
    groups = node.get("group", 1)
    if node.op_type == "Conv":
        if taps.shape[1] * groups != len(means):
            return None
        parts = zip(taps.reshape(groups, -1, taps.shape[1]), means.reshape(groups, -1), strict=True)
        sums: Vector = np.concatenate([part @ mean for part, mean in parts])
        return sums
    parts = zip(taps.reshape(groups, -1, taps.shape[1]), means.reshape(groups, -1), strict=True)
    # A position of the result gets one of the taps for each step of the stride.
    sums = np.concatenate([mean @ part for part, mean in parts])
    return np.asarray(sums / math.prod(node.get("strides", (1,))))


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
