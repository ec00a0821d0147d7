"""Checkpoints in other forms against what transformers and peft make of them: 8-bit floats, LoRA adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from input_cases import SOURCE_CASES, make_float8, make_sources
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from tiny_checkpoint import make_checkpoint, write_safetensors
from transformers import AutoModelForCausalLM, FineGrainedFP8Config

import lowbit
from lowbit.hf import lora
from lowbit.hf.checkpoint import Checkpoint, read_safetensors
from lowbit.hf.imports.fp8 import dequantize
from lowbit.tensors.source import read

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("name", ["blocks", "blocks-bf16-scales"])
def test_8_bit_floats_in_blocks(tmp_path: Path, name: str) -> None:
    folder, weights = make_float8(tmp_path / "a", name)
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    config = FineGrainedFP8Config(weight_block_size=settings["weight_block_size"], dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=config)
    state = model.state_dict()
    checkpoint = Checkpoint(folder)
    dequantize(checkpoint, ())
    for key in weights:
        np.testing.assert_array_equal(read(checkpoint.tensors[key]), state[key].numpy())


@pytest.mark.parametrize("case", SOURCE_CASES)
def test_weights_are_those_that_transformers_takes(tmp_path: Path, case: str) -> None:
    folder, _, _ = make_sources(tmp_path / "a", case)
    state = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    for name, tensor in Checkpoint(folder).tensors.items():
        np.testing.assert_array_equal(read(tensor), state[name].numpy())


def trained(folder: Path, base: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """A peft model whose adapter is random, saved in `folder`."""
    torch.manual_seed(1)
    saving = {key: settings.pop(key) for key in ("save_embedding_layers",) if key in settings}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), LoraConfig(**settings))
    for name, weights in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            weights.data += 0.05 * torch.rand_like(weights)
    model.save_pretrained(folder, **saving)
    return model


LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": LINEAR},
    "rslora": {"r": 5, "lora_alpha": 7, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": LINEAR,
        "rank_pattern": {"q_proj": 2, r"^model.layers.1.mlp.up_proj": 3},
        "alpha_pattern": {"k_proj": 5, r"layers\.0\..*_proj": 3},  # the first counts, and peft saves them sorted
    },
    "embeddings": {"r": 4, "lora_alpha": 3, "target_modules": ["embed_tokens", "lm_head", "k_proj"]},
    "saved": {"r": 4, "lora_alpha": 3, "target_modules": ["v_proj"], "modules_to_save": ["lm_head", "norm"]},
    "biases": {"r": 4, "lora_alpha": 3, "target_modules": ["q_proj"], "bias": "all"},
    "dora": {"r": 4, "lora_alpha": 8, "target_modules": LINEAR, "use_dora": True},
}


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_in_float32(tmp_path: Path, name: str) -> None:
    """A sum of r products differs by its order: at most r units in the last place of the largest, and DoRA's norm."""
    base = make_checkpoint(tmp_path / "base", "llama", dtype="F32", layers=2, hidden=64, ffn=96, head_dim=16)
    model = trained(tmp_path / "adapter", base, **ADAPTERS[name])
    expected = model.merge_and_unload().state_dict()
    checkpoint = Checkpoint(base)
    assert lora.merge(checkpoint, tmp_path / "adapter", 1.0).notes == []
    changed = 0
    for key, stored in checkpoint.tensors.items():
        np.testing.assert_allclose(read(stored), expected[key].numpy(), rtol=2e-6, atol=2e-7, err_msg=key)
        changed += type(stored).__name__ == "MergedTensor"
    assert changed == sum(".lora_A" in key or ".lora_embedding_A" in key for key in read_names(tmp_path / "adapter"))


def read_names(folder: Path) -> list[str]:
    return list(read_safetensors(folder / "adapter_model.safetensors"))


TARGETS = ["q_proj"]
ENSURED: dict[str, Any] = {"ensure_weight_tying": True, "target_modules": TARGETS}
TIED: dict[str, dict[str, Any]] = {
    "none": {"target_modules": TARGETS},
    "embeddings": {"target_modules": TARGETS, "modules_to_save": ["embed_tokens"]},
    "output": {"target_modules": TARGETS, "modules_to_save": ["lm_head"]},
    "both": {"target_modules": TARGETS, "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    "embeddings ensured": {**ENSURED, "modules_to_save": ["embed_tokens"]},
    "output ensured": {**ENSURED, "modules_to_save": ["lm_head"]},
    "both ensured": {**ENSURED, "modules_to_save": ["embed_tokens", "lm_head"]},
    "low rank": {"target_modules": ["q_proj", "embed_tokens"]},
    "low rank, output": {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]},
    "low rank of the output, embeddings": {
        "target_modules": ["q_proj", "lm_head"],
        "modules_to_save": ["embed_tokens"],
    },
}
PLAIN = {f"base_model.model.{name}.weight" for name in ("model.embed_tokens", "lm_head")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "arch", "saving"),
    [(name, "qwen3", {}) for name in TIED]
    + [(name, "qwen3", {"save_embedding_layers": True}) for name in ("none", "embeddings", "both")]
    + [("output", "gemma3", {})],
)
def test_adapters_on_tied_embeddings(tmp_path: Path, name: str, arch: str, saving: dict[str, Any]) -> None:
    """The tensors are those of a file made of PEFT's merged model, and the logits are that model's."""
    base = make_checkpoint(tmp_path / "base", arch, dtype="F32", layers=1, hidden=64, ffn=96, head_dim=16)
    trained(tmp_path / "adapter", base, **saving, r=4, lora_alpha=3, **TIED[name])
    same_as_merged(tmp_path, base)


@pytest.mark.parametrize("names", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_whole_embeddings_that_are_no_saved_modules_stay_tied(tmp_path: Path, names: list[str]) -> None:
    base = make_checkpoint(tmp_path / "base", "qwen3", dtype="F32", layers=1, hidden=64, ffn=96, head_dim=16)
    trained(tmp_path / "adapter", base, target_modules=TARGETS)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = {key: read(tensor) for key, tensor in read_safetensors(path).items()}
    new = {key: np.random.RandomState(i).standard_normal((288, 64)) for i, key in enumerate(sorted(PLAIN))}
    tensors |= {key: value.astype(np.float32) for key, value in new.items() if key.split(".")[-2] in names}
    write_safetensors(path, tensors)
    same_as_merged(tmp_path, base)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_equal", [True, False])
def test_adapters_on_a_tied_checkpoint_with_both_matrices(tmp_path: Path, is_equal: bool) -> None:
    """transformers ties them if they are equal."""
    base = make_checkpoint(tmp_path / "base", "qwen3", dtype="F32", layers=1, hidden=64, ffn=96, head_dim=16)
    path = base / "model.safetensors"
    tensors = {key: read(tensor) for key, tensor in read_safetensors(path).items()}
    output = tensors["model.embed_tokens.weight"] * np.float32(1 if is_equal else 2)
    write_safetensors(path, {**tensors, "lm_head.weight": output})
    trained(tmp_path / "adapter", base, r=4, target_modules=["embed_tokens"])
    same_as_merged(tmp_path, base)


def same_as_merged(folder: Path, base: Path) -> None:
    """Compares what lowbit makes of the adapter in `folder` with what it makes of PEFT's merged model, and logits."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, folder / "adapter").merge_and_unload()
    merged.save_pretrained(folder / "merged")
    for path in base.glob("token*"):
        (folder / "merged" / path.name).write_bytes(path.read_bytes())
    lowbit.convert(folder / "merged", folder / "expected.gguf", "F32", verify=False, provenance=False)
    lowbit.convert(base, folder / "out.gguf", "F32", verify=False, provenance=False, lora=folder / "adapter")
    with lowbit.gguf.open(folder / "expected.gguf") as expected, lowbit.gguf.open(folder / "out.gguf") as file:
        assert list(file.infos.values()) == list(expected.infos.values())
        for key, tensor in file.tensors.items():
            np.testing.assert_allclose(tensor, np.asarray(expected.tensors[key]), rtol=2e-6, atol=2e-7, err_msg=key)
    ids = list(range(5, 25))
    with torch.no_grad():
        wanted = merged(torch.tensor([ids])).logits[0].numpy()
    found = lowbit.load(base, lora=folder / "adapter", compute="f32").logits(ids)
    assert np.abs(found - wanted).max() <= 1e-6 * np.ptp(wanted)


def test_adapters_in_bfloat16_give_the_file_of_the_merged_checkpoint(tmp_path: Path) -> None:
    """peft rounds W + B A to the checkpoint's type; here the file's format does."""
    base = make_checkpoint(tmp_path / "base", layers=2)
    model = trained(tmp_path / "adapter", base, torch.bfloat16, **ADAPTERS["plain"])
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    for path in base.glob("token*"):
        (tmp_path / "merged" / path.name).write_bytes(path.read_bytes())
    lowbit.convert(tmp_path / "merged", tmp_path / "expected.gguf", "BF16", verify=False, provenance=False)
    lowbit.convert(base, tmp_path / "out.gguf", "BF16", verify=False, provenance=False, lora=tmp_path / "adapter")
    with lowbit.gguf.open(tmp_path / "expected.gguf") as expected, lowbit.gguf.open(tmp_path / "out.gguf") as file:
        assert expected.tensors.keys() == file.tensors.keys()
        for name, tensor in file.tensors.items():
            same = np.asarray(tensor) == np.asarray(expected.tensors[name])
            assert np.mean(same) > 0.9999, name  # where two orders of a sum fall to both sides of a rounding


def test_two_adapters_one_at_half(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", "llama", dtype="F32", layers=1, hidden=64, ffn=96, head_dim=16)
    for name in ("plain", "dora"):
        trained(tmp_path / name, base, **ADAPTERS[name])
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "plain"
    )
    model.load_adapter(tmp_path / "dora", "dora")
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.set_scale("default", 0.5)
    expected = model.merge_and_unload(adapter_names=["default", "dora"]).state_dict()
    checkpoint = Checkpoint(base)
    lora.merge(checkpoint, [tmp_path / "plain", tmp_path / "dora"], [0.5, 1.0])
    for key, stored in checkpoint.tensors.items():
        np.testing.assert_allclose(read(stored), expected[key].numpy(), rtol=2e-6, atol=2e-7, err_msg=key)
