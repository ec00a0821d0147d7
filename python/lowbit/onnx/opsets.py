"""Models raised to an opset with the operators that quantizing and fusing need."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lowbit.base.errors import Error, UnsupportedError
from lowbit.base.quoting import shown
from lowbit.onnx.graph import Graph, Model, Node, Value
from lowbit.onnx.measuring import Comparison
from lowbit.onnx.passes import converters
from lowbit.onnx.rewriting import CONSTANT_INPUTS_BEFORE, Scope, rewrite
from lowbit.onnx.writing import THRESHOLD

#: The opsets of models that ONNX Runtime runs.
OPSETS = range(7, 29)
#: The opsets from 8 to 11 in which an operator became another one: attributes became inputs, or results differ.
_CHANGED: Mapping[str, tuple[int, ...]] = {
    "BatchNormalization": (9,), "Clip": (11,), "Dropout": (10,), "Pad": (11,), "Resize": (10, 11), "Scan": (9,),
    "Slice": (10,), "TopK": (10,), "Upsample": (9, 10),
}  # fmt: skip
#: From this opset on, Resize has attributes for what was fixed before.
_RESIZE_OPSET = 11


def raise_with(opset: int) -> str:
    """What to do about a model whose opset is too low: the end of every error and reason that says so."""
    return f"raise it with: lowbit onnx optimize IN OUT --opset {opset}"


def lacking(what: str, least: int, found: int) -> str:
    """Why something is not done: what ("bfloat16 needs") needs a higher opset than the model's."""
    return f"{what} opset {least}, the model has {found}: {raise_with(least)}"


def raised(model: Model, least: int) -> Model:
    """The model with at least an opset, up to 11. Raises UnsupportedError if a node would mean something else then."""
    if model.opset >= least:
        return model
    for graph in model.graph.graphs():
        for node in graph.nodes:
            changes = [opset for opset in _CHANGED.get(node.operator, ()) if model.opset < opset <= least]
            if model.opset < OPSETS[0] or changes:
                text = f"node {shown(node.label)}: {node.operator} differs between opset {model.opset} and {least}:"
                rest = f": {raise_with(least)}"
                raise UnsupportedError(text, expected=f"opset {least}", found=model.opset, rest=rest)
    return model.with_graph(model.graph, **{"": least})


def converted(model: Model, opset: int, comparison: Comparison, tolerance: float, folder: Path) -> tuple[Model, float]:
    """The model in a higher opset, with its operators converted, and the error of its outputs.

    folder: an empty one, for files. Weights are not read. Raises UnsupportedError if the opset is lower, or if no
    converter makes a model with the same outputs.
    """
    if opset < model.opset:
        raise UnsupportedError("opset:", expected=f"{model.opset}, the model's, or higher", found=opset)
    if opset == model.opset:
        return model, 0.0
    reasons = []
    for each in converters(model.opset, opset):
        try:
            result = _with_weights(each.applied(_without_weights(model), folder / each.name, False), model)
            error = comparison.error(result)
            if error <= tolerance:
                return result, error
            node = comparison.first_difference(model, result, tolerance)
            what = "the model" if node is None else f"node {shown(node.label)}: {node.operator}"
            reasons.append(f"{each.name}: {what} gives other results, the outputs' error is {error:.1e}")
        except Error as failed:
            reasons.append(f"{each.name}: {failed}")
    raise UnsupportedError(f"opset {model.opset} cannot be raised to {opset}: {'; '.join(reasons)}")


def _is_weight(graph: Graph, name: str) -> bool:
    return name in graph.tensors and graph.tensors[name].nbytes >= THRESHOLD


def _without_weights(model: Model) -> Model:
    """The model with inputs in the place of its large initializers: converters read attributes and small tensors."""
    graph = model.graph
    listed = {value.name for value in graph.inputs}
    tensors = {name: tensor for name, tensor in graph.tensors.items() if not _is_weight(graph, name)}
    values = [
        Value.of(name, tensor.dtype, tensor.shape)
        for name, tensor in graph.tensors.items()
        if name not in listed and name not in tensors
    ]
    return replace(model, graph=replace(graph, tensors=tensors, inputs=(*graph.inputs, *values)))


def _with_weights(result: Model, model: Model) -> Model:
    """What a converter made of a model without weights, with them and with what the converter does not know."""
    old, new = model.graph, result.graph
    tensors = {**new.tensors, **{name: tensor for name, tensor in old.tensors.items() if _is_weight(old, name)}}
    # As the version of the file rises, initializers are constants only if they are no inputs.
    inputs = model.inputs if model.ir_version < CONSTANT_INPUTS_BEFORE else old.inputs
    graph = replace(new, tensors=tensors, inputs=inputs, rest=old.rest)
    helper = importlib.import_module("onnx.helper")
    least = helper.find_min_ir_version_for([helper.make_opsetid("", result.opset)])
    version = max(model.ir_version, CONSTANT_INPUTS_BEFORE, least)
    changed = replace(model, graph=graph, opsets=result.opsets, ir_version=version, functions=result.functions)
    return rewrite(changed, _resize_of_before) if model.opset < _RESIZE_OPSET <= result.opset else changed


def _resize_of_before(node: Node, scope: Scope) -> list[Node] | None:
    """Resize and Upsample of the opsets before 11 as Resize of those after: the converter leaves the new defaults."""
    del scope
    if node.operator != "Resize":
        return None
    attributes = Node.of("", [], [], coordinate_transformation_mode="asymmetric", nearest_mode="floor").attributes
    return [replace(node, attributes={**attributes, **node.attributes})]
