"""`lowbit.export_onnx`: ONNX Runtime, onnxruntime-genai and OpenVINO compute what lowbit's engine computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exported_models import (
    ENGINES,
    cache_of,
    decoded,
    empty_cache,
    genai_greedy,
    graph_of,
    greedy,
    in_onnxruntime,
    in_steps,
    openvino_genai_greedy,
    relative,
    with_weights,
)
from random_network import SPECS, forward, make_model, make_spec, random_ids, random_tensors
from tiny_checkpoint import make_checkpoint

import lowbit

pytestmark = pytest.mark.oracle

BARD = Path(lowbit.__file__).parent / "data" / "bard"
LAYOUTS = ("genai", "standard")
#: The first opset of each way to make a graph.
OPSETS = {"genai": (23, 25), "standard": (17, 18, 20, 23, 25)}
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "llama": {"arch": "llama"},
    "llama-biased": {"arch": "llama", "biases": True, "config": {"attention_bias": True}},
    "mistral": {"arch": "mistral"},
    "qwen2": {"arch": "qwen2"},
    "qwen3": {"arch": "qwen3"},
    "gemma3": {"arch": "gemma3", "layers": 7},
    "gemma3-capped": {"arch": "gemma3", "config": {"final_logit_softcapping": 3.0}},
    "phi3": {"arch": "phi3"},
    "phi3-long": {"arch": "phi3", "config": {"original_max_position_embeddings": 16}},
    "phi3-partial": {"arch": "phi3", "config": {"partial_rotary_factor": 0.75}},
    "bitnet": {"arch": "bitnet"},
    "heads-of-24": {"arch": "llama", "head_dim": 24},
}
#: OpenVINO 2026.4 ignores rotary_embedding_dim of com.microsoft.RotaryEmbedding, and does not know softcap.
NOT_IN_OPENVINO = {("genai", "phi3-partial")}
#: Rounding inputs to codes: where one is on an edge, another order of a sum decides.
EDGES = {"bitnet"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    options = {"tokenizer": "llama-bpe"}  # onnxruntime-genai needs one that it knows
    return {"bard": BARD} | {
        name: make_checkpoint(folder / name, **options, **CHECKPOINTS[name]) for name in CHECKPOINTS
    }


def export(source: Path, target: Path, **options: Any) -> Path:
    lowbit.export_onnx(source, target, **options)
    onnx.checker.check_model(target / "model.onnx")
    return target / "model.onnx"


# --- the graph


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["bard", *CHECKPOINTS])
def test_logits(tmp_path: Path, checkpoints: dict[str, Path], name: str, layout: str, engine: str) -> None:
    """A prompt, one token after the other, and several at once."""
    source = checkpoints[name]
    if engine == "openvino" and (layout, name) in NOT_IN_OPENVINO:
        layout = "standard"
    model = lowbit.load(source, compute="f32")
    ids = random_ids(model.spec, 40)
    run = ENGINES[engine](export(source, tmp_path / "out", format="f32", layout=layout))
    limit = 1e-2 if name in EDGES else 1e-4
    steps = [30, 1, 1, 1, 7] if layout == "standard" or engine == "onnxruntime" else [30, *[1] * 10]
    assert relative(in_steps(run, model.spec, ids, steps), model.logits(ids)) < limit


@pytest.mark.parametrize("parts", ["plain", "extras", "fused"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SPECS)
def test_every_flag_of_a_network(tmp_path: Path, name: str, layout: str, parts: str) -> None:
    """Norms, biases and factors everywhere; caps, windows, several and partial rotations."""
    spec = make_spec(**SPECS[name])
    tensors = random_tensors(spec, extras=parts != "plain", fused=parts == "fused")
    if layout == "genai" and spec.head_dim % 8:
        with pytest.raises(lowbit.UnsupportedError, match="multiple of 8"):
            graph_of(spec, tensors, layout)
        return
    ids = random_ids(spec, 90)
    # A sequence that grows beyond the first rotation's context is started anew.
    starts = [90] if spec.original_context else [80, 1, 1, 8]
    expected = forward(make_model(spec, tensors), ids)
    for opset in OPSETS[layout]:
        path = tmp_path / f"{opset}.onnx"
        lowbit.onnx.write(path, graph_of(spec, tensors, layout, opset), external_data=True)
        onnx.checker.check_model(path)
        found = in_steps(in_onnxruntime(path), spec, ids, starts)
        error = np.abs(found - expected).max(axis=1) / np.abs(expected).max()
        if spec.int8_activations:  # codes on an edge
            assert np.median(error) < 1e-4
        else:
            assert error.max() < 1e-4


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_partial_rotation_by_the_fused_operator(tmp_path: Path, layout: str, interleaved: bool) -> None:
    """The pairs are a multiple of 8, which GroupQueryAttention rotates itself."""
    spec = make_spec(head_dim=32, rope_dim=16, rope_interleaved=interleaved)
    tensors = random_tensors(spec)
    lowbit.onnx.write(tmp_path / "m.onnx", graph_of(spec, tensors, layout), external_data=True)
    ids = random_ids(spec, 24)
    expected = forward(make_model(spec, tensors), ids)
    for engine in ENGINES.values():
        assert relative(in_steps(engine(tmp_path / "m.onnx"), spec, ids, [20, 1, 1, 1, 1]), expected) < 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_long_contexts_use_their_own_rotation(tmp_path: Path, layout: str) -> None:
    spec = make_spec(**SPECS["long"])
    tensors = random_tensors(spec)
    lowbit.onnx.write(tmp_path / "m.onnx", graph_of(spec, tensors, layout), external_data=True)
    run, core = in_onnxruntime(tmp_path / "m.onnx"), make_model(spec, tensors)
    for sequence, length in enumerate((140, 141)):
        ids = random_ids(spec, length)
        expected = forward(core, ids, sequence=sequence)
        assert relative(in_steps(run, spec, ids, [length]), expected) < 1e-4


def test_contexts_of_any_length_have_small_files(tmp_path: Path) -> None:
    """A file could state 2^31 tokens: tables for them would have 137 GB."""
    spec = make_spec(context_length=1 << 31)
    tensors = random_tensors(spec)
    lowbit.onnx.write(tmp_path / "m.onnx", graph_of(spec, tensors, "genai"), external_data=True)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1 << 20
    ids = random_ids(spec, 24)
    expected = forward(make_model(spec, tensors, max_length=100), ids)
    for engine in ENGINES.values():
        assert relative(in_steps(engine(tmp_path / "m.onnx"), spec, ids, [20, 1, 1, 1, 1]), expected) < 1e-4


@pytest.mark.parametrize(("layout", "side"), [("genai", "right"), ("standard", "right"), ("standard", "left")])
def test_padded_batches(tmp_path: Path, checkpoints: dict[str, Path], layout: str, side: str) -> None:
    """Two prompts of different lengths, then a token for each."""
    source = checkpoints["gemma3"]
    model = lowbit.load(source, compute="f32")
    spec = model.spec
    run = in_onnxruntime(export(source, tmp_path / "out", format="f32", layout=layout))
    texts = [random_ids(spec, length, seed=length) for length in (41, 30)]
    ids, mask = np.zeros((2, 40), np.int64), np.zeros((2, 40), np.int64)
    for row, text in enumerate(texts):
        at = slice(0, len(text) - 1) if side == "right" else slice(41 - len(text), 40)
        ids[row, at], mask[row, at] = text[:-1], 1
    outputs = run({"input_ids": ids, "attention_mask": mask, **empty_cache(spec, 2)})
    for row, text in enumerate(texts):
        expected = model.logits(text)
        assert relative(outputs["logits"][row][mask[row] > 0], expected[:-1]) < 1e-4
    past = cache_of(outputs, spec)
    mask = np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)
    last = np.array([[text[-1]] for text in texts], np.int64)
    outputs = run({"input_ids": last, "attention_mask": mask, **past})
    for row, text in enumerate(texts):
        assert relative(outputs["logits"][row], model.logits(text)[-1:]) < 1e-4


# --- weights


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["qwen3", "llama", "gemma3"])
@pytest.mark.parametrize(
    "options",
    [
        {"format": "int4"},
        {"format": "int4", "symmetric": False, "block_size": 64},
        {"format": "int4", "symmetric": False, "method": "round", "block_size": 128},
        {"format": "int8"},
        {"format": "int8", "symmetric": False, "block_size": 16},
    ],
    ids=str,
)
def test_blocks(
    tmp_path: Path, checkpoints: dict[str, Path], options: dict[str, Any], name: str, layout: str, engine: str
) -> None:
    """The logits are those of the decoded weights; an embedding that is the output matrix has the same values."""
    exact = {"accuracy_level": 0} if layout == "genai" else {"opset": 21}
    report = lowbit.export_onnx(checkpoints[name], tmp_path / "out", layout=layout, **options, **exact)
    path = tmp_path / "out" / "model.onnx"
    onnx.checker.check_model(path)
    original = lowbit.load(checkpoints[name], compute="f32")
    weights = {}
    for matrix in report.matrices:
        before = np.asarray(original.weights[matrix.name], np.float32)
        weights[matrix.name] = decoded(path, matrix.name, matrix.shape, options.get("block_size", 32))
        difference = np.linalg.norm(weights[matrix.name] - before) / np.linalg.norm(before)
        assert matrix.error == pytest.approx(difference, rel=1e-3)
        assert difference < (0.2 if options["format"] == "int4" else 0.02)
    model = with_weights(original, weights)
    ids = random_ids(model.spec, 24)
    run = ENGINES[engine](path)
    assert relative(in_steps(run, model.spec, ids, [20, 1, 1, 1, 1]), model.logits(ids)) < 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("format", ["f16", "bf16"])
def test_half_precision_weights(tmp_path: Path, checkpoints: dict[str, Path], format: str, layout: str) -> None:
    """Runtimes compute in float32 with the values of the file."""
    source = checkpoints["llama"]
    lowbit.convert(source, tmp_path / "m.gguf", format, verify=False, provenance=False)
    model = lowbit.load(tmp_path / "m.gguf", compute="f32")
    ids = random_ids(model.spec, 24)
    path = export(source, tmp_path / "out", format=format, layout=layout)
    for engine in ENGINES.values():
        assert relative(in_steps(engine(path), model.spec, ids, [20, 1, 1, 1, 1]), model.logits(ids)) < 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("format", ["f16", "int4"])
@pytest.mark.parametrize("name", ["qwen3", "phi3-long", "llama-biased"])
def test_float16_activations(tmp_path: Path, checkpoints: dict[str, Path], name: str, format: str, layout: str) -> None:
    """Rounded in each step: close to float32 with the same weights. OpenVINO computes in float32."""
    options = {"format": format, "layout": layout} | ({"accuracy_level": 0} if layout == "genai" else {})
    exact = in_onnxruntime(export(checkpoints[name], tmp_path / "exact", **options))
    path = export(checkpoints[name], tmp_path / "half", activations="float16", **options)
    spec = lowbit.load(checkpoints[name]).spec
    ids = random_ids(spec, 24)
    expected = in_steps(exact, spec, ids, [20, 1, 1, 1, 1])
    for engine in ENGINES.values():
        found = in_steps(engine(path), spec, ids, [20, 1, 1, 1, 1], np.float16)
        assert found.dtype == np.float32
        assert relative(found, expected) < 3e-2


@pytest.mark.parametrize("name", ["qwen3", "llama"])
@pytest.mark.parametrize("origin", ["checkpoint", "gguf"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("format", ["Q4_0", "Q4_1", "Q8_0", "Q4_K_M", "Q6_K", "IQ4_XS", "TQ2_0"])
def test_formats_of_gguf(
    tmp_path: Path, checkpoints: dict[str, Path], format: str, layout: str, origin: str, name: str
) -> None:
    """The same values as the GGUF file's, encoded on the way or taken as they are. Embeddings that are no output matrix
    have the mix's main format."""
    source = checkpoints[name]
    lowbit.convert(source, tmp_path / "m.gguf", format, verify=False, provenance=False)
    model = lowbit.load(tmp_path / "m.gguf", compute="f32")
    options = {"format": format} if origin == "checkpoint" else {}
    options |= {"accuracy_level": 0} if layout == "genai" else {"opset": 25}
    path = tmp_path / "out" / "model.onnx"
    report = lowbit.export_onnx(
        source if options.get("format") else tmp_path / "m.gguf", path.parent, layout=layout, **options
    )
    onnx.checker.check_model(path)
    with lowbit.gguf.open(tmp_path / "m.gguf") as file:
        assert {m.name: m.format for m in report.matrices} == {
            name: info.format for name, info in file.infos.items() if len(info.shape) == 2
        }
    ids = random_ids(model.spec, 24)
    found = in_steps(in_onnxruntime(path), model.spec, ids, [20, 1, 1, 1, 1])
    assert relative(found, model.logits(ids)) < 1e-4


# --- text


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["bard", "llama", "qwen2", "qwen3", "gemma3", "phi3", "bitnet"])
def test_greedy_tokens(tmp_path: Path, checkpoints: dict[str, Path], name: str, layout: str) -> None:
    model = lowbit.load(checkpoints[name], compute="f32")
    prompt = random_ids(model.spec, 12, seed=3).tolist()
    expected = list(model.tokens(prompt, max_tokens=40, ignore_eos=True))
    path = export(checkpoints[name], tmp_path / "out", format="f32", layout=layout)
    end = min({*range(model.spec.vocab_size)} - {*expected})
    assert genai_greedy(path.parent, prompt, 40, end) == expected
    assert greedy(ENGINES["openvino"](path), model.spec, prompt, 40) == expected
    if layout == "standard":
        assert openvino_genai_greedy(path, prompt, 40, end) == expected


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["bard", "llama", "qwen3", "gemma3", "phi3"])
def test_greedy_tokens_of_int4(tmp_path: Path, checkpoints: dict[str, Path], name: str, layout: str) -> None:
    """Those of lowbit's engine with the decoded weights."""
    exact = {"accuracy_level": 0} if layout == "genai" else {}
    report = lowbit.export_onnx(checkpoints[name], tmp_path / "out", format="int4", layout=layout, **exact)
    path = tmp_path / "out" / "model.onnx"
    weights = {matrix.name: decoded(path, matrix.name, matrix.shape, 32) for matrix in report.matrices}
    model = with_weights(lowbit.load(checkpoints[name], compute="f32"), weights)
    prompt = random_ids(model.spec, 12, seed=3).tolist()
    expected = list(model.tokens(prompt, max_tokens=40, ignore_eos=True))
    for engine in ENGINES.values():
        assert greedy(engine(path), model.spec, prompt, 40) == expected
    end = min({*range(model.spec.vocab_size)} - {*expected})
    assert genai_greedy(path.parent, prompt, 40, end) == expected
    if layout == "standard":
        assert openvino_genai_greedy(path, prompt, 40, end) == expected
