"""Checkpoints of 8-bit floats: the files that the reference makes of them, and one error for each thing amiss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from input_cases import FLOAT8_CASES, compressed, make_float8
from stored import difference, stored
from tiny_checkpoint import make_checkpoint, write_json, write_safetensors

import lowbit
from lowbit.hf.checkpoint import Checkpoint
from lowbit.hf.imports.fp8 import dequantize
from lowbit.tensors.source import read

REFERENCE = stored("inputs")


@pytest.mark.parametrize("name", REFERENCE)
def test_the_file_of_the_reference_tools(tmp_path: Path, name: str) -> None:
    """data/inputs.json.xz: checkpoint -> format -> fingerprint of the file (make_inputs.py)."""
    folder, _ = make_float8(tmp_path / name, name)
    for format, expected in REFERENCE[name].items():
        lowbit.convert(folder, tmp_path / "out.gguf", format, verify=False, provenance=False)
        assert difference(tmp_path / "out.gguf", expected) is None, format


def test_the_reference_has_all_that_it_takes() -> None:
    assert REFERENCE.keys() == {name for name, case in FLOAT8_CASES.items() if case.in_reference}


@pytest.mark.parametrize("name", FLOAT8_CASES)
def test_weights_are_products_with_their_scales(tmp_path: Path, name: str) -> None:
    folder, weights = make_float8(tmp_path / "a", name)
    checkpoint = Checkpoint(folder)
    dequantize(checkpoint, ())
    for key, expected in weights.items():
        tensor = checkpoint.tensors[key]
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(read(tensor), expected)
        for start, stop in ((0, 0), (1, 1), (3, 64), (50, len(expected)), (len(expected) - 5, len(expected))):
            np.testing.assert_array_equal(tensor.rows(start, stop), expected[start:stop])
    assert [key for key in checkpoint.tensors if "scale" in key] == []


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_every_byte(tmp_path: Path, dtype: str) -> None:
    kind = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}[dtype]
    values = np.arange(256, dtype=np.uint8).view(kind)
    folder = make_checkpoint(tmp_path / "a")
    write_safetensors(
        folder / "model.safetensors", {"even": values.reshape(2, 128), "odd": values[:255].reshape(1, 255)}
    )
    checkpoint = Checkpoint(folder)
    dequantize(checkpoint, ())  # without settings a tensor without a scale is what its bytes say
    np.testing.assert_array_equal(read(checkpoint.tensors["even"]).reshape(-1), values.astype(np.float32))
    np.testing.assert_array_equal(read(checkpoint.tensors["odd"]).reshape(-1), values[:255].astype(np.float32))


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
W, S = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight_scale_inv"
ONES = np.ones((256, 256), ml_dtypes.float8_e4m3fn)
TWO = np.ones((2, 2), np.float32)
BROKEN: dict[str, tuple[dict[str, Any], dict[str, np.ndarray], str]] = {
    "no scale": (FP8, {W: ONES}, "is F8_E4M3 with no scale"),
    "two scales": (FP8, {W: ONES, S: TWO, W + "_scale": TWO}, "with .*weight_scale_inv and .*weight_scale"),
    "scales of another shape": (FP8, {W: ONES, S: TWO[:1]}, r"scales \[1, 2\] for .*\[128, 128\], expected \[2, 2\]"),
    "as many, turned": (FP8, {W: ONES[:128], S: TWO[:, :1]}, r"scales \[2, 1\] for .*, expected \[1, 2\]"),
    "rows, none": ({"quant_method": "fp8"}, {W: ONES, S: TWO}, r"scales \[2, 2\] for .*, expected \[256, 1\]"),
    "NaN": (FP8, {W: ONES, S: np.float32([[1, 1], [np.nan, 1]])}, r"its scale at \[1, 0\] is nan"),
    "infinite": ({"quant_method": "fp8"}, {W: ONES, S: np.float32(np.inf).reshape(())}, r"its scale at \[\] is inf"),
    "packed scales": (FP8, {W: ONES, S: ONES[:2, :2]}, "has type F8_E4M3, expected scales in one of F32"),
    "a cube": (FP8, {W: ONES.reshape(2, 128, 256), S: TWO}, "expected a matrix"),
    "block of text": ({**FP8, "weight_block_size": "big"}, {W: ONES, S: TWO}, "block size big"),
    "block of nothing": ({**FP8, "weight_block_size": [0, 128]}, {W: ONES, S: TWO}, r"block size \[0, 128\]"),
    "huge block": ({**FP8, "weight_block_size": [1 << 62, 1]}, {W: ONES, S: TWO}, "block size"),
    "two kinds of blocks": (
        {**compressed("block", block_structure=[64, 64]), "weight_block_size": [128, 128]},
        {W: ONES, S: TWO},
        r"blocks of \[128, 128\] and of \[64, 64\]",
    ),
    "settings of text": ("fp8", {W: ONES, S: TWO}, "'quantization_config' is 'fp8', expected an object"),  # type: ignore[dict-item]
    "gptq": ({"quant_method": "gptq", "bits": 4}, {}, r"quantized \(gptq\).*base_model in its README"),
    "awq": ({"quant_method": "awq"}, {}, r"quantized \(awq\)"),
    "bitnet elsewhere": ({"quant_method": "bitnet"}, {}, r"quantized \(bitnet\)"),
    "bitsandbytes": ({"quant_method": "bitsandbytes"}, {}, r"dequantize\(\)\.save_pretrained"),
    "old bitsandbytes": ({"load_in_4bit": True}, {}, r"quantized \(bitsandbytes\)|quantized \(None\)"),
    "mxfp4": ({"quant_method": "mxfp4"}, {}, r"Mxfp4Config\(dequantize=True\)"),
    "packed integers": ({**compressed("group"), "format": "pack-quantized"}, {}, r"compressed-tensors, pack-quantized"),
    "nvfp4": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, {}, r"modelopt, NVFP4"),
    "sparse": ({**compressed("channel"), "sparsity_config": {"format": "sparse-24-bitmask"}}, {}, "is sparse"),
    "a method of no kind": ({"quant_method": ["x"]}, {}, "quantized"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_refusals(tmp_path: Path, case: str) -> None:
    settings, tensors, message = BROKEN[case]
    folder = make_checkpoint(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "quantization_config": settings})
    if tensors:
        write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises((lowbit.FormatError, lowbit.UnsupportedError), match=message) as caught:
        lowbit.convert(folder, tmp_path / "out.gguf", "Q8_0", verify=False, provenance=False)
    assert "\n" not in str(caught.value)
    assert "'X.weight'" not in str(caught.value)
    if tensors:
        assert W in str(caught.value) or "config.json" in str(caught.value)


def test_activation_scales_are_said(tmp_path: Path) -> None:
    folder, _ = make_float8(tmp_path / "a", "whole")
    report = lowbit.convert(folder, tmp_path / "out.gguf", "Q8_0", verify=False, provenance=False, dry_run=True)
    assert "14 scales of 8-bit activations are left out" in report.notes


def test_a_folder_of_8_bit_floats_runs(tmp_path: Path) -> None:
    folder, _ = make_float8(tmp_path / "a", "blocks")
    lowbit.convert(folder, tmp_path / "out.gguf", "F32", verify=False, provenance=False)
    ids = [1, 5, 9, 20]
    from_folder = lowbit.load(folder, compute="f32").logits(ids)
    np.testing.assert_allclose(from_folder, lowbit.load(tmp_path / "out.gguf", compute="f32").logits(ids), rtol=1e-5)
