"""One target for each reader of files: bytes take the place of one file in a folder that is otherwise right.

Whatever the bytes are, only a lowbit.Error may come out, in bounded time and memory.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

import lowbit
import lowbit.onnx
from lowbit import gguf, imatrix
from lowbit.base.files import read_text
from lowbit.conversion.open import open_checkpoint
from lowbit.evaluate.inspect import inspect
from lowbit.export.genai_differences import template_differences
from lowbit.export.genai_syntax import GenaiRefusalError
from lowbit.export.genai_template import genai_text
from lowbit.gguf import rewriting
from lowbit.hf.checkpoint import read_safetensors
from lowbit.hf.model_card import general_metadata
from lowbit.quantization import options
from lowbit.tensors import npz
from lowbit.tensors.source import read

sys.path.insert(0, str(Path(__file__).parent.parent))
from tiny_checkpoint import make_checkpoint, write_json, write_safetensors

CORPUS = Path(__file__).parent / "corpus"
SIZES = {"layers": 1, "hidden": 64, "ffn": 64, "head_dim": 16}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
]


class Target(NamedTuple):
    """`file`: the place of the bytes in the folder. `read`: reads it, given the folder."""

    file: str
    read: Callable[[Path], object]
    family: str = "qwen3"  #: of the folder's checkpoint
    shards: int = 1


def _weights(folder: Path) -> None:
    for tensor in read_safetensors(folder / "model.safetensors").values():
        read(tensor)


def _checkpoint(folder: Path, adapters: tuple[Path, ...] = ()) -> None:
    opened = open_checkpoint(folder, lora=adapters)
    assert opened.spec
    for tensor in opened.tensors:
        read(tensor)


def _tokenizer(folder: Path) -> None:
    tokenizer = lowbit.load_tokenizer(folder)
    ids = tokenizer.encode("the and <|im_end|>\n the 12 \u00e9\u4f60")
    tokenizer.decode(ids)
    stream = tokenizer.stream()
    for token_id in ids:
        stream.push(token_id)
    stream.flush()
    assert open_checkpoint(folder).metadata


def _chat(folder: Path) -> None:
    lowbit.load_tokenizer(folder).apply_chat_template(MESSAGES)


def _gguf(folder: Path) -> None:
    path = folder / "model.gguf"
    with gguf.open(path) as file:
        for key in file.metadata:
            assert file.metadata[key] is not None
        for name in file.tensors:
            assert file.place(name).num_bytes >= 0
    inspect(path)
    model = lowbit.load(path)
    assert model.logits([0]).shape[0] == 1


def _onnx(folder: Path) -> None:
    path = folder / "model.onnx"
    model = lowbit.onnx.open(path)
    for graph in model.graph.graphs():
        for tensor in graph.tensors.values():
            assert tensor.array.shape == tensor.shape
    lowbit.onnx.write(folder / "copy.onnx", dataclasses.replace(model, producer="another"), external_data=True)
    inspect(path)


def _onnx_language_model(folder: Path) -> None:
    model = lowbit.onnx.open(folder / "onnx" / "model.onnx")
    for node in model.nodes:
        with suppress(lowbit.Error):
            lowbit.onnx.block_matrix(node, model.graph.tensors)
    lowbit.convert_onnx(folder / "onnx", folder / "out.gguf", threads=1)


def _genai_template(folder: Path) -> None:
    template = read_text(folder / "chat_template.jinja")
    template_differences({"default": template}, {"bos_token": "<s>", "eos_token": "</s>"})
    with suppress(GenaiRefusalError):
        genai_text(template, {"messages": MESSAGES, "add_generation_prompt": True})


def _edit(folder: Path) -> None:
    gguf.edit(folder / "model.gguf", {"general.name": "another", "general.new": np.arange(3)}, ["general.type"])
    gguf.edit(folder / "model.gguf", {"tokenizer.ggml.eos_token_id": 1})


def _undo(folder: Path) -> None:
    path = folder / "model.gguf"
    path.write_bytes(b"EDIT" + bytes(60))
    with rewriting.locked(str(path)) as file:
        rewriting.recover(file, str(path))
    assert path.stat().st_size == 64


def _card(folder: Path) -> None:
    general_metadata(folder, {}, 7_000_000_000, None, [])


TARGETS = {
    "safetensors": Target("model.safetensors", _weights),
    "index": Target("model.safetensors.index.json", _checkpoint, shards=2),
    **{
        f"config_{family}": Target("config.json", _checkpoint, family)
        for family in ("llama", "qwen2", "qwen3", "gemma3", "phi3", "bitnet")
    },
    "tokenizer_json": Target("tokenizer.json", _tokenizer),
    "tokenizer_config": Target("tokenizer_config.json", _tokenizer),
    "tokenizer_model": Target("tokenizer.model", _tokenizer, "gemma3"),
    "chat_template": Target("chat_template.jinja", _chat),
    "generation_config": Target("generation_config.json", _checkpoint),
    "modules": Target("modules.json", _checkpoint),
    "pooling": Target("1_Pooling/config.json", _checkpoint),
    "adapter_config": Target("adapter_config.json", lambda folder: _checkpoint(folder, (folder,))),
    "adapter": Target("adapter_model.safetensors", lambda folder: _checkpoint(folder, (folder,))),
    "model_card": Target("README.md", _card),
    "gguf": Target("model.gguf", _gguf),
    "onnx": Target("model.onnx", _onnx),
    "onnx_language_model": Target("onnx/model.onnx", _onnx_language_model),
    "genai_config": Target("onnx/genai_config.json", _onnx_language_model),
    "genai_template": Target("chat_template.jinja", _genai_template),
    "gguf_edit": Target("model.gguf", _edit),
    "undo": Target("model.gguf.lowbit-undo", _undo),
    "imatrix": Target("imatrix.gguf", lambda folder: imatrix.read(folder / "imatrix.gguf")),
    "imatrix_legacy": Target("imatrix.dat", lambda folder: imatrix.read(folder / "imatrix.dat")),
    "npz": Target("tensors.npz", lambda folder: npz.load_npz(folder / "tensors.npz")),
    "tensor_types": Target(
        "types.txt", lambda folder: options.ConvertOptions(tensor_type_file=folder / "types.txt").patterns()
    ),
}


def make_folder(folder: Path, target: Target) -> Path:
    """A folder in which every file but the target's is right."""
    make_checkpoint(folder, target.family, shards=target.shards, **SIZES)
    if target.read is _onnx_language_model:
        lowbit.export_onnx(folder, folder / "onnx")
        if target.file.endswith(".json"):  # else sizes are those of this file
            (folder / "onnx" / "config.json").unlink()
    if target.file.startswith("adapter"):
        module = "base_model.model.model.layers.0.mlp.up_proj.lora"
        factors = {f"{module}_{letter}.weight": np.ones(shape, np.float32) for letter, shape in _FACTORS.items()}
        write_json(folder / "adapter_config.json", {"peft_type": "LORA", "r": 2, "lora_alpha": 4})
        write_safetensors(folder / "adapter_model.safetensors", factors)
    if target.file in ("modules.json", "1_Pooling/config.json"):
        (folder / "1_Pooling").mkdir()
        write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
        write_json(folder / "modules.json", _MODULES)
    return folder


def accepts(target: Target, folder: Path, data: bytes) -> bool:
    """Whether the target reads the bytes. Raises what is no lowbit.Error."""
    (folder / target.file).write_bytes(data)
    try:
        target.read(folder)
    except lowbit.Error:
        return False
    return True


_FACTORS = {"A": (2, 64), "B": (64, 2)}
_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
