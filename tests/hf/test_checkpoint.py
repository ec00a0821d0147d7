"""Safetensors folders: what is read, and one crafted file for every error."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from input_cases import SOURCE_CASES, make_sources
from tiny_checkpoint import edit_json, make_checkpoint, write_json, write_safetensors

import lowbit
from lowbit.hf.checkpoint import Checkpoint, mapped, read_json, read_safetensors
from lowbit.hf.hub import resolve
from lowbit.tensors.source import InterleavedHeads, PlusOne, Renamed, read


def raw(path: Path, header: Any, data: bytes = b"", size: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_reads_rows(tmp_path: Path, dtype: str, shards: int) -> None:
    checkpoint = Checkpoint(make_checkpoint(tmp_path / "a", dtype=dtype, shards=shards))
    same = Checkpoint(make_checkpoint(tmp_path / "b", dtype=dtype))
    assert checkpoint.tensors.keys() == same.tensors.keys()
    for name, tensor in checkpoint.tensors.items():
        whole = read(same.tensors[name])
        assert whole.dtype == tensor.dtype
        middle = len(whole) // 2
        parts = [tensor.rows(0, middle), tensor.rows(middle, middle), tensor.rows(middle, len(whole))]
        np.testing.assert_array_equal(np.concatenate(parts).view(np.uint8), whole.view(np.uint8))


def test_numbered_files_without_an_index(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a", shards=2)
    (folder / "model.safetensors.index.json").unlink()
    assert len(Checkpoint(folder).tensors) == 24
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(lowbit.FileError, match=r"1 of 2 files are missing: model-00002-of-00002\.safetensors"):
        Checkpoint(folder)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(lowbit.FileError, match=r"model-00002-of-00003\.safetensors"):
        Checkpoint(folder)


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", "..", 3, None, ""])
def test_index_may_not_leave_the_folder(tmp_path: Path, shard: Any) -> None:
    folder = make_checkpoint(tmp_path / "a", shards=2)
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"w": shard}})
    with pytest.raises(lowbit.FormatError, match="expected a plain file name"):
        Checkpoint(folder)


@pytest.mark.parametrize(("change", "problem"), [("drop", "have model.norm.weight"), ("add", "lack extra")])
def test_index_and_files_disagree(tmp_path: Path, change: str, problem: str) -> None:
    folder = make_checkpoint(tmp_path / "a", shards=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    if change == "drop":
        del index["weight_map"]["model.norm.weight"]
    else:
        index["weight_map"]["extra"] = "model-00001-of-00002.safetensors"
    write_json(path, index)
    with pytest.raises(lowbit.FormatError, match=problem):
        Checkpoint(folder)


@pytest.mark.parametrize("case", SOURCE_CASES)
def test_several_sets_of_weights(tmp_path: Path, case: str) -> None:
    """tests/oracle/test_inputs_oracle.py asks transformers which one it takes."""
    folder, taken, left = make_sources(tmp_path / "a", case)
    one = read(Checkpoint(make_sources(tmp_path / "b", "pickles")[0]).tensors["model.norm.weight"])
    np.testing.assert_array_equal(read(Checkpoint(folder).tensors["model.norm.weight"]), taken * one)
    report = lowbit.convert(folder, tmp_path / "out.gguf", "Q8_0", verify=False, provenance=False)
    (note,) = (note for note in report.notes if note.startswith("weights are read from"))
    assert f"ignored: {left}" in note


@pytest.mark.parametrize("name", ["../a.safetensors", "weights.bin", 3, "", "a/b.safetensors"])
def test_config_names_weights_in_its_folder(tmp_path: Path, name: Any) -> None:
    folder = make_checkpoint(tmp_path / "a")
    edit_json(folder / "config.json", {"transformers_weights": name})
    with pytest.raises(lowbit.FormatError, match=r"'transformers_weights' is .*expected the plain name"):
        Checkpoint(folder)


def test_weights_by_name_that_are_not_there(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a")
    for name in ("other.safetensors", "other.safetensors.index.json"):
        edit_json(folder / "config.json", {"transformers_weights": name})
        with pytest.raises(lowbit.FileError, match=name):
            Checkpoint(folder)


def test_a_file_that_is_cut_off_says_so(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": np.zeros(1024, np.float32)})
    data = path.read_bytes()
    header = struct.unpack("<Q", data[:8])[0] + 8
    for size, message in (
        (header - 1, f"cut off: expected {header} bytes for its header alone, found {header - 1}; download it again"),
        (
            len(data) - 1,
            f"tensors end at byte {len(data)}, but the file at {len(data) - 1}: it is cut off, download it again",
        ),
    ):
        path.write_bytes(data[:size])
        with pytest.raises(lowbit.FormatError, match=message):
            read_safetensors(path)


def test_the_same_tensor_twice(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a", shards=2)
    (folder / "model.safetensors.index.json").unlink()
    tensor = {"model.embed_tokens.weight": np.zeros(1, np.float32)}
    write_safetensors(folder / "model-00002-of-00002.safetensors", tensor)
    with pytest.raises(lowbit.FormatError, match="also in model-00001-of-00002"):
        Checkpoint(folder)


BROKEN: dict[str, tuple[Any, bytes, int | None, str]] = {
    "size beyond the file": ({}, b"", 1 << 40, "header of 1099511627776 bytes"),
    "size near 2^64": ({}, b"", (1 << 64) - 1, "header of 18446744073709551615 bytes"),
    "not JSON": (b"{", b"", None, "not valid JSON"),
    "not UTF-8": (b"\xff\xfe", b"", None, "not valid JSON"),
    "deeply nested": (b"[" * 100000, b"", None, "not valid JSON"),
    "a huge number": (b'{"a": ' + b"9" * 5000 + b"}", b"", None, "not valid JSON"),
    "not an object": ([], b"", None, "expected a JSON object, found list"),
    "a name twice": (b'{"a": 1, "a": 2}', b"", None, "duplicate name 'a'"),
    "no object": ({"a": 1}, b"", None, "expected an object with dtype, shape and data_offsets"),
    "no offsets": (
        {"a": {"dtype": "F32", "shape": [1]}},
        b"",
        None,
        "expected an object with dtype, shape and data_offsets",
    ),
    "unknown type": ({"a": entry("F7")}, b"1234", None, "unknown type 'F7'"),
    "type no string": ({"a": entry(["F32"])}, b"1234", None, "unknown type"),
    "negative size": ({"a": entry(shape=[-1])}, b"1234", None, r"shape \[-1\]"),
    "fractional size": ({"a": entry(shape=[1.0])}, b"1234", None, "shape"),
    "boolean size": ({"a": entry(shape=[True])}, b"1234", None, "shape"),
    "many dimensions": ({"a": entry(shape=[1] * 9)}, b"1234", None, "at most 8 sizes"),
    "sizes overflow": ({"a": entry(shape=[1 << 62] * 3)}, b"1234", None, "hold 4 bytes"),
    "offsets reversed": ({"a": entry(offsets=[4, 0])}, b"1234", None, "hold -4 bytes"),
    "three offsets": ({"a": entry(offsets=[0, 4, 8])}, b"1234", None, "data_offsets"),
    "negative offset": ({"a": entry(offsets=[-4, 0])}, b"1234", None, "data_offsets"),
    "wrong byte count": ({"a": entry(shape=[2])}, b"1234", None, "hold 4 bytes, expected 8 "),
    "hole": ({"a": entry(offsets=[4, 8])}, b"12345678", None, "leaves a hole"),
    "overlap": ({"a": entry(), "b": entry(shape=[2], offsets=[0, 8])}, b"12345678", None, "overlaps"),
    "beyond the end": ({"a": entry()}, b"123", None, "tensors end at byte"),
    "bytes left over": ({"a": entry()}, b"12345", None, "tensors end at byte"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_file(tmp_path: Path, case: str) -> None:
    header, data, size, message = BROKEN[case]
    with pytest.raises(lowbit.FormatError, match=message) as caught:
        read_safetensors(raw(tmp_path / "model.safetensors", header, data, size))
    assert "\n" not in str(caught.value)
    assert "model.safetensors" in str(caught.value)


def test_truncated_anywhere(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    write_safetensors(whole, {"a": np.arange(4, dtype=np.float32), "b": np.zeros((2, 2), np.float16)})
    data = whole.read_bytes()
    for size in range(len(data)):
        (tmp_path / "part.safetensors").write_bytes(data[:size])
        with pytest.raises(lowbit.FormatError):
            read_safetensors(tmp_path / "part.safetensors")


@given(st.binary(max_size=200))
def test_random_bytes_never_escape_the_error_types(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(lowbit.Error):
        read_safetensors(path)


def test_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": np.zeros(1024, np.float32)})
    tensor = read_safetensors(path)["a"]
    with open(path, "r+b") as file:
        file.truncate(1000)
    with pytest.raises(lowbit.FileError, match="became shorter"):
        read(tensor)


def test_tensors_are_mapped_where_they_are_in_order(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "none": np.zeros((0, 3), np.float32)}
    write_safetensors(path, arrays)
    stored = read_safetensors(path)
    found = mapped(Renamed("b", Renamed("c", stored["a"])))
    assert (found == arrays["a"]).all()
    assert not found.flags.writeable
    assert mapped(stored["none"]).shape == (0, 3)
    changed = mapped(PlusOne("b", stored["a"]))
    assert (changed == arrays["a"] + 1).all()
    assert changed.flags.writeable
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    path.write_bytes(struct.pack("<Q", size + 1) + data[8 : 8 + size] + b" " + data[8 + size :])
    assert stored["a"].offset % 4 == 0
    assert (read_safetensors(path)["a"].offset % 4) == 1
    odd = mapped(read_safetensors(path)["a"])
    assert (odd == arrays["a"]).all()
    assert odd.flags.aligned


def test_mapping_a_file_that_shrank_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": np.zeros(1024, np.float32)})
    tensor = read_safetensors(path)["a"]
    for size in (1000, 0):
        with open(path, "r+b") as file:
            file.truncate(size)
        with pytest.raises(lowbit.FileError, match=r"became shorter|cannot be mapped"):
            mapped(tensor)


def test_integer_weights_are_refused_when_used(tmp_path: Path) -> None:
    tensors = read_safetensors(raw(tmp_path / "model.safetensors", {"a": entry("I64", [1], [0, 8])}, b"12345678"))
    with pytest.raises(lowbit.UnsupportedError, match="'a' has type I64"):
        read(tensors["a"])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickle_checkpoints_are_refused_with_a_way_out(tmp_path: Path, name: str) -> None:
    folder = make_checkpoint(tmp_path / "a")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"not even read")
    for path in (folder, folder / name):
        with pytest.raises(lowbit.UnsupportedError, match=rf"{name} is a pickle.*save_pretrained.*refs/pr/N"):
            Checkpoint(path)


OTHER_FOLDERS: dict[str, tuple[list[str], type[lowbit.Error], str]] = {
    "an adapter": (
        ["adapter_config.json", "adapter_model.safetensors"],
        lowbit.UnsupportedError,
        "LoRA adapter.*--lora",
    ),
    "diffusers": (["model_index.json", "unet/config.json"], lowbit.UnsupportedError, "diffusers pipeline"),
    "GGUF": (["tiny-Q4_K_M.gguf"], lowbit.UnsupportedError, r"use the path .*tiny-Q4_K_M\.gguf"),
    "ONNX": (["onnx/model.onnx", "tokenizer.json"], lowbit.UnsupportedError, "model.onnx is an ONNX model"),
    "the makers' form": (
        ["params.json", "consolidated.00.pth"],
        lowbit.UnsupportedError,
        "format of the model's authors",
    ),
    "a tokenizer": (
        ["tokenizer.json"],
        lowbit.FileError,
        "no config.json; the folder has tokenizer.json, but no model",
    ),
    "one folder more": (["tiny/config.json"], lowbit.FileError, r"no config\.json; the folder has tiny/config\.json"),
    "nothing": ([], lowbit.FileError, "no config.json$"),
}


@pytest.mark.parametrize("case", OTHER_FOLDERS)
def test_folders_that_are_something_else(tmp_path: Path, case: str) -> None:
    names, error, message = OTHER_FOLDERS[case]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(error, match=message) as caught:
        Checkpoint(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))


CONFIGS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty: download it again"),
    "cut off": (b'{"architectures": ["Qwen3ForCausalLM"', "not valid JSON"),
    "a BOM": ("\ufeff{}".encode(), "not valid JSON"),
    "UTF-16": ("{}".encode("utf-16"), "not valid JSON"),
    "a list": (b"[]", "expected a JSON object, found list"),
    "deeply nested": (b'{"a": ' + b"[" * 200000, "not valid JSON"),
    "a name twice": (b'{"a": 1, "a": 2}', "duplicate name 'a'"),
    "too long": (b"{}" + b" " * (16 << 20), "16777218 bytes, expected at most 16777216"),
    "no class": (b"{}", "architectures"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_broken_config(tmp_path: Path, case: str) -> None:
    folder = make_checkpoint(tmp_path / "a")
    data, message = CONFIGS[case]
    (folder / "config.json").write_bytes(data)
    with pytest.raises(lowbit.FormatError, match=message) as caught:
        lowbit.convert(folder, tmp_path / "out.gguf", verify=False, provenance=False)
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_links_as_the_hub_keeps_them(tmp_path: Path) -> None:
    """Names in an index are plain; where links lead is up to who made the folder. The cache of the hub is of links."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    make_checkpoint(blobs, shards=2)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert Checkpoint(snapshot).tensors.keys() == Checkpoint(blobs).tensors.keys()


def test_code_of_a_checkpoint_is_ignored(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "auto_map": {"AutoModelForCausalLM": "evil.Model"}})
    (folder / "evil.py").write_text("raise SystemExit")
    report = lowbit.convert(folder, tmp_path / "out.gguf", "Q8_0", verify=False, provenance=False, dry_run=True)
    assert any("auto_map" in note and "never run" in note for note in report.notes)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    folder = make_checkpoint(tmp_path / "a")
    (folder / name).unlink()
    with pytest.raises(lowbit.FileError, match=name):
        Checkpoint(folder)


def test_missing_folder(tmp_path: Path) -> None:
    folder, hub_id = resolve(tmp_path / "none")
    assert hub_id is None
    with pytest.raises(lowbit.FileError, match="no such folder"):
        Checkpoint(folder)
    with pytest.raises(lowbit.FileError, match="No such file"):
        read_json(folder / "config.json")


def test_interleaved_heads_rows_equal_the_whole(tmp_path: Path) -> None:
    array = np.arange(6 * 8 * 3, dtype=np.float32).reshape(48, 3)
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"q": array})
    source = InterleavedHeads("q", Renamed("q", read_safetensors(path)["q"]), 6)
    whole = read(source)
    for head in range(6):
        for j in range(4):
            for p in range(2):
                np.testing.assert_array_equal(whole[8 * head + 2 * j + p], array[8 * head + 4 * p + j])
    for start in range(0, 48, 5):
        for stop in range(start, 49, 7):
            np.testing.assert_array_equal(source.rows(start, stop), whole[start:stop])
