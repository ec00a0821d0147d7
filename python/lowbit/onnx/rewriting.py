"""Rewriting a model node by node: nodes are replaced, initializers added, and unused ones removed."""

from __future__ import annotations

import math
from collections import ChainMap, Counter
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lowbit.onnx.dtypes import pack
from lowbit.onnx.graph import Graph, Model, Node
from lowbit.onnx.tensor import Tensor

#: Initializers of models before IR version 4 are inputs too, so a caller could replace them; nobody does.
CONSTANT_INPUTS_BEFORE = 4


class Scope:
    """What a node sees: constants of its graph and of the graphs around it, and the names that are taken."""

    def __init__(self, model: Model) -> None:
        self._names = {name for graph in model.graph.graphs() for name in _names(graph)}
        self._uses = Counter(name for graph in model.graph.graphs() for name in _used(graph))
        self._constants: list[dict[str, Tensor]] = []
        self._transposed: list[dict[str, str]] = []
        self._with_inputs = model.ir_version < CONSTANT_INPUTS_BEFORE
        self.added: dict[str, Tensor] = {}
        #: What a rewrite notes of values, by any key: what it notes in a subgraph is forgotten at its end.
        self.notes: MutableMapping[Any, Any] = ChainMap()

    @classmethod
    def of_graph(cls, model: Model) -> Scope:
        """What the nodes of the model's graph see."""
        scope = cls(model)
        scope.enter(model.graph)
        return scope

    def constant(self, name: str) -> Tensor | None:
        """The value that a name always has: an initializer that is no input, or the result of a Constant node.

        Also what Identity, Reshape and Transpose make of one; its elements are made when they are asked for.
        """
        return next((found[name] for found in reversed(self._constants) if name in found), None)

    def transposed(self, name: str) -> str | None:
        """The constant matrix whose transposition this name is, if it is one."""
        seen = zip(reversed(self._constants), reversed(self._transposed), strict=True)
        return next((transposed.get(name) for constants, transposed in seen if name in constants), None)

    def uses(self, name: str) -> int:
        """How many inputs of nodes and outputs of graphs have this name."""
        return self._uses[name]

    def fresh(self, base: str) -> str:
        """A name for a new value, node or initializer, like `base`."""
        name, count = base, 1
        while name in self._names:
            count += 1
            name = f"{base}_{count}"
        self._names.add(name)
        return name

    def add(self, tensor: Tensor) -> str:
        """Adds an initializer to the model's graph, under a fresh name. Returns the name."""
        name = self.fresh(tensor.name)
        self.added[name] = replace(tensor, name=name)
        return name

    def enter(self, graph: Graph) -> None:
        """Makes the constants of a graph visible."""
        inputs = set() if self._with_inputs else {value.name for value in graph.inputs}
        found = {name: tensor for name, tensor in graph.tensors.items() if name not in inputs}
        self._constants.append(found)
        self._transposed.append({})
        self.notes = ChainMap({}, *_maps(self.notes))
        for node in graph.nodes:
            if node.outputs and (tensor := self._result(node)) is not None:
                found[node.outputs[0]] = tensor

    def leave(self) -> None:
        """Undoes the last `enter`."""
        self._constants.pop()
        self._transposed.pop()
        self.notes = ChainMap(*_maps(self.notes)[1:])

    def _result(self, node: Node) -> Tensor | None:
        """The result of a node that is a constant or another view of one."""
        if not node.outputs:
            return None
        if node.operator == "Constant":
            return _constant_value(node)
        if node.operator not in ("Identity", "Reshape", "Transpose"):
            return None
        constants = [self.constant(name) for name in node.inputs]
        if not constants or (tensor := constants[0]) is None or isinstance(tensor.source, list):
            return None
        if node.operator == "Identity":
            return tensor
        if node.operator == "Transpose":
            perm = node.get("perm", tuple(range(len(tensor.shape)))[::-1])
            if perm == (1, 0):
                self._transposed[-1][node.outputs[0]] = node.inputs[0]
            return _transpose(tensor, perm) if isinstance(perm, tuple) else None
        shape = constants[1] if len(constants) == 2 else None
        if shape is None or shape.dtype != np.int64:
            return None
        return _reshape(tensor, shape.array.reshape(-1).tolist(), node.get("allowzero", 0))


def _maps(notes: Any) -> list[dict[Any, Any]]:
    return list(notes.maps)


def _constant_value(node: Node) -> Tensor | None:
    for attribute in node.attributes.values():
        if attribute.name == "value" and isinstance(attribute.value, Tensor):
            return attribute.value
        if attribute.type in ("INT", "INTS", "FLOAT", "FLOATS"):
            return Tensor.of(node.outputs[0], np.array(attribute.value, np.int64 if "INT" in attribute.type else "f"))
    return None


def _transpose(tensor: Tensor, perm: Sequence[int]) -> Tensor | None:
    if sorted(perm) != [*range(len(tensor.shape))]:
        return None
    shape = tuple(tensor.shape[axis] for axis in perm)
    return Tensor(tensor.name, tensor.dtype, shape, lambda: pack(tensor.array.transpose(perm)))


def _reshape(tensor: Tensor, shape: Sequence[int], zero_is_zero: int) -> Tensor | None:
    old = tensor.shape
    if not zero_is_zero:
        shape = [old[axis] if dim == 0 and axis < len(old) else dim for axis, dim in enumerate(shape)]
    if shape.count(-1) == 1:
        others = math.prod(dim for dim in shape if dim != -1)
        shape = [tensor.size // others if dim == -1 and others else dim for dim in shape]
    if min(shape, default=0) < 0 or math.prod(shape) != tensor.size:
        return None
    return replace(tensor, shape=tuple(shape), external=None)


#: Returns the nodes that take a node's place, or None if it stays as it is.
Rewrite = Callable[[Node, Scope], Sequence[Node] | None]


def rewrite(model: Model, change: Rewrite, opsets: Mapping[str, int] | None = None) -> Model:
    """The model with changed nodes, those of subgraphs too, and with what they need (`Scope.add`).

    opsets: domains and versions that the new nodes need; higher versions in the model stay.
    """
    scope = Scope(model)
    graph = _rewritten(model.graph, change, scope)
    changed = with_added(model if graph is model.graph else replace(model, graph=graph), scope)
    wanted = {domain: max(version, model.opsets.get(domain, 0)) for domain, version in (opsets or {}).items()}
    opsets = {**model.opsets, **wanted}
    return changed if opsets == changed.opsets else replace(changed, opsets=opsets)


def with_added(model: Model, scope: Scope) -> Model:
    """The model with what was added to its scope, and without what nothing uses any more."""
    if not scope.added:
        graph = without_unused(model.graph)
        return model if graph is model.graph else replace(model, graph=graph)
    graph = without_unused(replace(model.graph, tensors={**model.graph.tensors, **scope.added}))
    # Before IR version 4, an initializer had to be an input, too.
    return replace(model, graph=graph, ir_version=max(model.ir_version, CONSTANT_INPUTS_BEFORE))


def _rewritten(graph: Graph, change: Rewrite, scope: Scope) -> Graph:
    scope.enter(graph)
    nodes: list[Node] = []
    for node in graph.nodes:
        inner = with_subgraphs(node, lambda graph: _rewritten(graph, change, scope))
        new = change(inner, scope)
        nodes.extend([inner] if new is None else new)
    scope.leave()
    return graph if _same(nodes, graph.nodes) else replace(graph, nodes=tuple(nodes))


def _same(new: Sequence[Node], old: Sequence[Node]) -> bool:
    return len(new) == len(old) and all(a is b for a, b in zip(new, old, strict=True))


def with_subgraphs(node: Node, change: Callable[[Graph], Graph]) -> Node:
    """The node with other graphs in its attributes."""
    changed = {}
    for attribute in node.attributes.values():
        if attribute.type in ("GRAPH", "GRAPHS") and attribute.value is not None:
            graphs = attribute.value if attribute.type == "GRAPHS" else (attribute.value,)
            new = tuple(change(graph) for graph in graphs)
            if any(a is not b for a, b in zip(new, graphs, strict=True)):
                value = new if attribute.type == "GRAPHS" else new[0]
                changed[attribute.name] = replace(attribute, value=value)
    return replace(node, attributes={**node.attributes, **changed}) if changed else node


def without_unused(graph: Graph) -> Graph:
    """The graph without nodes whose outputs nothing uses, and without initializers that nothing uses.

    The latter also among its inputs, as old files list them. Subgraphs, too.
    """
    used = {value.name for value in graph.outputs}
    nodes: list[Node] = []
    for node in reversed(graph.nodes):
        if not node.outputs or not used.isdisjoint(filter(None, node.outputs)):
            kept = with_subgraphs(node, without_unused)
            used.update(
                kept.inputs, (name for inner in kept.subgraphs for each in inner.graphs() for name in _used(each))
            )
            nodes.append(kept)
    nodes.reverse()
    tensors = {name: tensor for name, tensor in graph.tensors.items() if name in used}
    if len(tensors) == len(graph.tensors) and _same(nodes, graph.nodes):
        return graph
    inputs = tuple(value for value in graph.inputs if value.name in used or value.name not in graph.tensors)
    return replace(graph, nodes=tuple(nodes), tensors=tensors, inputs=inputs)


def _used(graph: Graph) -> Iterable[str]:
    for node in graph.nodes:
        yield from filter(None, node.inputs)
    yield from (value.name for value in graph.outputs)


def _names(graph: Graph) -> Iterable[str]:
    yield from graph.tensors
    yield from (value.name for value in (*graph.inputs, *graph.outputs))
    for node in graph.nodes:
        yield node.name
        yield from node.outputs
