"""Folders of onnxruntime-genai's builder become GGUF files."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from subprocess import run
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from tiny_checkpoint import make_checkpoint

import lowbit
from lowbit import gguf
from lowbit.export.from_onnx import convert_onnx
from lowbit.onnx.reading import open_model

pytestmark = pytest.mark.oracle

#: The builder. It does not read the rotary settings of Gemma 3, which transformers 5 has for each kind of layer.
BUILDER = """
import runpy, transformers
read = transformers.AutoConfig.from_pretrained
def with_one_rope(*args, **kwargs):
    config = read(*args, **kwargs)
    ropes = getattr(config, "rope_parameters", None) or {}
    if "full_attention" in ropes:
        config.rope_local_base_freq = ropes["sliding_attention"]["rope_theta"]
        config.rope_parameters = {**ropes, **ropes["full_attention"]}
    return config
transformers.AutoConfig.from_pretrained = with_one_rope
runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__", alter_sys=True)
"""
BARD = Path(lowbit.__file__).parent / "data" / "bard"


def built(source: Path, folder: Path, precision: str, *options: str) -> Path:
    command = [sys.executable, "-c", BUILDER, "-i", source, "-o", folder, "-p", precision]
    run([*command, "-e", "cpu", "-c", folder / "cache", *options], check=True, capture_output=True)
    return folder


def logits(folder: Path, ids: list[int]) -> np.ndarray:
    """Of exact products: accuracy level 4 would round the activations."""
    session: Any = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    feeds = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
    for value in session.get_inputs():
        if value.name.startswith("past"):
            feeds[value.name] = np.zeros((1, 2, 0, 64), np.float32)
    found: np.ndarray = session.run(["logits"], feeds)[0][0]
    return found


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    ("precision", "options", "most"),
    [("fp32", [], 1e-4), ("int4", ["--extra_options", "int4_accuracy_level=1"], 3e-2), ("int8", [], 3e-2)],
)
def test_bard(tmp_path: Path, precision: str, options: list[str], most: float) -> None:
    folder = built(BARD, tmp_path / "onnx", precision, *options)
    report = convert_onnx(folder, tmp_path / "b.gguf")
    model = lowbit.load(tmp_path / "b.gguf")
    ids = model.tokenizer.encode("The ship left the harbour")
    assert ids == lowbit.load_tokenizer(BARD).encode("The ship left the harbour")
    assert error(model.logits(ids), logits(folder, ids)) < most
    if precision == "fp32":
        np.testing.assert_array_equal(model.logits(ids), lowbit.load(BARD).logits(ids))
    with gguf.open(tmp_path / "b.gguf") as file:
        formats = {info.format for name, info in file.infos.items() if len(info.shape) > 1}
        assert file.metadata["general.architecture"] == "qwen3"
    assert formats == {"fp32": {"F32"}, "int4": {"Q4_0"}, "int8": {"Q8_0", "F32"}}[precision]
    assert {fidelity.label for fidelity in report.fidelities.values()} <= {"exact", "bounded"}


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_rows_of_queries_and_keys(tmp_path: Path, arch: str) -> None:
    """The builder's rows have the checkpoint's order; llama's in GGUF have another one."""
    make_checkpoint(
        tmp_path / "model", arch, tokenizer="llama-bpe", dtype="BF16", config={"rope_scaling": None, "rope_theta": 1e4},
        old_config=True,
    )  # fmt: skip
    folder = built(tmp_path / "model", tmp_path / "onnx", "fp32")
    convert_onnx(folder, tmp_path / "b.gguf", exact=True)
    lowbit.convert(tmp_path / "model", tmp_path / "a.gguf", "F32")
    with gguf.open(tmp_path / "a.gguf") as a, gguf.open(tmp_path / "b.gguf") as b:
        assert a.infos.keys() == b.infos.keys()
        for name in a.infos:
            np.testing.assert_array_equal(a.tensors[name], b.tensors[name], name)
    assert open_model(folder / "model.onnx").nodes


SIZES = {"vocab_size": 2048, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
         "bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}  # fmt: skip


def saved(folder: Path, arch: str) -> Path:
    """A checkpoint of random weights, as transformers saves it."""
    torch.manual_seed(0)
    if arch == "gemma3":
        kinds = ["sliding_attention", "full_attention"]
        gemma = transformers.Gemma3TextConfig(**SIZES, head_dim=64, sliding_window=16, layer_types=kinds)
        model = transformers.Gemma3ForCausalLM(gemma)
    else:
        phi = transformers.Phi3Config(**SIZES, original_max_position_embeddings=256, tie_word_embeddings=False)
        model = transformers.Phi3ForCausalLM(phi)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BARD / name, folder)
    return folder


@pytest.mark.parametrize("arch", ["gemma3", "phi3"])
def test_families_with_other_names(tmp_path: Path, arch: str) -> None:
    """Gemma 3 has two tables of cosines, so it needs config.json. Phi 3's gate and up become one matrix again."""
    source = saved(tmp_path / "model", arch)
    lowbit.convert(source, tmp_path / "a.gguf", "F32", verify=False)
    floats = built(source, tmp_path / "fp32", "fp32")
    int4 = built(
        source, tmp_path / "int4", "int4", "--extra_options", "int4_accuracy_level=1", "windowed_kv_cache=false"
    )
    if arch == "gemma3":
        with pytest.raises(lowbit.UnsupportedError, match=r"put the checkpoint's config\.json into the folder"):
            convert_onnx(floats, tmp_path / "b.gguf")
        for folder in (floats, int4):
            shutil.copy(source / "config.json", folder)
    convert_onnx(floats, tmp_path / "b.gguf", exact=True)
    with gguf.open(tmp_path / "a.gguf") as a, gguf.open(tmp_path / "b.gguf") as b:
        assert a.infos.keys() == b.infos.keys()
        for name in a.infos:
            np.testing.assert_array_equal(a.tensors[name], b.tensors[name], name)
    report = convert_onnx(int4, tmp_path / "c.gguf")
    assert {fidelity.label for fidelity in report.fidelities.values()} <= {"exact", "bounded"}
    ids = [5, 900, 17, 4, 1200, 33]
    assert error(lowbit.load(tmp_path / "c.gguf", compute="f32").logits(ids), logits(int4, ids)) < 3e-2
