"""Positions of tokens and their cosines and sines, computed in the graph."""

from __future__ import annotations

import numpy as np

from lowbit.arch.model_spec import ModelSpec
from lowbit.export.building import GraphBuilder
from lowbit.onnx.tensor import Tensor


def token_positions(graph: GraphBuilder) -> str:
    """The position of each token, (batch, tokens): the number of tokens before it that are not masked."""
    counts = graph.node("CumSum", ["attention_mask", graph.integer(1)], "positions/counts")
    from_zero = graph.node("Sub", [counts, graph.integer(1)], "positions/from_zero")
    positive = graph.node("Max", [from_zero, graph.integer(0)], "positions/all")
    shape = graph.node("Shape", ["input_ids"], "input_ids/shape")
    tokens = graph.node("Gather", [shape, graph.integers(1)], "input_ids/tokens")
    start = graph.node("Neg", [tokens], "positions/start")
    return graph.node(
        "Slice", [positive, start, graph.integers(np.iinfo(np.int64).max), graph.integers(1)], "positions"
    )


def rotation(graph: GraphBuilder, spec: ModelSpec, rope: int, positions: str, total_length: str) -> None:
    """Adds the values cos.ROPE and sin.ROPE, (..., pairs) for positions (..., 1). total_length: of the sequence."""
    table = spec.ropes[rope]
    frequencies = graph.tensor(Tensor.of(f"frequencies.{rope}", np.array(table.frequencies, np.float32)))
    magnitude = graph.number(table.magnitude, np.float32)
    if table.long_frequencies:
        most = graph.integer(spec.original_context)
        is_long = graph.node("Greater", [total_length, most], f"frequencies.{rope}/is_long")
        long = graph.tensor(Tensor.of(f"long_frequencies.{rope}", np.array(table.long_frequencies, np.float32)))
        frequencies = graph.node("Where", [is_long, long, frequencies], f"frequencies.{rope}/chosen")
        long = graph.number(table.long_magnitude, np.float32)
        magnitude = graph.node("Where", [is_long, long, magnitude], f"magnitude.{rope}")
    floats = graph.cast(positions, np.float32, f"positions/floats.{rope}")
    angles = graph.node("Mul", [floats, frequencies], f"angles.{rope}")
    for op_type, part in (("Cos", "cos"), ("Sin", "sin")):
        values = graph.node(op_type, [angles], f"{part}.{rope}/plain")
        values = graph.node("Mul", [values, magnitude], f"{part}.{rope}/float32")
        graph.cast(values, graph.dtype, f"{part}.{rope}")
