"""Models raised to an opset with the operators that quantizing needs."""

from __future__ import annotations

from collections.abc import Mapping

from lowbit.base.errors import UnsupportedError
from lowbit.base.quoting import shown
from lowbit.onnx.graph import Model

#: Opsets before have broadcasting attributes.
_SIMPLE = 7
#: The opsets from 8 to 11 in which an operator became another one: attributes became inputs, or results differ.
_CHANGED: Mapping[str, tuple[int, ...]] = {
    "BatchNormalization": (9,), "Clip": (11,), "Dropout": (10,), "Pad": (11,), "Resize": (10, 11), "Scan": (9,),
    "Slice": (10,), "TopK": (10,), "Upsample": (9, 10),
}  # fmt: skip


def raised(model: Model, least: int) -> Model:
    """The model with at least an opset, up to 11. Raises UnsupportedError if a node would mean something else then."""
    if model.opset >= least:
        return model
    for graph in model.graph.graphs():
        for node in graph.nodes:
            changes = [opset for opset in _CHANGED.get(node.operator, ()) if model.opset < opset <= least]
            if model.opset < _SIMPLE or changes:
                text = f"node {shown(node.label)}: {node.operator} differs between opset {model.opset} and {least}:"
                raise UnsupportedError(text, expected=f"opset {least}: use onnx.version_converter", found=model.opset)
    return model.with_graph(model.graph, **{"": least})
