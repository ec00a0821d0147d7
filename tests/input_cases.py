"""Checkpoints that come in other forms: of 8-bit floats. make_inputs.py stores what the reference makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from tiny_checkpoint import FLOAT8, make_checkpoint, write_json, write_safetensors

from lowbit.checkpoint import Checkpoint
from lowbit.tensor_source import read


class Float8Case(NamedTuple):
    """How a checkpoint of 8-bit floats is stored.

    settings: quantization_config. block: rows and columns with one scale; 0: all of them. suffix: of the scale's name.
    """

    settings: dict[str, Any]
    block: tuple[int, int]
    suffix: str
    scale_dtype: Any = np.float32
    scale_axes: int = 2
    dtype: str = "F8_E4M3"
    arch: str = "qwen3"
    in_reference: bool = True


def compressed(strategy: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": strategy, **weights}}
    return {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": group}}


FLOAT8_CASES = {
    "blocks": Float8Case({"quant_method": "fp8", "weight_block_size": [128, 128]}, (128, 128), "_scale_inv"),
    "blocks-cut-off": Float8Case(
        {"quant_method": "fp8", "weight_block_size": [96, 160]}, (96, 160), "_scale_inv", arch="llama"
    ),
    "blocks-bf16-scales": Float8Case(
        {"quant_method": "fp8", "weight_block_size": [128, 128]}, (128, 128), "_scale_inv", ml_dtypes.bfloat16
    ),
    "whole": Float8Case({"quant_method": "fp8", "activation_scheme": "static"}, (0, 0), "_scale_inv", scale_axes=0),
    "compressed-rows": Float8Case(compressed("channel"), (1, 0), "_scale", ml_dtypes.bfloat16, arch="llama"),
    "compressed-blocks": Float8Case(compressed("block", block_structure=[128, 128]), (128, 128), "_scale"),
    "modelopt": Float8Case({"quant_method": "modelopt", "quant_algo": "FP8"}, (0, 0), "_scale", scale_axes=0),
    # What the reference converter refuses.
    "compressed-whole": Float8Case(compressed("tensor"), (0, 0), "_scale", scale_axes=1, in_reference=False),
    "fbgemm": Float8Case({"quant_method": "fbgemm_fp8"}, (1, 0), "_scale", in_reference=False),
    "e5m2": Float8Case({"quant_method": "fp8"}, (0, 0), "_scale", scale_axes=0, dtype="F8_E5M2", in_reference=False),
}


def make_float8(folder: Path, name: str) -> tuple[Path, dict[str, np.ndarray]]:
    """Writes the checkpoint of that name, and returns its folder and what its matrices are, as torch computes it."""
    case = FLOAT8_CASES[name]
    make_checkpoint(folder, case.arch, dtype="F32", seed=len(name), hidden=256, ffn=384, heads=4, kv_heads=1)
    random = np.random.RandomState(7)
    tensors: dict[str, np.ndarray] = {}
    weights: dict[str, np.ndarray] = {}
    for key, stored in Checkpoint(folder).tensors.items():
        values = read(stored)
        if ".layers." not in key or values.ndim == 1:
            tensors[key] = values.astype(ml_dtypes.bfloat16)
            continue
        height, width = (size or whole for size, whole in zip(case.block, values.shape, strict=True))
        num_scales = (-(-values.shape[0] // height), -(-values.shape[1] // width))
        scales = random.uniform(1e-3, 5e-3, num_scales).astype(case.scale_dtype)
        spread = np.kron(scales.astype(np.float32), np.ones((height, width), np.float32))
        spread = spread[: values.shape[0], : values.shape[1]]
        tensors[key] = (values / spread).astype(FLOAT8[case.dtype])
        tensors[key + case.suffix] = scales if case.scale_axes == 2 else scales.reshape((1,) * case.scale_axes)
        if case.settings["quant_method"] != "compressed-tensors":
            tensors[key.removesuffix("weight") + ACTIVATION_SCALES[case.settings["quant_method"]]] = np.ones(
                (), np.float32
            )
        weights[key] = tensors[key].astype(np.float32) * spread
    write_safetensors(folder / "model.safetensors", tensors)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "quantization_config": case.settings})
    return folder, weights


ACTIVATION_SCALES = {"fp8": "activation_scale", "modelopt": "input_scale", "fbgemm_fp8": "input_scale_ub"}
