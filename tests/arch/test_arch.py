"""Every architecture's reading of a checkpoint: tensors, metadata, the forms that config.json takes, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import make_checkpoint, write_json

import lowbit
from lowbit.arch import architectures, hf_classes, spec
from lowbit.arch.rope_keys import llama3_factors
from lowbit.conversion.open import open_checkpoint
from lowbit.hf.checkpoint import Checkpoint
from lowbit.tensors.source import read

ARCHS = sorted(architectures())  # each has a tiny checkpoint of its name


def edit(folder: Path, **changes: Any) -> Path:
    """Changes config.json; None removes a key."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    write_json(path, {key: value for key, value in config.items() if value is not None})
    return folder


def rename(folder: Path, old: str, new: str | None) -> Path:
    """Renames a tensor in model.safetensors, or every tensor with a prefix; None leaves it out."""
    from tiny_checkpoint import write_safetensors

    tensors = {name: read(tensor) for name, tensor in Checkpoint(folder).tensors.items()}
    kept = {
        (new + name[len(old) :] if new is not None and name.startswith(old) else name): w for name, w in tensors.items()
    }
    if new is None:
        del kept[old]
    write_safetensors(folder / "model.safetensors", kept)
    return folder


def test_every_architecture_is_found() -> None:
    assert {"llama", "qwen3"} <= set(ARCHS)
    for name, arch in architectures().items():
        assert arch.name == name
        assert all(hf_classes()[hf_name] is arch for hf_name in arch.hf_names)


@pytest.mark.parametrize("arch", ARCHS)
def test_tensors_and_spec(tmp_path: Path, arch: str) -> None:
    opened = open_checkpoint(make_checkpoint(tmp_path / "a", arch))
    assert all(tensor.dtype == np.float32 for tensor in opened.tensors if len(tensor.shape) == 1)
    assert all(tensor.dtype != np.float32 for tensor in opened.tensors if len(tensor.shape) == 2)
    assert len({tensor.name for tensor in opened.tensors}) == len(opened.tensors)
    for tensor in opened.tensors:
        assert read(tensor).shape == tensor.shape
        assert read(tensor).dtype == tensor.dtype
    found = opened.spec
    assert found.architecture == arch
    assert (found.num_layers, found.hidden_size, found.intermediate_size, found.vocab_size) == (2, 256, 512, 288)
    assert (found.num_heads, found.num_kv_heads, found.head_dim, found.rope_dim) == (4, 2, 64, 64)
    assert found.context_length == 256
    assert found.norm_eps == pytest.approx(1e-5)
    assert found.rope_interleaved == (arch == "llama")
    assert len(opened.metadata["tokenizer.ggml.tokens"]) == 288
    assert opened.notes == []


@pytest.mark.parametrize("arch", ARCHS)
def test_both_forms_of_config_mean_the_same(tmp_path: Path, arch: str) -> None:
    new = open_checkpoint(make_checkpoint(tmp_path / "x" / "a", arch))
    old = open_checkpoint(make_checkpoint(tmp_path / "y" / "a", arch, old_config=True))
    assert list(new.metadata) == list(old.metadata)
    for key, value in new.metadata.items():
        np.testing.assert_array_equal(value, old.metadata[key])
    for a, b in zip(new.tensors, old.tensors, strict=True):
        np.testing.assert_array_equal(read(a), read(b))


def test_rope_type_under_its_older_name(tmp_path: Path) -> None:
    scaling = {"type": "linear", "factor": 2.0}
    folder = edit(make_checkpoint(tmp_path / "a", "llama", old_config=True), rope_scaling=scaling)
    opened = open_checkpoint(folder)
    assert opened.metadata["llama.rope.scaling.type"] == "linear"
    assert opened.metadata["llama.rope.scaling.factor"] == 2.0
    assert opened.spec.ropes[0].frequencies[0] == 0.5


def test_yarn(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6, "original_max_position_embeddings": 64}
    metadata = open_checkpoint(edit(make_checkpoint(tmp_path / "a"), rope_parameters=rope)).metadata
    assert metadata["qwen3.rope.scaling.original_context_length"] == 64
    assert metadata["qwen3.rope.freq_base"] == 1e6


def test_yarn_settings_without_a_key_of_their_own(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6, "original_max_position_embeddings": 64}
    folder = make_checkpoint(tmp_path / "a")

    def magnitude(**more: float) -> float:
        return open_checkpoint(edit(folder, rope_parameters={**rope, **more})).spec.ropes[0].magnitude

    assert magnitude(mscale=2.0, mscale_all_dim=0.5) == pytest.approx(1.2772588722 / 1.0693147181)
    assert magnitude(mscale=2.0, mscale_all_dim=0.5, attention_factor=1.5) == 1.5
    assert magnitude(mscale=2.0) == pytest.approx(1.1386294361)  # as transformers, which wants both
    with pytest.raises(lowbit.UnsupportedError, match="truncate"):
        magnitude(truncate=False)


def test_defaults_of_config(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a", "llama", kv_heads=4, old_config=True)
    edit(folder, num_key_value_heads=None, head_dim=None, rope_theta=None, tie_word_embeddings=None, hidden_act=None)
    found = open_checkpoint(folder).spec
    assert (found.num_kv_heads, found.head_dim) == (4, 64)
    assert found.ropes[0].frequencies[1] == np.float32(10000.0 ** (-1 / 32))
    qwen = edit(make_checkpoint(tmp_path / "b", head_dim=128, heads=2), head_dim=None)
    assert open_checkpoint(qwen).spec.head_dim == 128


@pytest.mark.parametrize(
    "key",
    ["architectures", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
     "max_position_embeddings", "rms_norm_eps"],
)  # fmt: skip
def test_required_keys(tmp_path: Path, key: str) -> None:
    with pytest.raises(lowbit.FormatError, match=rf"config\.json: .*'{key}'"):
        open_checkpoint(edit(make_checkpoint(tmp_path / "a"), **{key: None}))


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_size", -1), ("hidden_size", 1 << 40), ("hidden_size", "256"), ("hidden_size", True), ("head_dim", 63),
     ("num_attention_heads", 3), ("rms_norm_eps", "small"), ("rms_norm_eps", 0), ("tie_word_embeddings", 1),
     ("num_hidden_layers", 1 << 30), ("num_hidden_layers", 3), ("intermediate_size", 513), ("vocab_size", 287),
     ("rope_parameters", [1]), ("architectures", "LlamaForCausalLM"), ("hidden_act", 3)],
)  # fmt: skip
def test_wrong_values(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(lowbit.FormatError):
        open_checkpoint(edit(make_checkpoint(tmp_path / "a"), **{key: value}))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_act", "gelu", "hidden_act is 'gelu'"),
        ("quantization_config", {"quant_method": "gptq"}, "gptq"),
        ("rope_parameters", {"rope_type": "longrope", "rope_theta": 1.0}, "'longrope'"),
        ("rope_parameters", {"full_attention": {"rope_theta": 1.0}}, "differs between layers"),
    ],
)
def test_unsupported(tmp_path: Path, key: str, value: Any, message: str) -> None:
    with pytest.raises(lowbit.UnsupportedError, match=message):
        open_checkpoint(edit(make_checkpoint(tmp_path / "a"), **{key: value}))


@pytest.mark.parametrize(
    ("arch", "changes", "window", "layers"),
    [
        ("mistral", {}, 24, None),
        ("mistral", {"sliding_window": "missing"}, 4096, None),
        ("mistral", {"sliding_window": None}, None, None),
        ("llama", {"sliding_window": 24}, None, None),
        ("qwen2", {"sliding_window": 24}, None, None),
        ("qwen2", {"sliding_window": 24, "use_sliding_window": True, "max_window_layers": 0}, 24, None),
        ("qwen2", {"sliding_window": 24, "use_sliding_window": True, "max_window_layers": 1}, 24, "-w"),
        ("qwen2", {"sliding_window": 24, "use_sliding_window": True}, None, None),  # 28 layers without one
        ("qwen3", {"use_sliding_window": True, "max_window_layers": 1}, 4096, "-w"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": None}, None, None),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 9, "layer_types": ["s", "f"]}, 9, "w-"),
        ("gemma3", {}, 24, None),
        ("gemma3", {"sliding_window_pattern": 2}, 24, "w-"),
        ("gemma3", {"sliding_window_pattern": 1}, None, None),
        ("gemma3", {"layer_types": ["f", "s"]}, 24, "-w"),
        ("gemma3", {"layer_types": ["s", "s"]}, 24, None),
        ("gemma3", {"sliding_window_pattern": 1, "sliding_window": None}, None, None),
    ],
)
def test_windows(tmp_path: Path, arch: str, changes: dict[str, Any], window: int | None, layers: str | None) -> None:
    """The keys of config.json as transformers reads them."""
    types = {"s": "sliding_attention", "f": "full_attention"}
    changes = {k: [types[x] for x in v] if k == "layer_types" else v for k, v in changes.items()}
    folder = make_checkpoint(tmp_path / "a", arch, config=changes)
    if changes.get("sliding_window") == "missing":
        edit(folder, sliding_window=None)
    opened = open_checkpoint(folder)
    keys = opened.metadata
    name = keys["general.architecture"]
    assert keys.get(f"{name}.attention.sliding_window") == window
    pattern = keys.get(f"{name}.attention.sliding_window_pattern")
    assert (None if pattern is None else "".join("-w"[int(flag)] for flag in pattern)) == layers
    seen = opened.spec.windows
    lowbit.convert(folder, tmp_path / "m.gguf", "BF16", verify=False, provenance=False)
    with lowbit.gguf.open(tmp_path / "m.gguf") as file:
        assert spec(file.metadata, {}).windows == seen
    expected = layers or ("ww" if window else "--")
    assert seen == tuple((window or 0) * (kind == "w") for kind in expected)


@pytest.mark.parametrize("types", [["sliding_attention"], ["full_attention", "chunked_attention"], "full_attention"])
def test_bad_layer_types(tmp_path: Path, types: Any) -> None:
    folder = make_checkpoint(tmp_path / "a", "gemma3", config={"layer_types": types})
    with pytest.raises(lowbit.FormatError, match=r"config\.json: 'layer_types' is "):
        open_checkpoint(folder)


@pytest.mark.parametrize("version", ["4", "5"])
def test_the_text_model_of_gemma3_with_eyes(tmp_path: Path, version: str) -> None:
    plain = open_checkpoint(make_checkpoint(tmp_path / "x" / "a", "gemma3"))
    folder = make_checkpoint(tmp_path / "y" / "a", "gemma3", nested=version, old_config=version == "4")
    opened = open_checkpoint(folder)
    assert opened.metadata.keys() == plain.metadata.keys()
    for key, value in plain.metadata.items():
        np.testing.assert_array_equal(opened.metadata[key], value)
    weights = {tensor.name: read(tensor) for tensor in plain.tensors}
    assert weights.keys() == {tensor.name for tensor in opened.tensors}
    for tensor in opened.tensors:
        np.testing.assert_array_equal(read(tensor), weights[tensor.name])
    note = opened.notes[0]
    assert "2 tensors outside the text model are left out, for example " in note


def test_what_a_nested_config_may_leave_out(tmp_path: Path) -> None:
    sizes = {"heads": 8, "kv_heads": 4, "head_dim": 256, "hidden": 32, "ffn": 32, "layers": 1}
    folder = make_checkpoint(tmp_path / "a", "gemma3", nested="4", **sizes)
    config = json.loads((folder / "config.json").read_text())
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "sliding_window", "vocab_size")
    text = {key: config["text_config"][key] for key in kept}
    keys = open_checkpoint(
        edit(folder, text_config={**text, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}})
    ).metadata
    names = ("context_length", "attention.head_count", "attention.head_count_kv", "attention.key_length",
             "rope.scaling.type", "rope.scaling.factor", "rope.freq_base", "rope.freq_base_swa")  # fmt: skip
    assert [keys[f"gemma3.{name}"] for name in names] == [131072, 8, 4, 256, "linear", 8.0, 1e6, 1e4]
    del text["sliding_window"]
    with pytest.raises(lowbit.FormatError, match="no 'sliding_window'"):
        open_checkpoint(edit(folder, text_config=text))


def test_gemma3_norms_are_whole(tmp_path: Path) -> None:
    """In the type of the reference's sum: float16 of a float16 checkpoint, else float32."""
    for dtype, kind in (("BF16", np.float32), ("F16", np.float16), ("F32", np.float32)):
        folder = make_checkpoint(tmp_path / dtype, "gemma3", dtype=dtype)
        stored = Checkpoint(folder).tensors["model.layers.0.self_attn.q_norm.weight"]
        (found,) = (read(t) for t in open_checkpoint(folder).tensors if t.name == "blk.0.attn_q_norm.weight")
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, (read(stored).astype(kind) + kind(1)).astype(np.float32))


def test_tied_weights_under_either_name(tmp_path: Path) -> None:
    usual = {t.name: read(t) for t in open_checkpoint(make_checkpoint(tmp_path / "a")).tensors}
    assert "output.weight" not in usual
    folder = rename(make_checkpoint(tmp_path / "b"), "model.embed_tokens.weight", "lm_head.weight")
    other = {t.name: read(t) for t in open_checkpoint(folder).tensors}
    assert usual.keys() == other.keys()
    np.testing.assert_array_equal(usual["token_embd.weight"], other["token_embd.weight"])


def test_untied_models_need_both(tmp_path: Path) -> None:
    folder = rename(make_checkpoint(tmp_path / "a", tied=False), "lm_head.weight", None)
    with pytest.raises(lowbit.FormatError, match=r"1 tensors are missing: lm_head\.weight"):
        open_checkpoint(folder)


def test_names_without_the_prefix(tmp_path: Path) -> None:
    folder = rename(make_checkpoint(tmp_path / "a"), "model.", "")
    assert len(open_checkpoint(folder).tensors) == 24


def test_missing_and_foreign_tensors(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    folder = rename(make_checkpoint(tmp_path / "a"), name, None)
    with pytest.raises(lowbit.FormatError, match=name):
        open_checkpoint(folder)
    folder = rename(make_checkpoint(tmp_path / "b"), name, "model.layers.1.mlp.odd.weight")
    with pytest.raises(lowbit.FormatError, match=r"'model\.layers\.1\.mlp\.odd\.weight' is not part of the qwen3"):
        open_checkpoint(folder)


def test_old_buffers_are_left_out(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a", layers=3)
    before = len(open_checkpoint(folder).tensors)
    rename(folder, "model.layers.2.self_attn.q_norm.weight", "model.layers.2.self_attn.rotary_emb.inv_freq")
    with pytest.raises(lowbit.FormatError, match=r"1 tensors are missing: model\.layers\.2\.self_attn\.q_norm\.weight"):
        open_checkpoint(folder)
    assert before == 35


def test_scaled_frequencies() -> None:
    factors = llama3_factors(128, 500000.0, 8.0, 1.0, 4.0, 8192.0)
    assert factors.dtype == np.float32
    assert factors[0] == 1.0
    assert factors[-1] == 8.0
    assert np.all(np.diff(factors) >= 0)
    between = factors[(factors > 1) & (factors < 8)]
    assert len(between) == 6
    np.testing.assert_array_equal(llama3_factors(8, 1e4, 4.0, 1.0, 1.0, 10.0), np.float32([1, 4, 4, 4]))


LLAMA = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 64,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.tokens": ["a", "b"],
}


def test_spec_defaults_of_other_peoples_files() -> None:
    found = spec(LLAMA, {})
    assert (found.vocab_size, found.num_kv_heads, found.head_dim, found.rope_dim) == (2, 4, 8, 8)
    assert found.ropes[0].frequencies[2] == np.float32(0.01)
    assert spec({**LLAMA, "llama.rope.scaling.type": "none"}, {}) == found
    assert spec({**LLAMA, "llama.vocab_size": np.uint32(7)}, {}).vocab_size == 7


@pytest.mark.parametrize("key", [key for key in LLAMA if key != "tokenizer.ggml.tokens"])
def test_spec_needs(key: str) -> None:
    with pytest.raises(lowbit.FormatError, match=key):
        spec({k: v for k, v in LLAMA.items() if k != key}, {})


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("general.architecture", "lama", lowbit.UnsupportedError),
        ("llama.expert_count", 8, lowbit.UnsupportedError),
        ("llama.attention.value_length", 16, lowbit.UnsupportedError),
        ("llama.attention.head_count_kv", np.array([1, 2]), lowbit.UnsupportedError),
        ("llama.block_count", "2", lowbit.FormatError),
        ("llama.block_count", 0, lowbit.FormatError),
        ("llama.context_length", 1 << 40, lowbit.FormatError),
        ("llama.attention.layer_norm_rms_epsilon", float("nan"), lowbit.FormatError),
    ],
)
def test_spec_refuses(key: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        spec({**LLAMA, key: value}, {})


def test_longrope_is_kept_as_factors(tmp_path: Path) -> None:
    opened = open_checkpoint(make_checkpoint(tmp_path / "a", "phi3", config={"partial_rotary_factor": 0.5}))
    tensors = {tensor.name: read(tensor) for tensor in opened.tensors}
    np.testing.assert_array_equal(tensors["rope_factors_long.weight"], np.float32([1 + 0.5 * i for i in range(16)]))
    np.testing.assert_array_equal(tensors["rope_factors_short.weight"], np.float32([1 + 0.01 * i for i in range(16)]))
    assert list(opened.metadata)[:3] == ["general.architecture", "phi3.rope.scaling.attn_factor", "general.type"]
    assert opened.metadata["phi3.rope.scaling.attn_factor"] == pytest.approx((1 + np.log(4) / np.log(64)) ** 0.5)
    assert opened.metadata["phi3.rope.dimension_count"] == 32
    assert opened.metadata["phi3.attention.sliding_window"] == 200
    plain = edit(make_checkpoint(tmp_path / "b", "phi3"), rope_parameters=None, sliding_window=None)
    opened = open_checkpoint(plain)
    assert not any(tensor.name.startswith("rope_factors") for tensor in opened.tensors)
    assert opened.metadata["phi3.attention.sliding_window"] == 0


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("short_factor", [1.0] * 31, "'short_factor' is 'a list of 31', expected a list of 32 numbers"),
        ("short_factor", [1.0] * 31 + [0.0], "'short_factor' is '0.0', expected a positive number"),
        ("long_factor", None, "no 'long_factor'"),
        ("long_factor", "1", "'long_factor' is '1', expected a list of 32 numbers"),
        ("rope_type", "yarn", "'yarn', expected default or longrope"),
        ("attention_factor", -2.0, "'attention_factor' is '-2.0', expected a positive number"),
        ("partial_rotary_factor", 0.01, "rotates 0 of 64"),
        ("partial_rotary_factor", 1e30, "of 64 values per head"),
        ("partial_rotary_factor", 51 / 64, "rotates 51 of 64"),
    ],
)
def test_wrong_longrope(tmp_path: Path, key: str, value: Any, message: str) -> None:
    folder = make_checkpoint(tmp_path / "a", "phi3")
    rope = json.loads((folder / "config.json").read_text())["rope_parameters"] | {key: value}
    with pytest.raises((lowbit.FormatError, lowbit.UnsupportedError), match=message):
        open_checkpoint(edit(folder, rope_parameters=rope))


def test_phi3_needs_its_context_and_plain_heads(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a", "phi3")
    with pytest.raises(lowbit.UnsupportedError, match=r"head_dim is 32, expected .* = 64 in phi3"):
        open_checkpoint(edit(folder, head_dim=32))
    with pytest.raises(lowbit.FormatError, match="no 'original_max_position_embeddings'"):
        open_checkpoint(edit(folder, head_dim=None, original_max_position_embeddings=None))


GEMMA3 = {
    **{key.replace("llama.", "gemma3."): value for key, value in LLAMA.items()},
    "general.architecture": "gemma3",
    "gemma3.block_count": 7,
    "gemma3.attention.sliding_window": 24,
    "gemma3.rope.freq_base": 1e6,
}


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [(None, "wwwww-w"), (2, "w-w-w-w"), (0, "wwwwwww"), (1, "-------"), (np.arange(7) != 1, "w-wwwww")],
)
def test_what_gemma3_files_take_for_granted(pattern: Any, layers: str) -> None:
    """As llama.cpp's loader reads them: every sixth layer sees everything, base 10000 with a window, scale by head."""
    keys = {} if pattern is None else {"gemma3.attention.sliding_window_pattern": pattern}
    found = spec({**GEMMA3, **keys}, {})
    assert found.windows == tuple(24 * (kind == "w") for kind in layers)
    assert [found.ropes[i].frequencies[1] for i in found.layer_ropes] == pytest.approx(
        [(1e4 if kind == "w" else 1e6) ** -0.25 for kind in layers]
    )
    assert found.attention_scale == pytest.approx(8**-0.5)
    assert found.embedding_scale == pytest.approx(32**0.5)
    assert spec({**GEMMA3, "gemma3.block_count": 62, "gemma3.attention.key_length": 16}, {}).attention_scale == 8**-0.5
    assert spec({**GEMMA3, "gemma3.attention.scale": 0.25}, {}).attention_scale == 0.25


@pytest.mark.parametrize("pattern", [-1, "all", np.array([True]), 1.5])
def test_bad_patterns(pattern: Any) -> None:
    with pytest.raises(lowbit.FormatError, match=r"gemma3\.attention\.sliding_window_pattern"):
        spec({**GEMMA3, "gemma3.attention.sliding_window_pattern": pattern}, {})
