"""Folders of onnxruntime-genai's builder become GGUF files."""

from __future__ import annotations

import sys
from pathlib import Path
from subprocess import run
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tiny_checkpoint import make_checkpoint

import lowbit
from lowbit import gguf
from lowbit.export.from_onnx import convert_onnx
from lowbit.onnx.reading import open_model

pytestmark = pytest.mark.oracle

BARD = Path(lowbit.__file__).parent / "data" / "bard"


def built(source: Path, folder: Path, precision: str, *options: str) -> Path:
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", folder, "-p", precision]
    run([*command, "-e", "cpu", "-c", folder / "cache", *options], check=True, capture_output=True)
    return folder


def logits(folder: Path, ids: list[int]) -> np.ndarray:
    """Of exact products: accuracy level 4 would round the activations."""
    session: Any = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    feeds = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
    for value in session.get_inputs():
        if value.name.startswith("past"):
            feeds[value.name] = np.zeros((1, 2, 0, 64), np.float32)
    found: np.ndarray = session.run(["logits"], feeds)[0][0]
    return found


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    ("precision", "options", "most"),
    [("fp32", [], 1e-4), ("int4", ["--extra_options", "int4_accuracy_level=1"], 3e-2), ("int8", [], 3e-2)],
)
def test_bard(tmp_path: Path, precision: str, options: list[str], most: float) -> None:
    folder = built(BARD, tmp_path / "onnx", precision, *options)
    report = convert_onnx(folder, tmp_path / "b.gguf")
    model = lowbit.load(tmp_path / "b.gguf")
    ids = model.tokenizer.encode("The ship left the harbour")
    assert ids == lowbit.load_tokenizer(BARD).encode("The ship left the harbour")
    assert error(model.logits(ids), logits(folder, ids)) < most
    if precision == "fp32":
        np.testing.assert_array_equal(model.logits(ids), lowbit.load(BARD).logits(ids))
    with gguf.open(tmp_path / "b.gguf") as file:
        formats = {info.format for name, info in file.infos.items() if len(info.shape) > 1}
        assert file.metadata["general.architecture"] == "qwen3"
    assert formats == {"fp32": {"F32"}, "int4": {"Q4_0"}, "int8": {"Q8_0", "F32"}}[precision]
    assert set(report.fidelities.values()) <= {"exact", "bounded"}


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_rows_of_queries_and_keys(tmp_path: Path, arch: str) -> None:
    """The builder's rows have the checkpoint's order; llama's in GGUF have another one."""
    make_checkpoint(
        tmp_path / "model", arch, tokenizer="llama-bpe", dtype="BF16", config={"rope_scaling": None, "rope_theta": 1e4},
        old_config=True,
    )  # fmt: skip
    folder = built(tmp_path / "model", tmp_path / "onnx", "fp32")
    convert_onnx(folder, tmp_path / "b.gguf", exact=True)
    lowbit.convert(tmp_path / "model", tmp_path / "a.gguf", "F32")
    with gguf.open(tmp_path / "a.gguf") as a, gguf.open(tmp_path / "b.gguf") as b:
        assert a.infos.keys() == b.infos.keys()
        for name in a.infos:
            np.testing.assert_array_equal(a.tensors[name], b.tensors[name], name)
    assert open_model(folder / "model.onnx").nodes
