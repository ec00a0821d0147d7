"""Checkpoints as transformers, torch and sentencepiece see them, against what ends up in a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentencepiece import SentencePieceProcessor
from tiny_checkpoint import LLAMA3_ROPE, make_checkpoint, write_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import lowbit
from lowbit.arch.rope_keys import llama3_factors
from lowbit.conversion.open import open_checkpoint
from lowbit.hf.config import Config
from lowbit.tensors.source import read
from lowbit.tokenizer.sentencepiece import read_model

pytestmark = pytest.mark.oracle

ARCHS = ["llama", "qwen3"]


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def split_halves(weights: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of what GGUF llama does to query and key rows."""
    rows, columns = weights.shape
    return weights.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_weights_are_those_of_the_model(tmp_path: Path, arch: str, dtype: str) -> None:
    folder = make_checkpoint(tmp_path / "a", arch, dtype=dtype, layers=1)
    lowbit.convert(folder, tmp_path / "out.gguf", "F32", verify=False, provenance=False)
    state = {name: weights.numpy() for name, weights in load(folder).state_dict().items()}
    with lowbit.gguf.open(tmp_path / "out.gguf") as file:
        found = {name: np.asarray(tensor) for name, tensor in file.tensors.items()}
    if arch == "llama":
        found["blk.0.attn_q.weight"] = split_halves(found["blk.0.attn_q.weight"], 4)
        found["blk.0.attn_k.weight"] = split_halves(found["blk.0.attn_k.weight"], 2)
    prefix = "model.layers.0."
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "blk.0.attn_norm.weight": prefix + "input_layernorm.weight",
        "blk.0.ffn_norm.weight": prefix + "post_attention_layernorm.weight",
        "blk.0.attn_q.weight": prefix + "self_attn.q_proj.weight",
        "blk.0.attn_k.weight": prefix + "self_attn.k_proj.weight",
        "blk.0.attn_v.weight": prefix + "self_attn.v_proj.weight",
        "blk.0.attn_output.weight": prefix + "self_attn.o_proj.weight",
        "blk.0.ffn_gate.weight": prefix + "mlp.gate_proj.weight",
        "blk.0.ffn_up.weight": prefix + "mlp.up_proj.weight",
        "blk.0.ffn_down.weight": prefix + "mlp.down_proj.weight",
    }
    if arch == "qwen3":
        names |= {f"blk.0.attn_{x}_norm.weight": f"{prefix}self_attn.{x}_norm.weight" for x in "qk"}
    else:
        names["output.weight"] = "lm_head.weight"
    assert found.keys() - {"rope_freqs.weight"} == names.keys()
    for name, hf_name in names.items():
        np.testing.assert_array_equal(found[name], state[hf_name], err_msg=name)


@pytest.mark.parametrize("arch", ARCHS)
def test_checkpoints_that_transformers_saves(tmp_path: Path, arch: str) -> None:
    """Sharded, with the configuration as the installed version writes it."""
    folder = make_checkpoint(tmp_path / "a", arch, dtype="BF16")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "b" / "a", max_shard_size="500KB")
    write_tokenizer(tmp_path / "b" / "a", "qwen2" if arch == "qwen3" else "llama-bpe")
    assert len(list((tmp_path / "b" / "a").glob("model-*.safetensors"))) > 1
    before, after = open_checkpoint(folder), open_checkpoint(tmp_path / "b" / "a")
    assert {k: v for k, v in before.metadata.items() if k.startswith(arch)} == {
        k: v for k, v in after.metadata.items() if k.startswith(arch)
    }
    tensors = {tensor.name: read(tensor) for tensor in after.tensors}
    assert tensors.keys() == {tensor.name for tensor in before.tensors}
    for tensor in before.tensors:
        np.testing.assert_array_equal(tensors[tensor.name], read(tensor))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("arch", ARCHS)
def test_metadata_is_the_configuration(tmp_path: Path, arch: str, old: bool) -> None:
    folder = make_checkpoint(tmp_path / "a", arch, old_config=old)
    config = AutoConfig.from_pretrained(folder)
    opened = open_checkpoint(folder)
    spec = opened.spec
    assert spec.num_layers == config.num_hidden_layers
    assert spec.hidden_size == config.hidden_size
    assert spec.intermediate_size == config.intermediate_size
    assert (spec.num_heads, spec.num_kv_heads) == (config.num_attention_heads, config.num_key_value_heads)
    assert spec.head_dim == config.head_dim
    assert spec.context_length == config.max_position_embeddings
    assert spec.norm_eps == config.rms_norm_eps
    assert opened.metadata[f"{spec.architecture}.rope.freq_base"] == config.rope_parameters["rope_theta"]


@pytest.mark.parametrize("kind", [transformers.LlamaConfig, transformers.MistralConfig, transformers.Qwen3Config])
def test_defaults_are_those_of_transformers(kind: type[Any]) -> None:
    """What may be missing in config.json means what the class means by it."""
    full = kind(num_attention_heads=32, hidden_size=4096).to_dict()
    needed = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size",
              "max_position_embeddings", "rms_norm_eps")  # fmt: skip
    config = Config({key: full[key] for key in needed}, "config.json")
    arch = lowbit.arch.architectures()["qwen3" if kind is transformers.Qwen3Config else "llama"]
    assert arch.sizes(config).head_dim == full["head_dim"]
    assert config.rope().values["rope_theta"] == full["rope_parameters"]["rope_theta"]
    assert config.rope().values["rope_type"] == full["rope_parameters"]["rope_type"]
    assert config.boolean("tie_word_embeddings", False) == full["tie_word_embeddings"]
    if kind is transformers.LlamaConfig:
        assert arch.sizes(config).num_kv_heads == full["num_key_value_heads"]


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_scaled_frequencies_are_those_of_transformers(dim: int, theta: float) -> None:
    rope = {**LLAMA3_ROPE, "rope_theta": theta, "factor": 32.0, "original_max_position_embeddings": 8192}
    config = transformers.LlamaConfig(head_dim=dim, hidden_size=4 * dim, num_attention_heads=4, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1.0 / theta ** (np.arange(0, dim, 2) / dim)
    factors = llama3_factors(dim, theta, 32.0, 1.0, 4.0, 8192.0)
    np.testing.assert_allclose(plain / factors, scaled.numpy(), rtol=1e-6)


@pytest.mark.parametrize("kind", ["qwen2", "llama-bpe", "smaug-bpe"])
def test_tokens_are_those_of_the_tokenizer(tmp_path: Path, kind: str) -> None:
    arch = "qwen3" if kind == "qwen2" else "llama"
    folder = make_checkpoint(tmp_path / "a", arch, tokenizer=kind, layers=1)
    keys = open_checkpoint(folder).metadata
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    ids = tokenizer.get_vocab()
    for text, token_id in ids.items():
        assert tokens[token_id] == text
        added = tokenizer.added_tokens_decoder.get(token_id)
        assert types[token_id] == (1 if added is None else 3 if added.special else 4)
    unused = set(range(len(tokens))) - set(ids.values())
    assert {types[i] for i in unused} == {5}
    assert keys["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    starts = tokenizer("x").input_ids[0] == keys.get("tokenizer.ggml.bos_token_id")
    assert keys["tokenizer.ggml.add_bos_token"] == starts


def test_pieces_are_those_of_sentencepiece(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "spm")
    model = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    pieces = read_model(tmp_path / "tokenizer.model").pieces
    assert len(pieces) == model.vocab_size()
    for i, piece in enumerate(pieces):
        assert piece.text == model.IdToPiece(i)
        assert piece.score == model.GetScore(i)
        flags = (model.IsUnknown(i), model.IsControl(i), model.IsUnused(i), model.IsByte(i))
        assert flags == (piece.type == 2, piece.type == 3, piece.type == 5, piece.type == 6)
