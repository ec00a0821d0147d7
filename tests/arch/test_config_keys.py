"""Settings that change the network are obeyed or refused by name: keys of config.json and of GGUF files, pooling of
embedding models, and config.json of another size than the weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import LLAMA3_ROPE, edit_json, make_checkpoint, write_json, write_safetensors

import lowbit
from lowbit.arch import spec
from lowbit.arch.model_spec import ModelSpec
from lowbit.conversion.open import open_checkpoint
from lowbit.hf.checkpoint import Checkpoint
from lowbit.tensors.source import read

GGUF: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.vocab_size": 16,
    "llama.block_count": 2,
    "llama.context_length": 64,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6, "original_max_position_embeddings": 64}
LINEAR = {"type": "linear", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, **LLAMA3_ROPE}


def edited(folder: Path, **changes: Any) -> Path:
    edit_json(folder / "config.json", changes)
    return folder


def with_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Path:
    tensors = {name: read(tensor) for name, tensor in Checkpoint(folder).tensors.items()}
    write_safetensors(folder / "model.safetensors", change(tensors))
    return folder


def gguf_spec(tensors: dict[str, np.ndarray] | None = None, **keys: Any) -> ModelSpec:
    return spec({**GGUF, **{f"llama.{key.replace('__', '.')}": value for key, value in keys.items()}}, tensors or {})


def test_the_old_key_of_linear_scaling_counts() -> None:
    """llama.cpp falls back to rope.scale_linear where rope.scaling.factor is missing."""
    assert gguf_spec(rope__scale_linear=4.0).ropes[0].frequencies[0] == 0.25
    assert gguf_spec(rope__scale_linear=4.0, rope__scaling__factor=2.0).ropes[0].frequencies[0] == 0.5


def test_attn_factor_counts_for_every_scaling() -> None:
    assert gguf_spec(rope__scaling__attn_factor=1.5).ropes[0].magnitude == 1.5
    yarn = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}
    usual = gguf_spec(**yarn).ropes[0]
    assert usual.magnitude == pytest.approx(1 + 0.1 * np.log(4))
    assert gguf_spec(**yarn, rope__scaling__attn_factor=1.5).ropes[0].magnitude == 1.5 * usual.magnitude


def test_attn_factor_counts_in_every_layer_of_gemma3(tmp_path: Path) -> None:
    """As in llama.cpp, also in layers with a window, which no other scaling reaches."""
    metadata = open_checkpoint(make_checkpoint(tmp_path / "a", "gemma3")).metadata
    found = spec({**metadata, "gemma3.rope.scaling.attn_factor": 1.5}, {})
    assert [rope.magnitude for rope in found.ropes] == [1.5, 1.5]


def test_yarn_was_first_trained_with_the_context_where_no_key_says_otherwise() -> None:
    yarn = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}
    assert gguf_spec(**yarn) == gguf_spec(**yarn, rope__scaling__original_context_length=64)
    assert gguf_spec(**yarn) != gguf_spec(**yarn, rope__scaling__original_context_length=16)


def test_no_engine_obeys_yarn_ext_factor() -> None:
    yarn = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}
    assert gguf_spec(**yarn) == gguf_spec(**yarn, rope__scaling__yarn_ext_factor=0.5)


def test_factors_of_longrope_are_scaled_besides() -> None:
    factors = {f"rope_factors_{name}.weight": np.float32([1, 2, 3, 4]) for name in ("short", "long")}
    usual = gguf_spec(factors).ropes[0]
    scaled = gguf_spec(factors, rope__scaling__factor=2.0).ropes[0]
    assert scaled.frequencies == tuple(f / 2 for f in usual.frequencies)
    assert scaled.long_frequencies == tuple(f / 2 for f in usual.long_frequencies)
    assert gguf_spec(factors).original_context == 64


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention__causal", False),
        ("nextn_predict_layers", 1),
        ("attention__key_length_swa", 16),
        ("attention__value_length_swa", 16),
        ("rope__dimension_count_swa", 4),
    ],
)
def test_keys_of_gguf_that_llama_cpp_obeys_are_refused(key: str, value: Any) -> None:
    with pytest.raises(lowbit.UnsupportedError, match=key.replace("__", r"\.")):
        gguf_spec(**{key: value})


def test_both_scalings_at_once_are_refused() -> None:
    freqs = {"rope_freqs.weight": np.ones(4, np.float32)}
    with pytest.raises(lowbit.UnsupportedError, match=r"rope_freqs\.weight"):
        gguf_spec(freqs, rope__scaling__type="yarn", rope__scaling__factor=2.0)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "gemma3"])
def test_llama3_scaling_in_every_family(tmp_path: Path, arch: str) -> None:
    """Kept as rope_freqs.weight, which a note says llama.cpp has in llama's graph only; and back."""
    folder = make_checkpoint(tmp_path / "a", arch, layers=1)
    rope = {"full_attention": LLAMA3} if arch == "gemma3" else LLAMA3
    opened = open_checkpoint(edited(folder, rope_parameters=rope))
    assert opened.tensors[0].name == "rope_freqs.weight"
    assert any("rope_freqs.weight" in note for note in opened.notes) == (arch != "llama")
    plain = open_checkpoint(edited(folder, rope_parameters=None, rope_theta=1e4)).spec.ropes[0].frequencies
    ratio = np.array(plain) / opened.spec.ropes[0].frequencies
    assert ratio[0] == 1
    assert ratio[-1] == pytest.approx(LLAMA3_ROPE["factor"])
    lowbit.convert(edited(folder, rope_parameters=rope), tmp_path / "a.gguf", "F32", verify=False, provenance=False)
    lowbit.export_hf(tmp_path / "a.gguf", tmp_path / "back")
    found = json.loads((tmp_path / "back" / "config.json").read_text())["rope_parameters"]
    assert {**found.get("full_attention", found)} == LLAMA3


def test_rope_scaling_is_obeyed_beside_rope_parameters(tmp_path: Path) -> None:
    """As transformers does; its base is then not that of rope_parameters."""
    folder = edited(make_checkpoint(tmp_path / "a"), rope_scaling=LINEAR, rope_parameters=YARN)
    metadata = open_checkpoint(folder).metadata
    assert metadata["qwen3.rope.scaling.type"] == "linear"
    assert metadata["qwen3.rope.freq_base"] == 10000.0


def test_the_first_context_beside_rope_parameters_counts(tmp_path: Path) -> None:
    folder = edited(make_checkpoint(tmp_path / "a"), rope_parameters=YARN, original_max_position_embeddings=32)
    assert open_checkpoint(folder).metadata["qwen3.rope.scaling.original_context_length"] == 32


def test_yarn_without_a_factor_has_the_ratio_of_the_contexts(tmp_path: Path) -> None:
    folder = edited(make_checkpoint(tmp_path / "a"), rope_parameters={**YARN, "factor": None})
    assert open_checkpoint(folder).metadata["qwen3.rope.scaling.factor"] == 256 / 64


def test_factors_of_longrope_that_are_not_the_usual_ones(tmp_path: Path) -> None:
    """attention_factor and factor are obeyed, and exported."""
    folder = make_checkpoint(tmp_path / "a", "phi3", layers=1)
    rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
    by_factor = open_checkpoint(edited(folder, rope_parameters={**rope, "factor": 9.0})).spec.ropes[0]
    assert by_factor.magnitude == pytest.approx((1 + np.log(9) / np.log(64)) ** 0.5)
    edited(folder, rope_parameters={**rope, "factor": 9.0, "attention_factor": 1.75})
    lowbit.convert(folder, tmp_path / "a.gguf", "F32", verify=False, provenance=False)
    lowbit.export_hf(tmp_path / "a.gguf", tmp_path / "back")
    assert open_checkpoint(tmp_path / "back").spec.ropes[0].magnitude == 1.75


SLIDING = ["sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    ("arch", "changes", "message"),
    [
        ("llama", {"is_causal": False}, "is_causal"),
        ("gemma3", {"is_causal": False}, "is_causal"),
        ("qwen3", {"per_layer_config": {"1": {"intermediate_size": 64}}}, "per_layer_config"),
        ("llama", {"layer_types": SLIDING}, "layer_types"),
        ("phi3", {"layer_types": SLIDING}, "layer_types"),
        ("qwen2", {"layer_types": SLIDING, "sliding_window": 8}, "layer_types"),
        ("qwen3", {"layer_types": SLIDING, "use_sliding_window": True, "sliding_window": None}, "layer_types"),
        ("bitnet", {"attention_bias": True}, "attention_bias"),
        ("gemma3", {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'"),
        ("llama", {"rope_parameters": {**LLAMA3, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("qwen3", {"rope_parameters": YARN, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("phi3", {"original_max_position_embeddings": None}, "original_max_position_embeddings"),
    ],
)
def test_keys_that_the_network_cannot_obey(tmp_path: Path, arch: str, changes: Any, message: str) -> None:
    folder = make_checkpoint(tmp_path / "a", arch)
    if arch == "phi3":
        rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
        edited(folder, rope_parameters={**rope, "original_max_position_embeddings": 64})
    with pytest.raises(lowbit.UnsupportedError, match=message):
        open_checkpoint(edited(folder, **changes))


@pytest.mark.parametrize(
    ("arch", "hf_class", "switch", "error"),
    [
        ("llama", "LlamaForCausalLM", True, None),
        ("llama", "LlamaForCausalLM", False, "attention_bias"),
        ("mistral", "MistralForCausalLM", True, "attention_bias"),
        ("qwen3", "Qwen3ForCausalLM", True, None),
        ("qwen3", "Qwen3ForCausalLM", None, "attention_bias"),
        ("qwen2", "Qwen2ForCausalLM", None, None),
    ],
)
def test_biases_that_transformers_leaves_out(
    tmp_path: Path, arch: str, hf_class: str, switch: bool | None, error: str | None
) -> None:
    config = {} if switch is None else {"attention_bias": switch}
    folder = make_checkpoint(tmp_path / "a", arch, biases=True, config=config)
    if error is None:
        assert "blk.0.attn_q.bias" in {tensor.name for tensor in open_checkpoint(folder).tensors}
    else:
        with pytest.raises(lowbit.UnsupportedError, match=error):
            open_checkpoint(folder)


@pytest.mark.parametrize("arch", ["llama", "qwen3", "gemma3", "phi3", "bitnet"])
def test_config_of_another_size_than_the_weights(tmp_path: Path, arch: str) -> None:
    folder = make_checkpoint(tmp_path / "a", arch)
    with pytest.raises(lowbit.FormatError, match=r"num_hidden_layers is 1, but there are tensors of more layers"):
        open_checkpoint(edited(folder, num_hidden_layers=1))
    with pytest.raises(lowbit.FormatError, match=r"num_hidden_layers is 3, but the tensors have 2 layers"):
        open_checkpoint(edited(folder, num_hidden_layers=3))
    with pytest.raises(
        lowbit.FormatError,
        match=r"(embed_tokens|lm_head).*\[288, 256\].*\[300, 256\] from config.json \(vocab_size, hidden_size\)",
    ):
        open_checkpoint(edited(folder, num_hidden_layers=2, vocab_size=300, tie_word_embeddings=True))


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3", "bitnet-bf16"])
def test_tensors_without_the_prefix(tmp_path: Path, arch: str) -> None:
    folder = make_checkpoint(tmp_path / "a", arch, layers=1)
    before = [tensor.name for tensor in open_checkpoint(folder).tensors]
    with_tensors(folder, lambda tensors: {name.removeprefix("model."): t for name, t in tensors.items()})
    assert sorted(tensor.name for tensor in open_checkpoint(folder).tensors) == sorted(before)


def embedder(folder: Path, arch: str, pooling: Any, place: Any = "1_Pooling") -> Path:
    """A folder of sentence-transformers, without a prefix or an output matrix."""
    make_checkpoint(folder, arch, layers=1, tied=False)
    with_tensors(folder, lambda ts: {n.removeprefix("model."): t for n, t in ts.items() if n != "lm_head.weight"})
    types = {"": "sentence_transformers.models.Transformer", place: "sentence_transformers.models.Pooling"}
    modules = [{"idx": i, "path": path, "type": kind} for i, (path, kind) in enumerate(types.items())]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", pooling)
    return folder


@pytest.mark.parametrize(
    ("pooling", "value"),
    [
        ({"pooling_mode_mean_tokens": True}, 1),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, 2),
        ({"pooling_mode_lasttoken": True}, 3),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": True}, 1),
        ({"pooling_mode": "lasttoken"}, 3),
    ],
)
@pytest.mark.parametrize("arch", ["qwen2", "qwen3"])
def test_pooling(tmp_path: Path, arch: str, pooling: dict[str, Any], value: int) -> None:
    opened = open_checkpoint(embedder(tmp_path / "a", arch, pooling))
    keys = list(opened.metadata)
    assert opened.metadata[f"{arch}.pooling_type"] == value
    assert keys[keys.index("general.file_type") + 1] == f"{arch}.pooling_type"
    assert any("embedding model" in note for note in opened.notes)
    assert any("lm_head.weight" in note for note in opened.notes)
    assert "output.weight" not in {tensor.name for tensor in opened.tensors}


def test_pooling_is_kept_by_what_reads_the_file(tmp_path: Path) -> None:
    lowbit.convert(
        embedder(tmp_path / "a", "qwen3", {"pooling_mode": "lasttoken"}),
        tmp_path / "a.gguf",
        "F32",
        verify=False,
        provenance=False,
    )
    lowbit.quantize_file(tmp_path / "a.gguf", tmp_path / "b.gguf", "Q8_0")
    lowbit.gguf.edit(tmp_path / "b.gguf", {"general.name": "other"})
    with lowbit.gguf.open(tmp_path / "b.gguf") as file:
        assert file.metadata["qwen3.pooling_type"] == 3
    report = lowbit.export_hf(tmp_path / "b.gguf", tmp_path / "back")
    assert any("qwen3.pooling_type" in note for note in report.notes)


def test_families_whose_pooling_the_reference_drops(tmp_path: Path) -> None:
    opened = open_checkpoint(embedder(tmp_path / "a", "llama", {"pooling_mode": "lasttoken"}))
    assert "llama.pooling_type" not in opened.metadata
    assert any("pooling_type" in note for note in opened.notes)


@pytest.mark.parametrize("place", ["../other", "/etc", "a/../../b", "a\0b", 7, None])
def test_paths_of_modules_stay_in_the_folder(tmp_path: Path, place: Any) -> None:
    folder = embedder(tmp_path / "a", "qwen3", {})
    write_json(folder / "modules.json", [{"type": "x.Pooling", "path": place}])
    with pytest.raises(lowbit.FormatError, match=r"modules\.json: path is "):
        open_checkpoint(folder)


@pytest.mark.parametrize("text", ["{}", "[1]", '[{"path": ""}]', "[", "[" * 100_000, "7"])
def test_modules_that_are_wrong(tmp_path: Path, text: str) -> None:
    folder = embedder(tmp_path / "a", "qwen3", {})
    (folder / "modules.json").write_text(text)
    with pytest.raises(lowbit.FormatError, match=r"modules\.json"):
        open_checkpoint(folder)


@pytest.mark.parametrize("pooling", [{}, {"pooling_mode": "weightedmean"}, {"pooling_mode": ["mean"]}])
def test_ways_of_pooling_that_gguf_has_not(tmp_path: Path, pooling: Any) -> None:
    with pytest.raises(lowbit.UnsupportedError, match="mean, cls or lasttoken"):
        open_checkpoint(embedder(tmp_path / "a", "qwen3", pooling))


def test_pooling_settings_that_are_missing(tmp_path: Path) -> None:
    folder = embedder(tmp_path / "a", "qwen3", {})
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(lowbit.FileError, match="1_Pooling"):
        open_checkpoint(folder)
