"""Exports for execution providers run on the CPU, with lowbit's logits on the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exported_models import Array, Run, cache_of, empty_cache, in_onnxruntime, in_openvino, in_steps, relative
from random_network import random_ids
from tiny_checkpoint import make_checkpoint

import lowbit

pytestmark = pytest.mark.oracle

#: Of logits, if scales are rounded to float16, as Q4_0 has them.
ROUNDED = 5e-3
FAMILIES = ("llama", "qwen3", "gemma3")


def exported(tmp_path: Path, arch: str, provider: str, **options: Any) -> tuple[Path, lowbit.Model]:
    """A model for a provider, and lowbit's model with its weights."""
    source = make_checkpoint(tmp_path / "m", arch)
    lowbit.export_onnx(source, tmp_path / "out", provider=provider, **options)
    onnx.checker.check_model(tmp_path / "out" / "model.onnx")
    lowbit.convert_onnx(tmp_path / "out", tmp_path / "same.gguf")
    return tmp_path / "out" / "model.onnx", lowbit.load(tmp_path / "same.gguf", compute="f32")


@pytest.mark.parametrize("arch", FAMILIES)
@pytest.mark.parametrize("provider", ["cuda", "webgpu"])
def test_float16_in_onnxruntime(tmp_path: Path, arch: str, provider: str) -> None:
    path, model = exported(tmp_path, arch, provider, accuracy_level=0)
    ids = random_ids(model.spec, 24)
    found = in_steps(in_onnxruntime(path), model.spec, ids, [20, 1, 1, 1, 1], np.float16)
    assert relative(found, model.logits(ids)) < 1e-2


@pytest.mark.parametrize("arch", FAMILIES)
def test_openvino(tmp_path: Path, arch: str) -> None:
    path, model = exported(tmp_path, arch, "openvino")
    ids = random_ids(model.spec, 24)
    found = in_steps(in_openvino(path), model.spec, ids, [20, 1, 1, 1, 1])
    assert relative(found, model.logits(ids)) < ROUNDED


TOKENS, PAST = 4, 12


@pytest.mark.parametrize("arch", FAMILIES)
@pytest.mark.parametrize("format", ["f32", "int4"])
def test_fixed_shapes(tmp_path: Path, arch: str, format: str) -> None:
    """Caches are filled from the left with tokens that are hidden."""
    path, model = exported(tmp_path, arch, "qnn", format=format, tokens=TOKENS, past=PAST)
    ids = random_ids(model.spec, PAST + TOKENS).astype(np.int64)
    limit = 1e-4 if format == "f32" else ROUNDED
    assert relative(in_fixed_steps(in_onnxruntime(path), model, ids), model.logits(ids)) < limit


def in_fixed_steps(run: Run, model: lowbit.Model, ids: Array) -> Array:
    past = {
        name: np.zeros((1, each.shape[1], PAST, each.shape[3]), each.dtype)
        for name, each in empty_cache(model.spec).items()
    }
    logits = []
    for start in range(0, len(ids), TOKENS):
        hidden = PAST - start
        mask = np.repeat([0, 1], [hidden, start + TOKENS])[None]
        outputs = run({"input_ids": ids[None, start : start + TOKENS], "attention_mask": mask, **past})
        past = {name: each[:, :, TOKENS:] for name, each in cache_of(outputs, model.spec).items()}
        logits.append(outputs["logits"][0])
    return np.concatenate(logits)
