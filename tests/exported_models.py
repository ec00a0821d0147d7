"""Exported language models, run by other programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit.arch.model_spec import ModelSpec
from lowbit.engine.model import Model
from lowbit.export.building import GraphBuilder
from lowbit.export.decoder import past_name, present_name
from lowbit.export.exporting import DECODERS
from lowbit.export.weights import FloatMatrix
from lowbit.onnx.graph import Model as OnnxModel
from lowbit.tensors.source import ArraySource

Array = npt.NDArray[Any]
#: Takes the inputs of a model, returns all outputs by name.
Run = Callable[[Mapping[str, Array]], dict[str, Array]]


def in_onnxruntime(path: Path) -> Run:
    """Exact products of quantized weights."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    settings.log_severity_level = 3
    session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True))


def in_openvino(path: Path) -> Run:
    """Exact products, and caches in the model's type."""
    import openvino

    exact = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}
    compiled = openvino.Core().compile_model(path, "CPU", exact)
    request = compiled.create_infer_request()
    names = [output.get_any_name() for output in compiled.outputs]

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        results = request.infer(dict(feeds))
        return {name: results[compiled.output(name)].copy() for name in names}

    return run


ENGINES: dict[str, Callable[[Path], Run]] = {"onnxruntime": in_onnxruntime, "openvino": in_openvino}


def empty_cache(spec: ModelSpec, batch: int = 1, dtype: npt.DTypeLike = np.float32) -> dict[str, Array]:
    shape = (batch, spec.num_kv_heads, 0, spec.head_dim)
    return {past_name(i, part): np.zeros(shape, dtype) for i in range(spec.num_layers) for part in ("key", "value")}


def cache_of(outputs: Mapping[str, Array], spec: ModelSpec) -> dict[str, Array]:
    """The outputs of a run as inputs of the next."""
    parts = ("key", "value")
    return {past_name(i, part): outputs[present_name(i, part)] for i in range(spec.num_layers) for part in parts}


def in_steps(
    run: Run, spec: ModelSpec, ids: npt.ArrayLike, lengths: Sequence[int], dtype: npt.DTypeLike = np.float32
) -> Array:
    """The logits of all tokens (tokens, vocabulary), in runs of so many tokens."""
    ids, past = np.asarray(ids, np.int64), empty_cache(spec, dtype=dtype)
    logits, at = [], 0
    for length in lengths:
        mask = np.ones((1, at + length), np.int64)
        outputs = run({"input_ids": ids[None, at : at + length], "attention_mask": mask, **past})
        past, at = cache_of(outputs, spec), at + length
        logits.append(outputs["logits"][0])
    assert at == len(ids)
    return np.concatenate(logits)


def graph_of(
    spec: ModelSpec, tensors: Mapping[str, Array], layout: str, opset: int = 23, dtype: npt.DTypeLike = np.float32
) -> OnnxModel:
    """The graph of a network that is in memory."""
    vectors = {name: array for name, array in tensors.items() if array.ndim == 1}
    matrices = {
        name: FloatMatrix(ArraySource(name, array), array.dtype, name in ("token_embd.weight", "output.weight"))
        for name, array in tensors.items()
        if array.ndim == 2
    }
    return DECODERS[layout](spec, vectors, matrices, GraphBuilder(opset, dtype)).model("test")


def relative(found: Array, expected: Array) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def with_weights(model: Model, weights: Mapping[str, Array]) -> Model:
    """lowbit's model with other matrices."""
    tensors = {**model.weights, **weights}
    return Model(
        model.spec, tensors, metadata=model.metadata, path=model.path, compute="f32", threads=2, context=None,
        max_sequences=8,
    )  # fmt: skip
