"""Checkpoints that come in other forms: of 8-bit floats. make_inputs.py stores what the reference makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from tiny_checkpoint import FLOAT8, edit_json, make_checkpoint, write_json, write_safetensors

from lowbit.hf.checkpoint import INDEX, Checkpoint
from lowbit.tensors.source import read


def _sharded(folder: Path, tensors: dict[str, np.ndarray], prefix: str = "model", index: str = INDEX) -> None:
    """Two files and their index."""
    names, where = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"{prefix}-0000{i + 1}-of-00002.safetensors"
        write_safetensors(folder / file, {name: tensors[name] for name in part})
        where |= dict.fromkeys(part, file)
    write_json(folder / index, {"metadata": {"total_size": 0}, "weight_map": where})


#: What lies in a folder, in the order in which it is written -> the one of 1, 2, 3 that is taken, and what is left.
SOURCE_CASES: dict[str, tuple[list[str], int, str]] = {
    "an old index": (["shards", "no shards", "single"], 2, "model.safetensors.index.json"),
    "shards and one file": (
        ["shards", "single"],
        2,
        "model-00001-of-00002.safetensors, model-00002-of-00002.safetensors",
    ),
    "an index of the one file": (["single", "index of single"], 1, "model.safetensors.index.json"),
    "the maker's form, too": (["shards", "consolidated"], 1, "consolidated.safetensors"),
    "a variant": (["single", "variant"], 1, "model.fp16.safetensors"),
    "a variant in shards": (["shards", "variant shards"], 1, "model.fp16-00001-of-00002.safetensors"),
    "pickles": (["single", "pickle", "old pickle"], 1, "consolidated.00.pth, pytorch_model.bin"),
    "shards of another number": (["shards", "stray shard"], 1, "model-00001-of-00003.safetensors"),
    "a file by name": (["single", "other", "named other"], 2, "model.safetensors"),
    "an index by name": (["single", "other shards", "named index"], 2, "model.safetensors"),
}


def make_sources(folder: Path, case: str) -> tuple[Path, int, str]:
    """A checkpoint with several sets of weights, set i times i: (folder, the one to take, what is left)."""
    parts, taken, left = SOURCE_CASES[case]
    make_checkpoint(folder, "qwen3", dtype="F32", layers=1, hidden=64, ffn=96, head_dim=16)
    first = {name: read(tensor) for name, tensor in Checkpoint(folder).tensors.items()}
    (folder / "model.safetensors").unlink()
    sets = iter({name: value * np.float32(i) for name, value in first.items()} for i in (1, 2, 3))
    for part in parts:
        if part in ("single", "consolidated", "variant", "other", "stray shard"):
            name = {"single": "model", "variant": "model.fp16", "stray shard": "model-00001-of-00003"}.get(part, part)
            write_safetensors(folder / f"{name}.safetensors", next(sets))
        elif part.endswith("shards") and part != "no shards":
            prefix = {"shards": "model", "variant shards": "model.fp16", "other shards": "other"}[part]
            index = {"shards": INDEX, "other shards": "other.safetensors.index.json"}.get(part, f"{INDEX}.fp16.json")
            _sharded(folder, next(sets), prefix, index)
        elif part == "no shards":
            for path in folder.glob("model-*"):
                path.unlink()
        elif part == "index of single":
            write_json(
                folder / INDEX, {"weight_map": {"model.norm.weight": "model.safetensors", "none": "gone.safetensors"}}
            )
        elif part.startswith("named"):
            name = "other.safetensors" + (".index.json" if part == "named index" else "")
            edit_json(folder / "config.json", {"transformers_weights": name})
        else:
            (folder / {"pickle": "pytorch_model.bin", "old pickle": "consolidated.00.pth"}[part]).write_bytes(b"pickle")
    return folder, taken, left


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
