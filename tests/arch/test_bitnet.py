"""BitNet's checkpoints: what is in them is what is in the file, and what cannot be a ternary matrix is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_checkpoint import edit_json, make_checkpoint, write_safetensors

import lowbit
from lowbit.arch import architectures
from lowbit.arch.families import bitnet
from lowbit.conversion import pipeline
from lowbit.conversion.open import open_checkpoint
from lowbit.hf.checkpoint import Checkpoint
from lowbit.tensors.source import FileRows, read

MATRIX = "model.layers.1.self_attn.k_proj.weight"
FORMS = ("bitnet", "bitnet-bf16")
EXACT = architectures()["bitnet"].exact_formats


def raw(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint as they are stored."""
    result = {}
    for name, tensor in Checkpoint(folder).tensors.items():
        dtype = np.dtype(np.uint8) if tensor.dtype_name == "U8" else tensor.dtype
        result[name] = read(FileRows(name, tensor.shape, dtype, tensor.file, tensor.offset))
    return result


def expected(tensors: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.float32]:
    """A matrix and its scale, by the formulas of transformers' integrations/bitnet.py."""
    stored = tensors[name]
    if stored.dtype == np.uint8:
        values = np.concatenate([stored >> shift & 3 for shift in (0, 2, 4, 6)]).astype(np.float32) - 1
        return values, np.float32(tensors[f"{name}_scale"][0])
    weights = stored.astype(np.float32)
    inverse = np.float32(1) / np.float32(np.abs(weights).mean(dtype=np.float64))
    return np.clip(np.rint(weights * inverse), -1, 1), np.float32(1) / inverse


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("format", [*EXACT, "Q8_0", "Q4_0", "Q2_K"])
def test_which_formats_are_exact(tmp_path: Path, form: str, format: str) -> None:
    """The oracle is gguf-py, which decodes on its own."""
    folder = make_checkpoint(tmp_path / "a", form, shards=2)
    report = lowbit.convert(folder, tmp_path / "out.gguf", format, verify=False, provenance=False)
    assert bool(report.notes) == (format not in EXACT)
    assert all("TQ1_0, TQ2_0 would keep them exactly" in note for note in report.notes)
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    found = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    stored = raw(folder)
    for layer in range(2):
        for gguf_name, name in (("attn_q", "self_attn.q"), ("attn_output", "self_attn.o"), ("ffn_down", "mlp.down")):
            values, scale = expected(stored, f"model.layers.{layer}.{name}_proj.weight")
            assert found[f"blk.{layer}.{gguf_name}.scale"] == [scale]
            assert {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}[
                f"blk.{layer}.{gguf_name}.scale"
            ] == "F32"
            assert np.array_equal(found[f"blk.{layer}.{gguf_name}.weight"], values) == (format in EXACT)


def test_embeddings_keep_more_bits(tmp_path: Path) -> None:
    for form, tied in (("bitnet", True), ("bitnet-bf16", False)):
        folder = make_checkpoint(tmp_path / form, form, tied=tied)
        report = lowbit.convert(folder, tmp_path / "out.gguf", "TQ2_0", verify=False, provenance=False, dry_run=True)
        formats = {tensor.name: tensor.format for tensor in report.tensors}
        assert formats["token_embd.weight"] == ("Q6_K" if tied else "Q4_K")
        assert formats.get("output.weight", "Q6_K") == "Q6_K"
        assert {format for name, format in formats.items() if name.endswith(("_q.weight", "up.weight"))} == {"TQ2_0"}


@pytest.mark.parametrize("form", FORMS)
def test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(bitnet, "CHUNK_WEIGHTS", 1000)  # the mean is of many chunks
    folder = make_checkpoint(tmp_path / "a", form)
    tensors = {tensor.name: tensor for tensor in open_checkpoint(folder).tensors}
    values, scale = expected(raw(folder), MATRIX)
    for start, stop in ((0, 128), (0, 1), (31, 33), (5, 100), (96, 128), (127, 128), (64, 64)):
        part = tensors["blk.1.attn_k.weight"].rows(start, stop)
        np.testing.assert_array_equal(part.astype(np.float32), values[start:stop])
    np.testing.assert_array_max_ulp(read(tensors["blk.1.attn_k.scale"]), np.array([scale]), 1)


def test_metadata(tmp_path: Path) -> None:
    metadata = open_checkpoint(make_checkpoint(tmp_path / "a", "bitnet")).metadata
    names = [key for key in metadata if key.startswith("bitnet.")]
    assert names[-3:] == ["bitnet.rope.scaling.type", "bitnet.rope.scaling.factor", "bitnet.hidden_activation"]
    assert metadata["bitnet.hidden_activation"] == "relu2"
    assert metadata["bitnet.rope.freq_base"] == 10000.0


@pytest.mark.parametrize("format", ["F16", "TQ1_0", "TQ2_0"])
@pytest.mark.parametrize("form", FORMS)
def test_the_way_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, format: str) -> None:
    """A packed checkpoint comes back as it was, master weights as a packed one that makes the same file."""
    monkeypatch.setattr(pipeline, "CHUNK_WEIGHTS", 5000)
    folder = make_checkpoint(tmp_path / "a", form, tied=form == "bitnet")
    lowbit.convert(folder, tmp_path / "a.gguf", format, verify=False, provenance=False)
    report = lowbit.export_hf(tmp_path / "a.gguf", tmp_path / "hf", dtype="F32")
    assert report.notes == []
    lowbit.convert(tmp_path / "hf", tmp_path / "b.gguf", format, verify=False, provenance=False)
    with lowbit.gguf.open(tmp_path / "a.gguf") as a, lowbit.gguf.open(tmp_path / "b.gguf") as b:
        assert list(a.metadata) == list(b.metadata)
        for key, value in a.metadata.items():
            np.testing.assert_array_equal(value, b.metadata[key], key)
        assert a.infos == b.infos
        for name in (name for name, info in a.infos.items() if info.format in EXACT):  # not the embeddings in Q6_K
            assert np.array_equal(_values(a.tensors[name]), _values(b.tensors[name])), name
    stored, back = raw(folder), raw(tmp_path / "hf")
    assert back[MATRIX].dtype == np.uint8
    if form == "bitnet":
        assert back.keys() == stored.keys()
        assert all(np.array_equal(back[name], stored[name]) for name in stored if "_proj.weight" in name)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["hidden_act"] == "relu2"
    settings = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
    assert config["quantization_config"] == settings


def _values(tensor: Any) -> np.ndarray:
    """Master weights may have left a zero its sign, which no packed form has."""
    return np.asarray(tensor.dequantize() if isinstance(tensor, lowbit.QTensor) else tensor)


def test_what_is_not_ternary_makes_no_folder(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a", "bitnet")
    lowbit.convert(folder, tmp_path / "a.gguf", "Q8_0", verify=False, provenance=False)
    with pytest.raises(lowbit.UnsupportedError, match=r"blk\.0\.ffn_down\.weight: .* at row .*, expected -1, 0 or 1"):
        lowbit.export_hf(tmp_path / "a.gguf", tmp_path / "hf")
    lowbit.convert(
        folder,
        tmp_path / "a.gguf",
        "TQ2_0",
        override_kv={"bitnet.hidden_activation": "silu"},
        verify=False,
        provenance=False,
    )
    with pytest.raises(lowbit.UnsupportedError, match=r"hidden_activation is 'silu'"):
        lowbit.export_hf(tmp_path / "a.gguf", tmp_path / "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.gguf"]


def test_the_default_base_is_bitnets(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a", "bitnet")
    change_config(folder, rope_parameters=None)
    assert open_checkpoint(folder).metadata["bitnet.rope.freq_base"] == 500000.0


def test_scales_that_divide(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a", "bitnet")
    change_config(folder, quantization_config={"quant_method": "bitnet"})  # transformers' default is "bitlinear"
    scale = next(read(t) for t in open_checkpoint(folder).tensors if t.name == "blk.1.attn_k.scale")
    assert scale == np.float32(1) / expected(raw(folder), MATRIX)[1]


def change_config(folder: Path, **changes: Any) -> None:
    edit_json(folder / "config.json", changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": None}, "'quantization_config' is 'None', expected an object"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"quantization_config": {"quant_method": "bitnet", "linear_class": 3}}, "'linear_class' is '3'"),
        ({"quantization_config": {"quant_method": "bitnet", "linear_class": "x"}}, "expected bitlinear or autobitl"),
        ({"quantization_config": {"quant_method": "bitnet", "quantization_mode": "x"}}, "expected offline or online"),
        ({"quantization_config": {"quant_method": "bitnet", "use_rms_norm": True}}, "use_rms_norm is set"),
        ({"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": ["x"]}}, "modules_to_not"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu', expected relu2 in the bitnet architecture"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}, "rope_type is 'linear'"),
        ({"head_dim": 32}, "head_dim is 32, expected hidden_size"),
    ],
)
def test_refused_settings(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = make_checkpoint(tmp_path / "a", "bitnet")
    change_config(folder, **changes)
    with pytest.raises((lowbit.FormatError, lowbit.UnsupportedError), match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (MATRIX, np.zeros((32, 255), np.uint8), r"has shape \[128, 255\], expected \[128, 256\] from config.json"),
        (MATRIX, np.zeros((128, 256), np.float32), r"is F32 \[128, 256\], expected a matrix of U8"),
        (MATRIX, np.zeros((32 * 256,), np.uint8), r"is U8 \[8192\], expected a matrix of U8"),
        (MATRIX + "_scale", np.ones(2, np.float32), r"has shape \[2\], expected \[1\]"),
        (MATRIX + "_scale", np.ones((), np.float32), r"has shape \[\], expected \[1\]"),
        (MATRIX + "_scale", None, r"1 tensors are missing: model\.layers\.1\.self_attn\.k_proj\.weight_scale"),
        ("model.embed_tokens.weight", np.zeros((288, 256), np.uint8), "has type U8"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, name: str, value: np.ndarray | None, message: str) -> None:
    folder = make_checkpoint(tmp_path / "a", "bitnet")
    tensors = raw(folder) | {name: value}
    write_safetensors(folder / "model.safetensors", {key: w for key, w in tensors.items() if w is not None})
    with pytest.raises((lowbit.FormatError, lowbit.UnsupportedError), match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("linear_class", ["bitlinear", "autobitlinear"])
def test_scales_that_are_none(tmp_path: Path, value: float, linear_class: str) -> None:
    folder = make_checkpoint(tmp_path / "a", "bitnet")
    change_config(folder, quantization_config={"quant_method": "bitnet", "linear_class": linear_class})
    write_safetensors(folder / "model.safetensors", raw(folder) | {MATRIX + "_scale": np.float32([value])})
    with pytest.raises(lowbit.FormatError, match=r"k_proj\.weight_scale' gives a scale of .*, expected a positive"):
        lowbit.convert(folder, tmp_path / "out.gguf", "TQ2_0", verify=False, provenance=False)
    assert not (tmp_path / "out.gguf").exists()


def test_codes_that_are_none(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a", "bitnet")
    codes = raw(folder)[MATRIX]
    codes[3, 7] |= 3 << 4
    write_safetensors(folder / "model.safetensors", raw(folder) | {MATRIX: codes})
    with pytest.raises(lowbit.FormatError, match=r"k_proj\.weight' has code 3 at row 67, column 7, expected 0, 1 or 2"):
        lowbit.convert(folder, tmp_path / "out.gguf", "TQ2_0", verify=False, provenance=False)


def test_master_weights_that_have_no_mean(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a", "bitnet-bf16", dtype="F32")
    tensors = raw(folder)
    write_safetensors(folder / "model.safetensors", tensors | {MATRIX: np.zeros_like(tensors[MATRIX])})
    converted = {tensor.name: tensor for tensor in open_checkpoint(folder).tensors}
    assert not read(converted["blk.1.attn_k.weight"]).any()
    assert read(converted["blk.1.attn_k.scale"]) == pytest.approx(1e-5)
    tensors[MATRIX][5, 6] = np.nan
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(lowbit.FormatError, match=r"k_proj\.weight' gives a scale of nan"):
        lowbit.convert(folder, tmp_path / "out.gguf", "TQ2_0", verify=False, provenance=False)
