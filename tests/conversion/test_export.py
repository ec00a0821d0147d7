"""`lowbit export hf`: what comes back when the folder is converted again, and what makes no folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from command import run
from tiny_checkpoint import CONVERSIONS, DTYPES, conversion_source, make_checkpoint

import lowbit
from lowbit.conversion import pipeline
from lowbit.hf.checkpoint import Checkpoint
from lowbit.tensors.source import read

#: Keys that the checkpoint leaves out and its tokenizer takes by default: the folder spells them out.
SPM_DEFAULTS = {"tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0}
DEFAULTS = {"tiny-spm": SPM_DEFAULTS, "tiny-phi3.5": SPM_DEFAULTS}


def raw(tensor: Any) -> bytes:
    return bytes(np.ascontiguousarray(tensor.data if isinstance(tensor, lowbit.QTensor) else tensor).view(np.uint8))


def make_gguf(tmp_path: Path, format: str = "BF16", **options: Any) -> Path:
    lowbit.convert(
        make_checkpoint(tmp_path / "source", **options), tmp_path / "a.gguf", format, verify=False, provenance=False
    )
    return tmp_path / "a.gguf"


@pytest.mark.parametrize("format", ["F32", "Q8_0"])
@pytest.mark.parametrize("name", CONVERSIONS)
def test_converting_again_gives_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, format: str
) -> None:
    monkeypatch.setattr(pipeline, "CHUNK_WEIGHTS", 10000)  # many chunks, none of them whole heads
    lowbit.convert(conversion_source(tmp_path, name), tmp_path / "a.gguf", format, verify=False, provenance=False)
    report = lowbit.export_hf(tmp_path / "a.gguf", tmp_path / "hf", dtype="F32")
    assert report.notes == []
    lowbit.convert(tmp_path / "hf", tmp_path / "b.gguf", format, verify=False, provenance=False)
    with lowbit.gguf.open(tmp_path / "a.gguf") as a, lowbit.gguf.open(tmp_path / "b.gguf") as b:
        expected = {**a.metadata, **DEFAULTS.get(name, {})}
        assert expected.keys() == b.metadata.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(value, b.metadata[key], key)
        assert a.infos == b.infos
        for tensor in a.infos:
            assert raw(a.tensors[tensor]) == raw(b.tensors[tensor]), tensor


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_a_checkpoint_comes_back(tmp_path: Path, arch: str, dtype: str) -> None:
    source = make_checkpoint(tmp_path / "source", arch, dtype=dtype)
    lowbit.convert(source, tmp_path / "a.gguf", dtype, verify=False, provenance=False)
    report = lowbit.export_hf(tmp_path / "a.gguf", tmp_path / "hf")
    assert report.dtype == dtype
    before, after = Checkpoint(source), Checkpoint(tmp_path / "hf")
    assert before.tensors.keys() == after.tensors.keys() == set(report.tensors)
    for name, tensor in before.tensors.items():
        assert tensor.dtype == after.tensors[name].dtype
        assert raw(read(tensor)) == raw(read(after.tensors[name])), name
    for key, value in before.config.items():
        assert key == "bos_token_id" or after.config[key] == value, key


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantized_weights_are_decoded_and_rounded_once(tmp_path: Path, dtype: str) -> None:
    path = make_gguf(tmp_path, "Q4_K_M")
    assert lowbit.export_hf(path, tmp_path / "hf", dtype=dtype.lower()).dtype == dtype
    with lowbit.gguf.open(path) as file:
        expected = file.tensors["blk.1.ffn_down.weight"].dequantize().astype(DTYPES[dtype])
    found = Checkpoint(tmp_path / "hf").tensors["model.layers.1.mlp.down_proj.weight"]
    assert raw(read(found)) == raw(expected)
    assert lowbit.export_hf(path, tmp_path / "again").dtype == "BF16"


def test_shards(tmp_path: Path) -> None:
    path = make_gguf(tmp_path, layers=3)
    report = lowbit.export_hf(path, tmp_path / "hf", max_shard_size=600_000)
    assert len(report.shards) > 2
    whole = lowbit.export_hf(path, tmp_path / "whole")
    assert whole.shards == ["model.safetensors"]
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == report.num_bytes == whole.num_bytes
    parts, one = Checkpoint(tmp_path / "hf"), Checkpoint(tmp_path / "whole")
    assert list(parts.tensors) == list(one.tensors) == sorted(index["weight_map"])
    for name, tensor in one.tensors.items():
        assert raw(read(tensor)) == raw(read(parts.tensors[name]))
    for shard in (tmp_path / "hf").glob("*.safetensors"):
        data = shard.read_bytes()
        assert int.from_bytes(data[:8], "little") % 8 == 0
        largest = max(size for name, size in sizes(one).items() if index["weight_map"][name] == shard.name)
        assert len(data) < 600_000 + 8192 or largest > 600_000 - 8192


def sizes(checkpoint: Checkpoint) -> dict[str, int]:
    return {name: read(tensor).nbytes for name, tensor in checkpoint.tensors.items()}


def rewritten(path: Path, metadata: dict[str, Any] | None = None, **tensors: Any) -> Path:
    """The file with other metadata or tensors; None leaves one out."""
    with lowbit.gguf.open(path) as file:
        keys = {key: file.typed(key) for key in file.metadata} | (metadata or {})
        kept = {**file.tensors, **{name.replace("__", "."): value for name, value in tensors.items()}}
        lowbit.gguf.write(
            path,
            {key: value for key, value in keys.items() if value is not None},
            {name: value for name, value in kept.items() if value is not None},
        )
    return path


def test_the_model_card(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "general.license": "apache-2.0",
        "general.version": "1.0",
        "general.tags": ["a", "no", "---"],
        "general.languages": ["no"],
        "general.description": "two\nlines: and\n---\na tab\tand \u2028",
        "general.base_model.count": 2,
        "general.base_model.0.name": "Big Model",
        "general.base_model.0.organization": "Makers",
        "general.base_model.0.repo_url": "https://huggingface.co/makers/big-model",
        "general.base_model.1.name": "Other",
        "general.sampling.temp": 0.6,
        "general.sampling.top_k": np.int32(20),
    }
    path = rewritten(make_gguf(tmp_path), changes)
    lowbit.export_hf(path, tmp_path / "hf")
    lowbit.convert(tmp_path / "hf", tmp_path / "b.gguf", "BF16", verify=False, provenance=False)
    with lowbit.gguf.open(path) as a, lowbit.gguf.open(tmp_path / "b.gguf") as b:
        wanted, found = ({k: v for k, v in f.metadata.items() if k.startswith("general.")} for f in (a, b))
        assert found == wanted
    assert "- makers/big-model\n" in (tmp_path / "hf" / "README.md").read_text()
    generation = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert (generation["temperature"], generation["top_k"], generation["do_sample"]) == (0.6, 20, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensors": {"blk__1__ffn_up__weight": None}}, r"1 tensors are missing: blk\.1\.ffn_up\.weight"),
        ({"tensors": {"token_embd__weight": None}}, r"token_embd\.weight"),
        (
            {"tensors": {"blk__0__attn_q__weight": np.ones((256, 128), np.float32)}},
            r"shape \[256, 128\], expected \[256, 256\] from the metadata",
        ),
        (
            {"tensors": {"blk__0__odd": np.ones(3, np.float32)}},
            r"tensor blk\.0\.odd: a qwen3 checkpoint cannot hold it",
        ),
        ({"tensors": {"blk__0__attn_q__bias": np.ones(256, np.float32)}}, r"blk\.0\.attn_k\.bias is missing"),
        ({"tensors": {"output_norm__weight": np.ones(256, np.int8)}}, r"output_norm\.weight: I8"),
        ({"metadata": {"general.architecture": "mamba"}}, "'mamba' is unknown"),
        ({"metadata": {"general.architecture": None}}, r"no general\.architecture"),
        ({"metadata": {"qwen3.block_count": 4096}}, "only 24 tensors"),
        ({"metadata": {"qwen3.embedding_length": None}}, r"no qwen3\.embedding_length"),
        ({"metadata": {"qwen3.attention.value_length": 32}}, r"qwen3\.attention\.value_length is 32"),
        ({"metadata": {"qwen3.rope.scaling.type": "other", "qwen3.rope.scaling.factor": 2.0}}, "other"),
        ({"metadata": {"tokenizer.ggml.pre": "other"}}, "'other'"),
    ],
)
def test_refusals_leave_nothing(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = rewritten(make_gguf(tmp_path), change.get("metadata"), **change.get("tensors", {}))
    with pytest.raises((lowbit.FormatError, lowbit.UnsupportedError), match=message):
        lowbit.export_hf(path, tmp_path / "hf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "source"]


def test_unknown_keys_are_noted(tmp_path: Path) -> None:
    path = rewritten(make_gguf(tmp_path), {"qwen3.odd": 1})
    report = lowbit.export_hf(path, tmp_path / "hf")
    assert report.notes == ["qwen3.odd is lost: config.json has no key for it"]


def test_factors_that_no_setting_makes(tmp_path: Path) -> None:
    path = make_gguf(tmp_path, arch="llama")
    for factors in (np.linspace(1, 9, 32, dtype=np.float32), np.ones((32, 2), np.float32)):
        rewritten(path, rope_freqs__weight=factors)
        with pytest.raises((lowbit.FormatError, lowbit.UnsupportedError), match=r"rope_freqs\.weight"):
            lowbit.export_hf(path, tmp_path / "hf")


def test_weights_that_float16_cannot_hold(tmp_path: Path) -> None:
    huge = np.full((256, 512), 1e6, ml_dtypes.bfloat16)
    path = rewritten(make_gguf(tmp_path), blk__0__ffn_down__weight=huge)
    report = lowbit.export_hf(path, tmp_path / "hf", dtype="f16")
    assert report.notes == ["model.layers.0.mlp.down_proj.weight: 131072 weights exceed float16 and became infinite"]


def test_wrong_arguments(tmp_path: Path) -> None:
    path = make_gguf(tmp_path)
    with pytest.raises(lowbit.InputError, match="dtype: expected one of F32, F16, BF16, got 'q8_0'"):
        lowbit.export_hf(path, tmp_path / "hf", dtype="q8_0")
    with pytest.raises(lowbit.InputError, match="max_shard_size: expected at least 1, got 0"):
        lowbit.export_hf(path, tmp_path / "hf", max_shard_size=0)
    with pytest.raises(lowbit.FileError, match="there already"):
        lowbit.export_hf(path, tmp_path)
    with pytest.raises(lowbit.FileError, match=r"none: no such folder; make it first"):
        lowbit.export_hf(path, tmp_path / "none" / "hf")
    with pytest.raises(lowbit.FileError):
        lowbit.export_hf(tmp_path / "none.gguf", tmp_path / "hf")


def test_the_folder_is_there_when_all_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_gguf(tmp_path)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lowbit._core, "quantize_rows", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lowbit.export_hf(path, tmp_path / "hf", dtype="F32")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "source"]
    (tmp_path / "hf").mkdir()  # an empty folder may be there
    lowbit.export_hf(path, tmp_path / "hf")
    assert (tmp_path / "hf").stat().st_mode & 0o777 == (tmp_path / "source").stat().st_mode & 0o777
    assert sorted(p.name for p in (tmp_path / "hf").iterdir()) == [
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip


def test_an_error_names_the_folder_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(shards: list[pipeline.Output], *_: object) -> None:
        raise lowbit.FileError("cannot write: No space left on device", path=shards[0].path)

    monkeypatch.setattr("lowbit.conversion.export_hf.write_files", full)
    with pytest.raises(lowbit.FileError, match=f"^{tmp_path}/hf/model.safetensors: cannot write: No space"):
        lowbit.export_hf(make_gguf(tmp_path), tmp_path / "hf")


def test_what_a_killed_export_left_is_removed_and_not_that_of_one_at_work(tmp_path: Path) -> None:
    path, folder = make_gguf(tmp_path), tmp_path / "out"
    folder.mkdir()
    code = f"""import os, signal, lowbit.conversion.export_hf as e
e.write_files = lambda *_: (print("writing", flush=True), signal.pause())
e.export_hf({str(path)!r}, {str(folder / "hf")!r})"""
    other = folder / ".hf.abcdefgh.parts"
    other.mkdir()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as at_work:
        assert at_work.stdout is not None
        assert at_work.stdout.readline() == "writing\n"
        (begun,) = folder.glob(".hf.*.part")
        lowbit.export_hf(path, folder / "hf")
        assert set(folder.iterdir()) == {begun, other, folder / "hf"}
        at_work.kill()
    shutil.rmtree(folder / "hf")
    lowbit.export_hf(path, folder / "hf")
    assert set(folder.iterdir()) == {other, folder / "hf"}


def test_the_command(tmp_path: Path) -> None:
    path = make_gguf(tmp_path)
    arguments = ("export", "hf", path, tmp_path / "hf")
    wrong = run(*arguments, "--max-shard-size", "5 apples")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    done = run(*arguments, "--max-shard-size", "600KB", "--dtype", "f32", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["dtype"], len(report["shards"]) > 1) == ("F32", True)
    again = run(*arguments)
    assert again.returncode == 1
    assert again.stderr.startswith(f"lowbit: {tmp_path / 'hf'}: there already")
