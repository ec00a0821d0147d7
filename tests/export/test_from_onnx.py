"""Folders with an ONNX model become GGUF files again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import edit_json, make_checkpoint, write_json

import lowbit
from lowbit import gguf
from lowbit.export.exporting import export_onnx
from lowbit.export.from_onnx import convert_onnx


def folder_of(source: Path, folder: Path, **options: Any) -> Path:
    export_onnx(source, folder, **options)
    return folder


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    """Format and bytes of each tensor."""
    with gguf.open(path) as file:
        found = {name: file.tensors[name] for name in file.infos}
        return {
            name: (file.infos[name].format, getattr(tensor, "data", tensor).tobytes()) for name, tensor in found.items()
        }


@pytest.mark.parametrize("layout", ["genai", "standard"])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "gemma3", "phi3"])
def test_floats_there_and_back(tmp_path: Path, arch: str, layout: str) -> None:
    make_checkpoint(tmp_path / "model", arch, tokenizer="llama-bpe", dtype="F32")
    lowbit.convert(tmp_path / "model", tmp_path / "a.gguf", "F32")
    folder = folder_of(tmp_path / "model", tmp_path / "onnx", format="f32", layout=layout)
    report = convert_onnx(folder, tmp_path / "b.gguf", exact=True)
    assert set(report.fidelities.values()) == {"exact"}
    assert tensors(tmp_path / "a.gguf") == tensors(tmp_path / "b.gguf")
    with gguf.open(tmp_path / "a.gguf") as first, gguf.open(tmp_path / "b.gguf") as second:
        different = {key for key in first.metadata.keys() | second.metadata.keys() if not_equal(first, second, key)}
    assert {key for key in different if not key.startswith(("general.", "lowbit."))} == set()


def not_equal(first: Any, second: Any, key: str) -> bool:
    return not np.array_equal(first.metadata.get(key), second.metadata.get(key))


@pytest.mark.parametrize("tied", [True, False])
def test_q4_0_there_and_back(tmp_path: Path, tied: bool) -> None:
    make_checkpoint(tmp_path / "model", "qwen3", tied=tied)
    lowbit.convert(tmp_path / "model", tmp_path / "a.gguf", "Q4_0", pure=True)
    folder = folder_of(tmp_path / "a.gguf", tmp_path / "onnx")
    report = convert_onnx(folder, tmp_path / "b.gguf", exact=True)
    assert set(report.fidelities.values()) == {"exact"}
    assert tensors(tmp_path / "a.gguf") == tensors(tmp_path / "b.gguf")


def test_text_of_the_result(tmp_path: Path) -> None:
    bard = Path(lowbit.__file__).parent / "data" / "bard"
    folder = folder_of(bard, tmp_path / "onnx", format="f32")
    convert_onnx(folder, tmp_path / "b.gguf")
    prompt = "The ship left the harbour"
    expected = lowbit.load(bard).generate(prompt, max_tokens=16)
    assert lowbit.load(tmp_path / "b.gguf").generate(prompt, max_tokens=16) == expected


KEYS = ("model.type", "model.context_length", "model.vocab_size", "model.decoder.filename", "model.decoder.head_size")


@pytest.mark.parametrize("key", KEYS)
def test_a_folder_without_a_key(tmp_path: Path, key: str) -> None:
    make_checkpoint(tmp_path / "model", "qwen3")
    folder = folder_of(tmp_path / "model", tmp_path / "onnx", format="f32")
    values = json.loads((folder / "genai_config.json").read_text())
    *parts, last = key.split(".")
    part = values
    for name in parts:
        part = part[name]
    del part[last]
    write_json(folder / "genai_config.json", values)
    with pytest.raises(lowbit.FormatError, match=f"no '{key}'.*expected.*add the key") as caught:
        convert_onnx(folder, tmp_path / "b.gguf")
    assert caught.value.key == key
    assert not (tmp_path / "b.gguf").exists()


def test_folders_that_are_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", "qwen3")
    folder = folder_of(tmp_path / "model", tmp_path / "onnx", format="f32")
    target = tmp_path / "b.gguf"
    values = json.loads((folder / "genai_config.json").read_text())
    edit_json(folder / "genai_config.json", {"model": {**values["model"], "decoder": {
        **values["model"]["decoder"], "filename": "../model.onnx"}}})  # fmt: skip
    with pytest.raises(lowbit.FormatError, match="plain name"):
        convert_onnx(folder, target)
    write_json(folder / "genai_config.json", values)
    config = json.loads((folder / "config.json").read_text())
    edit_json(folder / "config.json", {"intermediate_size": 300})
    with pytest.raises(lowbit.FormatError, match="ffn"):
        convert_onnx(folder, target)
    write_json(folder / "config.json", {**config, "num_hidden_layers": 5})
    with pytest.raises(lowbit.UnsupportedError, match=r"no weight for 'blk\.2"):
        convert_onnx(folder, target)
    (folder / "config.json").unlink()
    (folder / "genai_config.json").unlink()
    with pytest.raises(lowbit.FormatError, match=r"config\.json"):
        convert_onnx(folder, target)
    assert not target.exists()


def test_without_config_json(tmp_path: Path) -> None:
    """Sizes are those of genai_config.json, the rotary base that of the tables."""
    make_checkpoint(tmp_path / "model", "qwen3", config={"rope_theta": 500000.0}, old_config=True)
    folder = folder_of(tmp_path / "model", tmp_path / "onnx", format="int4")
    (folder / "config.json").unlink()
    convert_onnx(folder, tmp_path / "b.gguf")
    with gguf.open(tmp_path / "b.gguf") as file:
        assert file.metadata["qwen3.rope.freq_base"] == pytest.approx(500000.0, rel=1e-3)
        assert file.metadata["qwen3.feed_forward_length"] == 512
        assert file.metadata["qwen3.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
