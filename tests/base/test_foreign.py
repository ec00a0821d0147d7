"""Files that are something else than their names say: each is called what it is, wherever it lies."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import make_checkpoint, write_json, write_safetensors

import lowbit
from lowbit.hf.checkpoint import Checkpoint
from lowbit.tokenizer.sentencepiece import read_model

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 4517152\n"
)


def zipped(name: str = "archive/data.pkl") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, b"x" * 2000)
    return out.getvalue()


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.safetensors"))
    return out.getvalue()


CONTENTS: dict[str, tuple[bytes, str]] = {
    "pointer": (POINTER, r"git-lfs pointer, not the file of 4517152 bytes .*`git lfs pull`.*download it again"),
    "pointer of Windows": (POINTER.replace(b"\n", b"\r\n"), "git-lfs pointer, not the file of 4517152 bytes"),
    "page": (b"\n<!DOCTYPE html>\n<html><head><title>Log in</title></head></html>", "an HTML page.*download it again"),
    "page without a type": (b"<html lang='en'><body>404</body></html>", "an HTML page"),
    "error of a store": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML page"),
    "error of the hub": (b'{"error":"Invalid username or password."}', "a server's error message in JSON"),
    "nothing": (b"", "the file is empty: download it again"),
    "a hole": (bytes(5000), "begins with 1024 zero bytes, as an unfinished download"),
    "zip": (zipped(), "a zip archive, as torch.save writes"),
    "pickle": (b"\x80\x02}q\x00." + bytes(300), "a pickle"),
    "tar": (tarred(), "a tar archive: unpack it first"),
    "gzip": (gzip.compress(b"x" * 600), "compressed with gzip: decompress it first"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(range(200)), "compressed with zstd"),
    "GGML": (b"lmgg" + bytes(200), "a GGML file from before August 2023: convert the model again"),
    "GGJT": (b"tjgg\x03\0\0\0" + bytes(200), "a GGJT file from before August 2023"),
    "array": (b"\x93NUMPY\x01\0" + bytes(120), "an array of NumPy: lowbit reads safetensors and GGUF"),
    "ONNX": (
        b"\x08\x0a\x12\x07pytorch" + bytes(200),
        "an ONNX model: lowbit inspect, lowbit onnx and",
    ),
    "ONNX without a producer": (b"\x08\x08\x3a\xff\x01" + bytes(200), "an ONNX model"),
    "GGLA": (b"algg\x01\0\0\0" + bytes(200), "a GGLA adapter"),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_in_place_of_weights_and_gguf_files(tmp_path: Path, case: str) -> None:
    content, message = CONTENTS[case]
    folder = make_checkpoint(tmp_path / "a", layers=1)
    for path, reading in (
        (folder / "model.safetensors", lambda: Checkpoint(folder)),
        (tmp_path / "a.gguf", lambda: lowbit.gguf.open(tmp_path / "a.gguf")),
    ):
        path.write_bytes(content)
        check(path, reading, message)


def check(path: Path, reading: Callable[[], object], message: str) -> None:
    with pytest.raises(lowbit.FormatError, match=message) as caught:
        reading()
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


FILES: dict[str, Callable[[Path, Path], object]] = {
    "config.json": lambda folder, out: lowbit.convert(folder, out, verify=False, provenance=False),
    "model-00002-of-00002.safetensors": lambda folder, out: Checkpoint(folder),
    "model.safetensors.index.json": lambda folder, out: Checkpoint(folder),
    "tokenizer.json": lambda folder, out: lowbit.load_tokenizer(folder),
    "tokenizer_config.json": lambda folder, out: lowbit.convert(folder, out, verify=False, provenance=False),
    "tokenizer.model": lambda folder, out: read_model(folder / "tokenizer.model"),
    "adapter/adapter_model.safetensors": lambda folder, out: lowbit.load(folder, lora=folder / "adapter"),
    "adapter/adapter_config.json": lambda folder, out: lowbit.load(folder, lora=folder / "adapter"),
    "imatrix.dat": lambda folder, out: lowbit.convert(
        folder, out, imatrix=folder / "imatrix.dat", verify=False, provenance=False
    ),
    "packed.npz": lambda folder, out: lowbit.QTensor.load(folder / "packed.npz"),
    "out-00002-of-00002.gguf": lambda folder, out: lowbit.gguf.open(folder / "out-00001-of-00002.gguf"),
}


@pytest.mark.parametrize("case", ["pointer", "page"])
@pytest.mark.parametrize("name", FILES)
def test_in_place_of_each_file(tmp_path: Path, name: str, case: str) -> None:
    folder = make_checkpoint(tmp_path / "a", layers=1, shards=2)
    (folder / "adapter").mkdir()
    write_json(folder / "adapter" / "adapter_config.json", {"peft_type": "LORA", "r": 4, "lora_alpha": 8})
    write_safetensors(folder / "adapter" / "adapter_model.safetensors", {"a.lora_A.weight": np.zeros(1, np.float32)})
    lowbit.convert(folder, folder / "out.gguf", "Q8_0", verify=False, provenance=False, split_max_tensors=8)
    content, message = CONTENTS[case]
    (folder / name).write_bytes(content)
    check(folder / name, lambda: FILES[name](folder, tmp_path / "out.gguf"), message)


def test_a_gguf_file_in_place_of_weights(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a", layers=1)
    lowbit.convert(folder, tmp_path / "a.gguf", "Q8_0", verify=False, provenance=False)
    (folder / "model.safetensors").write_bytes((tmp_path / "a.gguf").read_bytes())
    check(folder / "model.safetensors", lambda: Checkpoint(folder), "this is a GGUF file")


def test_a_safetensors_file_in_place_of_a_gguf_file(tmp_path: Path) -> None:
    file = make_checkpoint(tmp_path / "a", layers=1) / "model.safetensors"
    check(file, lambda: lowbit.load(file), "this is a safetensors file: pass the folder of its checkpoint")
    file.write_bytes(file.read_bytes()[:-1])
    check(file, lambda: Checkpoint(file.parent), "the tensors end at byte .* it is cut off, download it again")


def test_a_gguf_file_that_is_cut_off_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    lowbit.convert(make_checkpoint(tmp_path / "a", layers=1), path, "Q8_0", verify=False, provenance=False)
    data = path.read_bytes()
    for size in (len(data) // 2, len(data) - 100):
        path.write_bytes(data[:size])
        message = f"the file is cut off: it has {size} bytes, its tensors need {len(data)}; download or write it again"
        with pytest.raises(lowbit.FormatError, match=message):
            lowbit.gguf.open(path)


def test_a_gguf_file_that_is_cut_off_in_its_header_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    lowbit.convert(make_checkpoint(tmp_path / "a", layers=1), path, "Q8_0", verify=False, provenance=False)
    with lowbit.gguf.open(path) as file:
        begin = min(file.place(name).offset for name in file.infos)
    data = path.read_bytes()
    for size in (20, 1000, 5001, begin - 100):
        path.write_bytes(data[:size])
        with pytest.raises(lowbit.FormatError, match=r"the file is cut off|the file, which is cut off or damaged"):
            lowbit.gguf.open(path)


def test_a_broken_gguf_file_is_called_broken(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 16)
    with pytest.raises(lowbit.FormatError, match="number of tensors"):
        lowbit.gguf.open(tmp_path / "a.gguf")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_a_server_s_error_in_place_of_settings(tmp_path: Path, name: str) -> None:
    folder = make_checkpoint(tmp_path / "a", layers=1)
    (folder / name).write_text(json.dumps({"error": "Access to model is restricted."}))
    with pytest.raises(lowbit.FormatError, match=rf"{name}: this is a server's error message in JSON"):
        lowbit.convert(folder, tmp_path / "out.gguf", verify=False, provenance=False)


USES: dict[str, Callable[[Path], object]] = {
    "load": lowbit.load,
    "load_tokenizer": lowbit.load_tokenizer,
    "export_hf": lambda path: lowbit.export_hf(path, path.parent / "hf"),
}
WITHOUT: list[tuple[str, str]] = [
    ("load", "general.architecture"),
    ("load", "qwen3.block_count"),
    ("load_tokenizer", "tokenizer.ggml.model"),
    ("load_tokenizer", "tokenizer.ggml.merges"),
    ("export_hf", "general.architecture"),
    ("export_hf", "qwen3.embedding_length"),
    ("export_hf", "tokenizer.ggml.tokens"),
]


@pytest.mark.parametrize(("use", "key"), WITHOUT)
def test_errors_about_metadata_name_the_file(tmp_path: Path, use: str, key: str) -> None:
    lowbit.convert(
        make_checkpoint(tmp_path / "m", "qwen3", layers=1), tmp_path / "a.gguf", "F32", verify=False, provenance=False
    )
    with lowbit.gguf.open(tmp_path / "a.gguf") as file:
        metadata = {name: file.typed(name) for name in file.metadata if name != key}
        lowbit.gguf.write(tmp_path / "odd.gguf", metadata, file.tensors)
    with pytest.raises(lowbit.FormatError) as caught:
        USES[use](tmp_path / "odd.gguf")
    assert str(caught.value).startswith(f"{tmp_path / 'odd.gguf'}: ")
    assert key in str(caught.value)


@pytest.mark.parametrize("use", ["load", "export_hf"])
@pytest.mark.parametrize(
    ("kind", "words"), [("imatrix", "importance matrix"), ("adapter", "LoRA"), ("mmproj", "image encoder")]
)
def test_gguf_files_that_are_no_models(tmp_path: Path, use: str, kind: str, words: str) -> None:
    lowbit.gguf.write(tmp_path / "a.gguf", {"general.type": kind}, {"a": np.zeros(4, np.float32)})
    with pytest.raises(lowbit.UnsupportedError, match=f"a.gguf: general.type: expected a model, found .*{words}"):
        USES[use](tmp_path / "a.gguf")
