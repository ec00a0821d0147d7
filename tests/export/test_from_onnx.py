"""Folders with an ONNX model become GGUF files again."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import edit_json, make_checkpoint, write_json

import lowbit
from lowbit import gguf
from lowbit.export.exporting import export_onnx
from lowbit.export.from_onnx import convert_onnx
from lowbit.tensors.qtensor import bytes_of


def folder_of(source: Path, folder: Path, **options: Any) -> Path:
    export_onnx(source, folder, **options)
    return folder


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    """Format and bytes of each tensor."""
    with gguf.open(path) as file:
        found = {name: file.tensors[name] for name in file.infos}
        return {name: (file.infos[name].format, bytes_of(tensor).tobytes()) for name, tensor in found.items()}


@pytest.mark.parametrize("layout", ["genai", "standard"])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "gemma3", "phi3"])
def test_floats_there_and_back(tmp_path: Path, arch: str, layout: str) -> None:
    make_checkpoint(tmp_path / "model", arch, tokenizer="llama-bpe", dtype="F32")
    lowbit.convert(tmp_path / "model", tmp_path / "a.gguf", "F32")
    folder = folder_of(tmp_path / "model", tmp_path / "onnx", format="f32", layout=layout)
    report = convert_onnx(folder, tmp_path / "b.gguf", exact=True)
    assert {fidelity.label for fidelity in report.fidelities.values()} == {"exact"}
    assert tensors(tmp_path / "a.gguf") == tensors(tmp_path / "b.gguf")
    with gguf.open(tmp_path / "a.gguf") as first, gguf.open(tmp_path / "b.gguf") as second:
        different = {key for key in first.metadata.keys() | second.metadata.keys() if not_equal(first, second, key)}
    assert {key for key in different if not key.startswith(("general.", "lowbit."))} == set()


def not_equal(first: Any, second: Any, key: str) -> bool:
    return not np.array_equal(first.metadata.get(key), second.metadata.get(key))


@pytest.mark.parametrize("layout", ["genai", "standard"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("format", ["Q4_0", "Q4_1", "Q2_K", "Q4_K", "Q6_K", "F16", "BF16"])
def test_formats_there_and_back(tmp_path: Path, format: str, tied: bool, layout: str) -> None:
    make_checkpoint(tmp_path / "model", "qwen3", tied=tied, layers=1)
    lowbit.convert(tmp_path / "model", tmp_path / "a.gguf", format, pure=format[-2:] not in ("16", "32"), verify=False)
    folder = folder_of(tmp_path / "a.gguf", tmp_path / "onnx", layout=layout)
    report = convert_onnx(folder, tmp_path / "b.gguf", exact=True)
    assert {fidelity.label for fidelity in report.fidelities.values()} == {"exact"}
    assert tensors(tmp_path / "a.gguf") == tensors(tmp_path / "b.gguf")
    assert report.num_bytes == (tmp_path / "b.gguf").stat().st_size


@pytest.mark.parametrize("layout", ["genai", "standard"])
@pytest.mark.parametrize("options", [{}, {"symmetric": False}, {"format": "int8"}], ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_int4_and_int8(tmp_path: Path, tied: bool, options: dict[str, Any], layout: str) -> None:
    """float32 scales become float16: the weights differ by that, and not more."""
    make_checkpoint(tmp_path / "model", "qwen3", tied=tied, layers=1)
    folder = folder_of(tmp_path / "model", tmp_path / "onnx", layout=layout, **options)
    report = convert_onnx(folder, tmp_path / "b.gguf")
    assert {fidelity.label for fidelity in report.fidelities.values()} == {"bounded"}
    export = {each.name: each for each in export_onnx(tmp_path / "model", tmp_path / "again", **options).matrices}
    with gguf.open(tmp_path / "b.gguf") as file:
        for name, tensor in lowbit.load(tmp_path / "model").weights.items():
            if name in export:
                assert lowbit.compare(np.asarray(tensor, np.float32), file.tensors[name]).relative == pytest.approx(
                    export[name].error, rel=0.02
                )


def test_offsets_that_do_not_fit(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", "qwen3", layers=1)
    lowbit.convert(tmp_path / "model", tmp_path / "a.gguf", "Q4_K", pure=True)
    folder = folder_of(tmp_path / "a.gguf", tmp_path / "onnx")
    model = lowbit.onnx.open(folder / "model.onnx")
    name = "blk.0.ffn_up.weight_offsets"
    wrong = lowbit.onnx.Tensor.of(name, np.zeros((8, 512), np.float32))
    graph = dataclasses.replace(model.graph, tensors={**model.graph.tensors, name: wrong})
    lowbit.onnx.write(tmp_path / "other.onnx", model.with_graph(graph), external_data=True)
    for end in ("", ".data"):
        (tmp_path / f"other.onnx{end}").rename(folder / f"other.onnx{end}")
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["filename"] = "other.onnx"
    write_json(folder / "genai_config.json", config)
    with pytest.raises(lowbit.FormatError, match=rf"'{name}': expected float32 of shape \[512, 8\]"):
        convert_onnx(folder, tmp_path / "b.gguf")


PEAK = """
import sys, lowbit
def peak():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
import lowbit.export.from_onnx, lowbit.engine.model
small, large = sys.argv[1:3]
for _ in range(3):
    lowbit.convert_onnx(small, sys.argv[3], threads=1)
before = peak()
lowbit.convert_onnx(large, sys.argv[3], threads=1)
print(peak() - before)
"""

if sys.platform == "linux":

    @pytest.mark.parametrize(("layout", "format"), [("genai", "int4"), ("standard", "int4"), ("genai", "f32")])
    def test_memory_does_not_grow_with_the_model(tmp_path: Path, layout: str, format: str) -> None:
        """A matrix has 0.3 to 1 M weights. 12 more layers have 30 MB in blocks, 200 MB as floats."""
        for name, layers in (("small", 1), ("large", 13)):
            make_checkpoint(tmp_path / name, "qwen3", layers=layers, hidden=1024, ffn=1024)
            folder_of(tmp_path / name, tmp_path / f"{name}-onnx", layout=layout, format=format)
        paths = [tmp_path / "small-onnx", tmp_path / "large-onnx", tmp_path / "b.gguf"]
        command = [sys.executable, "-c", PEAK, *paths]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert int(done.stdout) < 20e6


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


def with_tensor(folder: Path, name: str, array: np.ndarray) -> None:
    """Adds an initializer to a folder's model, or replaces one."""
    model = lowbit.onnx.open(folder / "model.onnx")
    graph = dataclasses.replace(model.graph, tensors={**model.graph.tensors, name: lowbit.onnx.Tensor.of(name, array)})
    lowbit.onnx.write(folder / "other.onnx", model.with_graph(graph))
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["filename"] = "other.onnx"
    write_json(folder / "genai_config.json", config)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("blk.0.attn_norm.weight", np.arange(256), r"'blk\.0\.attn_norm\.weight': expected floats, found int64"),
        (
            "blk.0.attn_norm.weight",
            np.array([b"x"] * 256, object),
            r"'blk\.0\.attn_norm\.weight': expected floats, found object",
        ),
        ("blk.0.other.weight", np.ones(8, np.float32), r"'blk\.0\.other\.weight': expected a weight of qwen3"),
        ("blk.2.attn_norm.weight", np.ones(256, np.float32), r"'blk\.2\.attn_norm\.weight'.* with 2 layers"),
    ],
)
def test_weights_that_the_network_does_not_have(tmp_path: Path, name: str, array: np.ndarray, message: str) -> None:
    make_checkpoint(tmp_path / "model", "qwen3")
    folder = folder_of(tmp_path / "model", tmp_path / "onnx", format="f32")
    with_tensor(folder, name, array)
    with pytest.raises(lowbit.FormatError, match=message) as caught:
        convert_onnx(folder, tmp_path / "b.gguf")
    assert caught.value.path == str(folder / "other.onnx")
    assert not (tmp_path / "b.gguf").exists()


def test_fewer_layers_than_the_graph(tmp_path: Path) -> None:
    """The network would be another one."""
    make_checkpoint(tmp_path / "model", "qwen3")
    folder = folder_of(tmp_path / "model", tmp_path / "onnx", format="f32")
    edit_json(folder / "config.json", {"num_hidden_layers": 1})
    with pytest.raises(lowbit.FormatError, match=r"'blk\.1\..* with 1 layer,"):
        convert_onnx(folder, tmp_path / "b.gguf")


@pytest.mark.parametrize("key", ["context_length", "vocab_size", "decoder.head_size", "decoder.num_hidden_layers"])
def test_sizes_that_are_none(tmp_path: Path, key: str) -> None:
    """The error has the key of genai_config.json, not that of config.json."""
    make_checkpoint(tmp_path / "model", "qwen3")
    folder = folder_of(tmp_path / "model", tmp_path / "onnx", format="f32")
    (folder / "config.json").unlink()
    values = json.loads((folder / "genai_config.json").read_text())
    *parts, last = f"model.{key}".split(".")
    part = values
    for name in parts:
        part = part[name]
    part[last] = 0
    write_json(folder / "genai_config.json", values)
    with pytest.raises(lowbit.FormatError, match=f"'model.{key}' is '0', expected") as caught:
        convert_onnx(folder, tmp_path / "b.gguf")
    assert caught.value.key == f"model.{key}"


def test_what_was_rounded(tmp_path: Path) -> None:
    """One note for all matrices of a format, with the bound; the report has it for each."""
    make_checkpoint(tmp_path / "model", "qwen3", layers=1)
    folder = folder_of(tmp_path / "model", tmp_path / "onnx")
    report = convert_onnx(folder, tmp_path / "b.gguf")
    assert {fidelity.bound for fidelity in report.fidelities.values()} == {2.0**-11 + 2.0**-22}
    (note,) = report.notes
    assert note.startswith(f"{len(report.fidelities)} matrices as Q4_0 are bounded")
    assert "0.00049" in note
    with pytest.raises(lowbit.UnsupportedError, match=r"expected exact values, found rounded ones") as caught:
        convert_onnx(folder, tmp_path / "c.gguf", exact=True)
    assert "--exact" in str(caught.value)


def test_a_folder_as_target(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", "qwen3", layers=1)
    folder = folder_of(tmp_path / "model", tmp_path / "my-onnx", format="f32")
    (tmp_path / "made").mkdir()
    for target in (tmp_path / "made", f"{tmp_path}/new/"):
        report = convert_onnx(folder, target)
        assert Path(report.path) == Path(target) / "my-onnx-F32.gguf"
        assert Path(report.path).is_file()


def test_paths_that_are_no_folder_with_a_model(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", "qwen3", layers=1)
    folder = folder_of(tmp_path / "model", tmp_path / "onnx", format="f32")
    for path in (folder / "model.onnx", tmp_path / "nothing"):
        with pytest.raises(lowbit.FileError, match="expected a folder with an ONNX model") as caught:
            convert_onnx(path, tmp_path / "b.gguf")
        assert caught.value.path == str(path)
    with pytest.raises(lowbit.FileError, match=r"no model\.onnx.*lowbit\.convert"):
        convert_onnx(tmp_path / "model", tmp_path / "b.gguf")
