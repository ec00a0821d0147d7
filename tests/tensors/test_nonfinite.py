"""Weights that are NaN or infinite: every command that meets them names the tensor and the place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import make_checkpoint, write_safetensors

import lowbit
from lowbit.evaluate.bench import bench
from lowbit.hf.checkpoint import Checkpoint
from lowbit.tensors.source import read

UP = "model.layers.0.mlp.up_proj.weight"
TEXT = "the and in on " * 40


def damaged(folder: Path, value: float, dtype: str = "BF16", name: str = UP, place: Any = (300, 7)) -> Path:
    """A checkpoint with one weight that is `value`."""
    make_checkpoint(folder, layers=1, dtype=dtype)
    tensors = {key: read(tensor) for key, tensor in Checkpoint(folder).tensors.items()}
    tensors[name][place] = value
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.mark.parametrize(("value", "word"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_quantizing(tmp_path: Path, value: float, word: str) -> None:
    folder = damaged(tmp_path / "a", value)
    expected = (
        rf"tensor blk\.0\.ffn_up\.weight: row 300, column 7 is {word}, but Q8_0 .* finite .* damaged, use another"
    )
    with pytest.raises(lowbit.InputError, match=expected) as caught:
        lowbit.convert(folder, tmp_path / "out.gguf", "Q8_0", verify=False, provenance=False)
    assert "allow" not in str(caught.value)
    assert caught.value.tensor is not None
    assert not (tmp_path / "out.gguf").exists()
    lowbit.convert(folder, tmp_path / "bf16.gguf", "BF16", verify=False, provenance=False)
    with pytest.raises(lowbit.InputError, match=expected):
        lowbit.quantize_file(tmp_path / "bf16.gguf", tmp_path / "out.gguf", "Q8_0")


def test_too_large_for_the_intermediate_format(tmp_path: Path) -> None:
    folder = damaged(tmp_path / "a", 1e6, "F32")
    with pytest.raises(lowbit.InputError, match=r"row 300, column 7 is inf in F16: intermediate BF16 or F32"):
        lowbit.convert(folder, tmp_path / "out.gguf", "Q8_0", intermediate="F16", verify=False, provenance=False)
    lowbit.convert(folder, tmp_path / "out.gguf", "Q8_0", verify=False, provenance=False)


@pytest.mark.parametrize("format", ["BF16", "F32", "F16"])
def test_floats_keep_them_and_say_so(tmp_path: Path, format: str) -> None:
    folder = damaged(tmp_path / "a", np.nan)
    report = lowbit.convert(folder, tmp_path / "out.gguf", format, verify=True, provenance=False)
    note = "in blk.0.ffn_up.weight row 300, column 7 is nan, as in the source: the weights are damaged"
    assert [text for text in report.notes if text.startswith(note)]
    check = next(c for c in lowbit.verify(tmp_path / "out.gguf", folder).checks if c.name == "tensors")
    assert check.ok
    assert note in check.detail


def test_verification_of_what_differs(tmp_path: Path) -> None:
    folder, whole = damaged(tmp_path / "a", np.nan), make_checkpoint(tmp_path / "b", layers=1)
    lowbit.convert(folder, tmp_path / "a.gguf", "BF16", verify=False, provenance=False)
    lowbit.convert(whole, tmp_path / "b.gguf", "Q8_0", verify=False, provenance=False)
    for path, source, message in (
        ("a.gguf", whole, "blk.0.ffn_up.weight (BF16) is not finite in row 300, but the source is"),
        (
            "b.gguf",
            folder,
            "blk.0.ffn_up.weight (Q8_0) cannot be compared: in the source row 300, column 7 is nan; the weights",
        ),
    ):
        verdict = lowbit.verify(tmp_path / path, source)
        assert message in verdict.failures


@pytest.mark.parametrize(
    ("name", "place", "expected"),
    [
        (UP, (300, 7), r"in tensor blk\.0\.ffn_up\.weight row 300, column 7 is nan; the weights are damaged"),
        ("model.norm.weight", 200, r"in tensor output_norm\.weight row 0, column 200 is nan; the weights are damaged"),
    ],
)
def test_running(tmp_path: Path, name: str, place: Any, expected: str) -> None:
    folder = damaged(tmp_path / "a", np.nan, name=name, place=place)
    lowbit.convert(folder, tmp_path / "a.gguf", "BF16", verify=False, provenance=False)
    for path in (folder, tmp_path / "a.gguf"):
        model = lowbit.load(path, threads=1)
        with pytest.raises(lowbit.InputError, match=f"none of the 288 logits is a finite number: {expected}") as caught:
            model.generate("the", max_tokens=2)
        assert f"in tensor {caught.value.tensor} row" in str(caught.value)
        with pytest.raises(lowbit.InputError, match=f"the model's predictions are not finite: {expected}"):
            lowbit.evaluate.perplexity(model, TEXT, context=16, threads=1)
        with pytest.raises(lowbit.InputError, match=f"logits are not finite: {expected}"):
            bench(path, prompt_tokens=8, new_tokens=2, repetitions=1, threads=1)
        if name == UP:
            with pytest.raises(lowbit.InputError, match=rf"inputs of blk\.0\.ffn_down\.weight .*: {expected}"):
                lowbit.imatrix.collect(model, TEXT, context=16)
