"""Conversion end to end: values, order, streaming, refusals, and files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from family_variants import FORMATS, THROUGH, VARIANTS, variant_source
from stored import difference, fingerprint, stored
from tiny_checkpoint import CONVERSIONS, DTYPES, conversion_source, make_checkpoint, write_imatrix, write_shards

import lowbit
from lowbit.base.dtypes import FLOATS
from lowbit.conversion import pipeline
from lowbit.conversion.open import open_checkpoint
from lowbit.hf.checkpoint import Checkpoint
from lowbit.quantization.assignment import file_order
from lowbit.quantization.recipes import MIXES
from lowbit.tensors.source import read


def expected(folder: Path, name: str, format: str) -> np.ndarray:
    """A tensor of the file, computed at once from the whole checkpoint."""
    weights = next(read(t) for t in open_checkpoint(folder).tensors if t.name == name)
    if weights.ndim == 1:
        return weights.view(np.uint8)
    if format not in FLOATS:
        weights = weights.astype(ml_dtypes.bfloat16)
    return lowbit.quantize(weights, format, allow_nonfinite=True).data


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("format", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M", "Q2_K"])
def test_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, format: str) -> None:
    monkeypatch.setattr(pipeline, "CHUNK_WEIGHTS", 10000)  # many chunks, none of them whole heads
    folder = make_checkpoint(tmp_path / "a", "llama", dtype=dtype, shards=2)
    report = lowbit.convert(folder, tmp_path / "out.gguf", format, verify=False, provenance=False)
    assert report.file_bytes == os.path.getsize(tmp_path / "out.gguf")
    with lowbit.gguf.open(tmp_path / "out.gguf") as file:
        assert list(file.infos) == [tensor.name for tensor in report.tensors]
        for name, tensor in file.tensors.items():
            data = tensor.data if isinstance(tensor, lowbit.QTensor) else np.ascontiguousarray(tensor).view(np.uint8)
            np.testing.assert_array_equal(data.reshape(-1), expected(folder, name, file.infos[name].format).reshape(-1))


CONVERTED = {name: stored(f"converted/{name}") for name in CONVERSIONS}
ENCODED = [name for name in MIXES if name != "COPY"]


@pytest.mark.parametrize("name", CONVERSIONS)
def test_the_file_of_the_reference_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """data/converted/NAME.json.xz: format -> fingerprint of the file (make_reference.py)."""
    folder = conversion_source(tmp_path, name)
    write_imatrix(tmp_path / "imatrix.gguf", folder)
    monkeypatch.chdir(tmp_path)  # the file holds the path of its importance matrix
    for format in ENCODED:
        for key, imatrix in ((format, None), (f"{format} imatrix", "imatrix.gguf")):
            options: dict[str, Any] = {"imatrix": imatrix, "verify": False, "provenance": False}
            if key in CONVERTED[name]:
                lowbit.convert(folder, "out.gguf", format, **options)
                assert difference(Path("out.gguf"), CONVERTED[name][key]) is None, key
            elif format not in FLOATS:
                with pytest.raises(lowbit.InputError, match=r"unusable without importances|has no fallback"):
                    lowbit.convert(folder, "out.gguf", format, **options)


VARIANT_FILES = stored("variants")


@pytest.mark.parametrize("name", VARIANTS)
def test_files_of_each_family(tmp_path: Path, name: str) -> None:
    """data/variants.json.xz: checkpoint -> format -> fingerprint of the reference tools' file (make_reference.py)."""
    folder = variant_source(tmp_path, name)
    differ = {}
    for key in [*FORMATS, *(f"{format} through {before}" for before in ("F16", "F32") for format in THROUGH)]:
        format, _, before = key.partition(" through ")
        lowbit.convert(
            folder, tmp_path / "out.gguf", format, intermediate=before or None, verify=False, provenance=False
        )
        differ[key] = difference(tmp_path / "out.gguf", VARIANT_FILES[name][key])
    assert differ == dict.fromkeys(VARIANT_FILES[name])


def test_a_file_that_differs_says_where(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    tensors = {"t": np.arange(3, dtype=np.float32), "u": np.zeros((2, 2), np.float16)}

    def written(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
        lowbit.gguf.write(path, metadata, tensors)
        return path

    expected = fingerprint(written({"a": 1, "b": "x"}, tensors))
    assert difference(path, expected) is None
    assert difference(written({"a": 1, "b": "y"}, tensors), expected) == "key b"
    assert difference(written({"a": 1, "c": 1, "b": "x"}, tensors), expected) == "key c"
    assert (
        difference(written({"a": 1, "b": "x"}, {**tensors, "u": np.eye(2, dtype=np.float16)}), expected) == "tensor u"
    )
    assert difference(written({"a": 1, "b": "x"}, {"t": tensors["t"][None], "u": tensors["u"]}), expected) == "tensor t"
    assert difference(written({"a": 1, "b": "x"}, {**tensors, "v": tensors["t"]}), expected) is not None
    data = bytearray(written({"a": 1, "b": "x"}, tensors).read_bytes())
    data[-1] = 1  # of the padding
    path.write_bytes(data)
    assert difference(path, expected) == "between the parts"


@pytest.mark.parametrize(
    ("dtype", "format", "before", "rounded"),
    [("BF16", "Q8_0", None, None), ("F16", "Q8_0", None, "F16 weights are rounded to BF16"),
     ("F32", "Q8_0", "F16", "F32 weights are rounded to F16"),
     ("F16", "Q8_0", "f16", None), ("F16", "Q8_0", "F32", None), ("F16", "BF16", None, None)],
)  # fmt: skip
def test_rounding_twice_is_said(
    tmp_path: Path, dtype: str, format: str, before: str | None, rounded: str | None
) -> None:
    folder = make_checkpoint(tmp_path / "a", layers=1, dtype=dtype)
    report = lowbit.convert(
        folder, tmp_path / "out.gguf", format, intermediate=before, dry_run=True, verify=False, provenance=False
    )
    assert report.notes == ([] if rounded is None else [next(note for note in report.notes if rounded in note)])


def test_nothing_comes_between_floats(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a", layers=1)
    for format, before, message in (
        ("F16", "F32", "there is no intermediate format"),
        ("Q8_0", "Q4_0", "expected one of"),
    ):
        with pytest.raises(lowbit.InputError, match=message):
            lowbit.convert(folder, tmp_path / "out.gguf", format, intermediate=before, verify=False, provenance=False)


def test_the_reference_has_every_mix() -> None:
    for formats in CONVERTED.values():
        assert {key.removesuffix(" imatrix") for key in formats} >= set(MIXES) - {"COPY", "Q1_0"}


def test_orders(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a", layers=12)
    plain = [
        t.name
        for t in lowbit.convert(
            folder, tmp_path / "x.gguf", "BF16", dry_run=True, verify=False, provenance=False
        ).tensors
    ]
    mixed = [
        t.name
        for t in lowbit.convert(
            folder, tmp_path / "x.gguf", "Q8_0", dry_run=True, verify=False, provenance=False
        ).tensors
    ]
    assert mixed == file_order(plain) != plain
    assert mixed.index("blk.2.attn_k.weight") < mixed.index("blk.10.attn_k.weight")
    assert mixed[:2] == ["output_norm.weight", "token_embd.weight"]


@pytest.mark.parametrize("format", ENCODED)
def test_dry_run_tells_the_exact_size_and_writes_nothing(tmp_path: Path, format: str) -> None:
    folder = make_checkpoint(tmp_path / "a", "llama")
    options: dict[str, Any] = {
        "imatrix": write_imatrix(tmp_path / "i.gguf", folder),
        "verify": False,
        "provenance": False,
    }
    report = lowbit.convert(folder, tmp_path / "out.gguf", format.lower(), dry_run=True, **options)
    assert not (tmp_path / "out.gguf").exists()
    assert report.format == format
    written = lowbit.convert(folder, tmp_path / "out.gguf", format, **options)
    assert written == lowbit.convert(folder, tmp_path / "out.gguf", format, dry_run=True, **options)
    assert os.path.getsize(tmp_path / "out.gguf") == report.file_bytes


def test_an_existing_file_is_replaced_or_left_alone(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a")
    path = tmp_path / "out.gguf"
    path.write_bytes(b"before")
    tensors = {name: read(tensor) for name, tensor in Checkpoint(folder).tensors.items()}
    tensors["model.layers.1.mlp.up_proj.weight"][5, 7] = np.nan
    write_shards(folder, tensors, 1)
    with pytest.raises(lowbit.InputError, match=r"tensor blk\.1\.ffn_up\.weight: row 5, column 7"):
        lowbit.convert(folder, path, "Q8_0", verify=False, provenance=False)
    assert path.read_bytes() == b"before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "out.gguf"]
    lowbit.convert(folder, path, "BF16", verify=False, provenance=False)  # floats keep what they are given
    with lowbit.gguf.open(path) as file:
        assert np.isnan(np.float32(file.tensors["blk.1.ffn_up.weight"][5, 7]))


@pytest.mark.parametrize("stage", ["rows", "quantize_rows", "write"])
def test_interrupts_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    folder = make_checkpoint(tmp_path / "a")
    calls = 0
    owner = {"rows": lowbit.hf.checkpoint.StoredTensor, "quantize_rows": lowbit._core, "write": lowbit.gguf.Writer}[
        stage
    ]
    original = getattr(owner, stage)

    def interrupted(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(owner, stage, interrupted)
    with pytest.raises(KeyboardInterrupt):
        lowbit.convert(folder, tmp_path / "out.gguf", "Q8_0", verify=False, provenance=False)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_fallbacks_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_checkpoint(tmp_path / "a", hidden=96, ffn=160, head_dim=24)
    report = lowbit.convert(folder, tmp_path / "out.gguf", "Q4_K_M", verify=False, provenance=False)
    formats = {t.name: t.format for t in report.tensors}
    assert formats["blk.0.attn_q.weight"] == "Q5_0"
    assert formats["blk.1.ffn_down.weight"] in ("Q8_0", "Q5_0")
    assert formats["token_embd.weight"] == "Q8_0"
    assert len(report.fallbacks) == 15
    assert "token_embd.weight: row length 96 is not a multiple of the block size 256: Q6_K -> Q8_0" in caplog.text
    lines = [line for line in caplog.messages if "attn_q" in line]
    reason = "row length 96 is not a multiple of the block size 256: Q4_K -> Q5_0, +1 bits per weight"
    assert lines == [f"blk.*.attn_q.weight: {reason} (2 layers)"]
    odd = make_checkpoint(tmp_path / "b", hidden=80, ffn=160, head_dim=20)
    formats = {
        t.name: t.format
        for t in lowbit.convert(odd, tmp_path / "b.gguf", "Q4_K_M", verify=False, provenance=False).tensors
    }
    assert formats["blk.0.attn_q.weight"] == "F16"
    weights = lowbit.gguf.open(tmp_path / "b.gguf").tensors["blk.0.attn_q.weight"]
    assert weights.dtype == np.float16


def test_weights_too_large_for_float16_are_reported(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a")
    tensors = {name: read(tensor) for name, tensor in Checkpoint(folder).tensors.items()}
    tensors["model.layers.1.mlp.up_proj.weight"][5, 7:9] = 1e5
    tensors["model.layers.1.mlp.up_proj.weight"][6, 7] = -np.inf
    write_shards(folder, tensors, 1)
    report = lowbit.convert(folder, tmp_path / "out.gguf", "F16", verify=False, provenance=False)
    assert report.notes == ["blk.1.ffn_up.weight: 2 weights exceed float16 and became infinite"]
    assert lowbit.convert(folder, tmp_path / "out.gguf", "F32", verify=False, provenance=False).notes == []


def test_unknown_format_and_bad_targets(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a")
    with pytest.raises(lowbit.InputError, match="unknown format 'Q9', expected one of F32, F16"):
        lowbit.convert(folder, tmp_path / "out.gguf", "Q9", verify=False, provenance=False)
    with pytest.raises(lowbit.FileError):
        lowbit.convert(folder, tmp_path / "none" / "out.gguf", "Q8_0", verify=False, provenance=False)
    with pytest.raises(lowbit.InputError, match="not a regular expression"):
        lowbit.convert(
            folder, tmp_path / "out.gguf", "Q8_0", verify=False, provenance=False, tensor_types=[("(", "Q8_0")]
        )
    with pytest.raises(lowbit.InputError, match="Q9"):
        lowbit.convert(
            folder, tmp_path / "out.gguf", "Q8_0", verify=False, provenance=False, tensor_types=[("ffn", "Q9")]
        )


def test_quantize_file_equals_convert(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a")
    lowbit.convert(folder, tmp_path / "bf16.gguf", "BF16", verify=False, provenance=False)
    options = {"tensor_types": [("ffn_(up|gate)", "Q4_0"), ("up", "Q8_0")]}
    for pure in (False, True):
        lowbit.convert(folder, tmp_path / "x.gguf", "Q8_0", pure=pure, verify=False, provenance=False, **options)
        lowbit.quantize_file(tmp_path / "bf16.gguf", tmp_path / "y.gguf", "Q8_0", pure=pure, **options)
        assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "y.gguf").read_bytes()
        with lowbit.gguf.open(tmp_path / "x.gguf") as file:
            assert file.infos["blk.0.ffn_up.weight"].format == "Q4_0"
            assert file.infos["blk.0.ffn_down.weight"].format == "Q8_0"


def test_quantized_files_are_not_quantized_again(tmp_path: Path) -> None:
    lowbit.convert(make_checkpoint(tmp_path / "a"), tmp_path / "q8.gguf", "Q8_0", verify=False, provenance=False)
    with pytest.raises(lowbit.InputError, match=r"token_embd\.weight is already quantized \(Q8_0\)"):
        lowbit.quantize_file(tmp_path / "q8.gguf", tmp_path / "out.gguf", "Q4_0")
    lowbit.quantize_file(tmp_path / "q8.gguf", tmp_path / "copy.gguf", "Q8_0")
    assert (tmp_path / "copy.gguf").read_bytes() == (tmp_path / "q8.gguf").read_bytes()


def test_imatrix(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a", "llama", layers=8)
    values = write_imatrix(tmp_path / "i.gguf", folder)
    report = lowbit.convert(
        folder, tmp_path / "out.gguf", "Q4_0", imatrix=tmp_path / "i.gguf", verify=False, provenance=False
    )
    assert "the importance matrix has no entries for token_embd.weight: encoded without them" in report.notes
    with lowbit.gguf.open(tmp_path / "out.gguf") as file:
        assert file.metadata["quantize.imatrix.entries_count"] == len(values)
        assert file.metadata["quantize.imatrix.chunks_count"] == 4
        assert file.metadata["quantize.imatrix.dataset"] == "text.txt"
        assert file.infos["blk.0.ffn_down.weight"].format == "Q4_1"
        assert file.infos["blk.1.ffn_down.weight"].format == "Q4_0"
        for name in ("blk.1.attn_q.weight", "token_embd.weight"):
            weights = next(read(t) for t in open_checkpoint(folder).tensors if t.name == name)
            packed = lowbit.quantize(weights, "Q4_0", imatrix=values.get(name)).data
            np.testing.assert_array_equal(file.tensors[name].data, packed)
    lowbit.convert(folder, tmp_path / "same.gguf", "Q4_0", imatrix=values, verify=False, provenance=False)
    with lowbit.gguf.open(tmp_path / "same.gguf") as same, lowbit.gguf.open(tmp_path / "out.gguf") as file:
        for name in file.tensors:
            np.testing.assert_array_equal(np.asarray(same.tensors[name].data), np.asarray(file.tensors[name].data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blk.0.attn_q.weight": np.ones(5)}, r"blk\.0\.attn_q\.weight: expected 256 values, got 5"),
        ({"blk.0.attn_q.weight": np.full(256, np.nan)}, "finite"),
        ({"blk.0.attn_q.weight": np.full(256, -1.0)}, "non-negative"),
    ],
)
def test_bad_imatrix(tmp_path: Path, change: dict[str, np.ndarray], message: str) -> None:
    folder = make_checkpoint(tmp_path / "a")
    with pytest.raises(lowbit.InputError, match=message):
        lowbit.convert(folder, tmp_path / "out.gguf", "Q4_0", imatrix=change, verify=False, provenance=False)
    assert not (tmp_path / "out.gguf").exists()


def test_files_that_are_no_imatrix(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a")
    lowbit.convert(folder, tmp_path / "model.gguf", "BF16", verify=False, provenance=False)
    with pytest.raises(lowbit.FormatError, match="not an importance matrix"):
        lowbit.convert(
            folder, tmp_path / "out.gguf", "Q4_0", imatrix=tmp_path / "model.gguf", verify=False, provenance=False
        )
    tensors = {"a.in_sum2": np.ones(4, np.float32), "b.counts": np.ones(1, np.float32)}
    lowbit.gguf.write(tmp_path / "odd.gguf", {"imatrix.chunk_count": 1}, tensors)
    with pytest.raises(lowbit.FormatError, match=r"expected both \.in_sum2 and \.counts"):
        lowbit.convert(
            folder, tmp_path / "out.gguf", "Q4_0", imatrix=tmp_path / "odd.gguf", verify=False, provenance=False
        )


def test_the_embedded_checkpoint(tmp_path: Path) -> None:
    folder = Path(lowbit.__file__).parent / "data" / "bard"
    report = lowbit.convert(folder, tmp_path / "bard.gguf", "Q8_0", verify=False, provenance=False)
    assert report.notes == []
    assert report.bits_per_weight == pytest.approx(8.5, abs=0.02)
    with lowbit.gguf.open(tmp_path / "bard.gguf") as file:
        assert file.metadata["tokenizer.ggml.pre"] == "qwen2"
        assert file.metadata["general.architecture"] == "qwen3"
        assert (
            len(file.metadata["tokenizer.ggml.tokens"])
            == json.loads((folder / "config.json").read_text())["vocab_size"]
        )


def test_every_float_type_has_a_name() -> None:
    assert set(DTYPES) == set(FLOATS)


SLOW = """
import sys, time
import lowbit
write, calls = lowbit.gguf.Writer.write, 0
def slow(self, buffer):
    global calls
    calls += 1
    if calls == int(sys.argv[3]):
        print("here", flush=True)
        time.sleep(600)
    write(self, buffer)
lowbit.gguf.Writer.write = slow
lowbit.convert(sys.argv[1], sys.argv[2], "Q8_0", verify=False, provenance=False)
"""


@pytest.mark.parametrize("call", [1, 12, 24])
@pytest.mark.parametrize("before", [None, b"before"])
def test_a_killed_conversion_leaves_the_name_alone(tmp_path: Path, call: int, before: bytes | None) -> None:
    folder = make_checkpoint(tmp_path / "a")
    path = tmp_path / "out.gguf"
    if before:
        path.write_bytes(before)
    command = [sys.executable, "-c", SLOW, str(folder), str(path), str(call)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.kill()
    assert path.read_bytes() == before if before else not path.exists()


def test_tensors_without_columns(tmp_path: Path) -> None:
    """They are copied; there is nothing in them to quantize, and llama-quantize divides by their columns."""
    keys = {"general.architecture": "llama", "llama.block_count": 1, "llama.attention.head_count": 1}
    tensors = {"blk.0.ffn_up.weight": np.ones((4, 32), np.float32), "blk.0.extra.weight": np.zeros((4, 0), np.float32)}
    lowbit.gguf.write(tmp_path / "a.gguf", keys, tensors)
    for format in ("Q8_0", "Q4_K_M", "F16"):
        for dry_run in (False, True):
            with pytest.raises(
                lowbit.UnsupportedError, match=r"tensor blk\.0\.extra\.weight: F32 \[4, 0\] has empty rows"
            ):
                lowbit.quantize_file(tmp_path / "a.gguf", tmp_path / "b.gguf", format, dry_run=dry_run)
    for format in ("COPY", "F32"):
        lowbit.quantize_file(tmp_path / "a.gguf", tmp_path / "b.gguf", format)
        assert lowbit.gguf.open(tmp_path / "b.gguf").infos["blk.0.extra.weight"].shape == (4, 0)
        (tmp_path / "b.gguf").unlink()
