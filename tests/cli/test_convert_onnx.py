"""lowbit convert of a folder with an ONNX model."""

from __future__ import annotations

import json
from pathlib import Path

from command import run
from tiny_checkpoint import make_checkpoint

import lowbit


def test_convert(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model")
    lowbit.export_onnx(tmp_path / "model", tmp_path / "onnx", format="f32")
    done = run("convert", tmp_path / "onnx", tmp_path / "a.gguf", "--exact", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["num_bytes"] == (tmp_path / "a.gguf").stat().st_size
    assert {fidelity["label"] for fidelity in report["fidelities"].values()} == {"exact"}
    assert lowbit.load(tmp_path / "a.gguf").generate("and", max_tokens=4)


def test_other_options_are_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model")
    lowbit.export_onnx(tmp_path / "model", tmp_path / "onnx", format="f32")
    done = run("convert", tmp_path / "onnx", tmp_path / "a.gguf", "--format", "Q8_0")
    assert done.returncode == 2
    assert "--format" in done.stderr
    done = run("convert", tmp_path / "model", tmp_path / "a.gguf", "--exact")
    assert done.returncode == 2
    assert "--exact" in done.stderr
    assert not (tmp_path / "a.gguf").exists()
