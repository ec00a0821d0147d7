"""Folders of `lowbit export hf` as transformers and sentencepiece load them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from tiny_checkpoint import make_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations import bitnet

import lowbit
from lowbit.hf.checkpoint import Checkpoint
from lowbit.tensors.source import FileRows, read

pytestmark = pytest.mark.oracle
torch.set_num_threads(1)

TEXTS = [
    "Hello, world!",
    " the  and\n\n\tthing 12345",
    "na\u00efve \u65e5\u672c\u8a9e \U0001f642",
    "<|im_start|>user\nand<|im_end|>",
]
SOURCES = {
    "llama": {"arch": "llama"},
    "llama-old-f16": {"arch": "llama", "old_config": True, "dtype": "F16", "tied": True},
    "llama-spm": {"arch": "llama", "tokenizer": "spm"},
    "qwen3": {"arch": "qwen3"},
    "qwen3-untied-f32": {"arch": "qwen3", "tied": False, "dtype": "F32"},
}


@pytest.mark.parametrize("format", ["float", "Q8_0"])
@pytest.mark.parametrize("name", SOURCES)
def test_transformers_loads_the_folder(tmp_path: Path, name: str, format: str) -> None:
    options = SOURCES[name]
    source = make_checkpoint(tmp_path / "source", **options)
    format = str(options.get("dtype", "BF16")) if format == "float" else format
    lowbit.convert(source, tmp_path / "a.gguf", format, verify=False, provenance=False)
    lowbit.export_hf(tmp_path / "a.gguf", tmp_path / "hf", dtype="F32" if format == "Q8_0" else None)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    ours = lowbit.load_tokenizer(tmp_path / "a.gguf")
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == ours.encode(text), text
        assert tokenizer.decode(ours.encode(text)) == ours.decode(ours.encode(text))
    messages = [{"role": "user", "content": "the thing"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == ours.apply_chat_template(
        messages, add_generation_prompt=False
    )

    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    assert set(ours.eos_ids) == set(np.atleast_1d(model.generation_config.eos_token_id))
    ids = np.random.RandomState(0).randint(0, 270, 100)
    with torch.no_grad():
        expected = model.eval()(torch.tensor(ids[None])).logits[0].numpy()
    found = lowbit.load(tmp_path / "a.gguf", compute="f32", threads=1).logits(ids)
    assert np.abs(found - expected).max() < 1e-4 * np.ptp(expected)


def test_sentencepiece_reads_tokenizer_model(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", "llama", tokenizer="spm")
    lowbit.convert(source, tmp_path / "a.gguf", "BF16", verify=False, provenance=False)
    lowbit.export_hf(tmp_path / "a.gguf", tmp_path / "hf")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "hf" / "tokenizer.model"))
    ours = lowbit.load_tokenizer(tmp_path / "a.gguf")
    assert processor.vocab_size() == ours.vocab_size
    for text in TEXTS:
        assert processor.encode(text) == ours.encode(text, add_special_tokens=False, parse_special=False), text


def test_transformers_unpacks_the_same_ternary_weights(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", "bitnet-bf16")
    lowbit.convert(source, tmp_path / "a.gguf", "TQ2_0", verify=False, provenance=False)
    lowbit.export_hf(tmp_path / "a.gguf", tmp_path / "hf")
    tensors = Checkpoint(tmp_path / "hf").tensors
    unpack = bitnet.unpack_weights.__wrapped__  # not compiled
    names = {"attn_q": "self_attn.q_proj", "attn_output": "self_attn.o_proj", "ffn_down": "mlp.down_proj"}
    with lowbit.gguf.open(tmp_path / "a.gguf") as file:
        for ours, theirs in names.items():
            stored = tensors[f"model.layers.1.{theirs}.weight"]
            packed = read(FileRows(stored.name, stored.shape, np.dtype(np.uint8), stored.file, stored.offset))
            weights = file.tensors[f"blk.1.{ours}.weight"].dequantize()
            assert np.array_equal(unpack(torch.from_numpy(packed), torch.float32).numpy(), weights)
            scale = read(tensors[f"model.layers.1.{theirs}.weight_scale"])
            assert np.array_equal(scale, file.tensors[f"blk.1.{ours}.scale"])
