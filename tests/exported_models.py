"""Exported language models, run by other programs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import lowbit
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
        model.spec, tensors, metadata=model.metadata, path=model.path, files=model.path, compute="f32", threads=2,
        context=None, max_sequences=8,
    )  # fmt: skip


def decoded(path: Path, name: str, shape: tuple[int, ...], block_size: int) -> np.ndarray:
    """The weights of a matrix that an exported model has in blocks, by the layout of its operator."""
    tensors = lowbit.onnx.open(path).graph.tensors
    places = {f"{name}_codes": name, f"{name}_codes_rows": name, f"{name}_rows_codes_table": f"{name}_rows"}
    codes, rows = next((tensors[each], rows) for each, rows in places.items() if each in tensors)
    scales = tensors[f"{rows}_scales"].array.astype(np.float32)
    zeros = tensors.get(f"{rows}_zeros")
    if codes.dtype == np.uint8 and codes.shape[0] == shape[0] and scales.shape[0] == shape[0]:
        values = codes.array.reshape(shape[0], scales.shape[1], -1)
        bits = 8 * values.shape[2] // block_size

        def spread(raw: np.ndarray) -> np.ndarray:
            return (raw[..., None] >> np.arange(0, 8, bits) & (1 << bits) - 1).reshape(*raw.shape[:-1], -1)

        zero = (
            (1 << (bits - 1)) if zeros is None else spread(zeros.array)[:, : scales.shape[1], None].astype(np.float32)
        )
        return ((spread(values).astype(np.float32) - zero) * scales[..., None]).reshape(shape[0], -1)[:, : shape[1]]
    spans = np.arange(shape[1]) // block_size
    zero = 0 if zeros is None else zeros.array.astype(np.float32)[spans]
    return np.ascontiguousarray(((codes.array.astype(np.float32) - zero) * scales[spans]).T)


def genai_greedy(folder: Path, prompt: list[int], num: int, end: int) -> list[int]:
    """By onnxruntime-genai with the folder's configuration, with exact products. end: the token that ends a text; it
    gets a probability of 0."""
    import onnxruntime_genai as genai

    config = genai.Config(str(folder))
    settings = {"session.qdq_matmulnbits_accuracy_level": "0"}
    config.overlay(json.dumps({"model": {"eos_token_id": end, "decoder": {"session_options": settings}}}))
    model = genai.Model(config)
    params = genai.GeneratorParams(model)
    length = len(prompt) + num
    params.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = genai.Generator(model, params)
    generator.append_tokens(np.array(prompt, np.int32))
    tokens: list[int] = []
    while len(tokens) < num:
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return tokens


#: The page that says how OpenVINO GenAI gets a model; its only block of Python defines `stateful`.
OPENVINO_GENAI = Path(__file__).resolve().parents[1] / "docs" / "openvino-genai.md"


def openvino_genai_greedy(path: Path, prompt: list[int], num: int, end: int) -> list[int]:
    """By OpenVINO GenAI with exact products. end: as for `genai_greedy`; it needs one if config.json names none."""
    import openvino
    import openvino_genai

    (code,) = re.findall(r"^```python\n(.*?)^```", OPENVINO_GENAI.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(code, names)
    names["write"](path.parent, path.parent / "openvino")
    exact = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY", "KV_CACHE_PRECISION": "f32"}
    pipeline = openvino_genai.LLMPipeline(path.parent / "openvino", "CPU", **exact)
    settings = openvino_genai.GenerationConfig()
    settings.max_new_tokens, settings.ignore_eos, settings.do_sample = num, True, False
    settings.eos_token_id, settings.stop_token_ids = end, {end}
    ids, mask = (openvino.Tensor(np.array([each], np.int64)) for each in (prompt, [1] * len(prompt)))
    return [int(i) for i in pipeline.generate(openvino_genai.TokenizedInputs(ids, mask), settings).tokens[0]]


def greedy(run: Any, spec: Any, prompt: list[int], num: int) -> list[int]:
    """By any engine's logits."""
    outputs: Mapping[str, Any] = {}
    past, tokens, new = empty_cache(spec), [], list(prompt)
    for _ in range(num):
        mask = np.ones((1, len(prompt) + len(tokens)), np.int64)
        outputs = run({"input_ids": np.array([new], np.int64), "attention_mask": mask, **past})
        past = cache_of(outputs, spec)
        new = [int(outputs["logits"][0, -1].argmax())]
        tokens += new
    return tokens
