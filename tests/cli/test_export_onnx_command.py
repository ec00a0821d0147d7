"""`lowbit export onnx` as a shell sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from shell import Result, runner
from tiny_checkpoint import make_checkpoint


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    return runner(capsys, "export", "onnx")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "m", layers=1)


def test_it_writes_a_folder(tmp_path: Path, source: Path, run: Callable[..., Result]) -> None:
    result = run(source, tmp_path / "out", "--format", "int8", "--layout", "standard")
    assert result.returncode == 0
    assert result.stdout.startswith(f"{tmp_path / 'out'}: int8, layout standard, ")
    assert "error of the weights up to 0.00" in result.stdout
    assert {"model.onnx", "model.onnx.data"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_a_dry_run_lists_matrices(tmp_path: Path, source: Path, run: Callable[..., Result]) -> None:
    result = run(source, tmp_path / "out", "--dry-run")
    assert result.returncode == 0
    (row,) = (line for line in result.stdout.splitlines() if "blk.0.ffn_down.weight" in line)
    before, after = str(256 * 512 * 2), str(256 * 512 * 5 // 8)
    assert row.split() == ["blk.0.ffn_down.weight", "256", "x", "512", "BF16", before, "INT4", after, "lossy"]
    assert "would have" in result.stdout
    assert not (tmp_path / "out").exists()


def test_json(tmp_path: Path, source: Path, run: Callable[..., Result]) -> None:
    report = json.loads(run(source, tmp_path / "out", "--format", "q4_k_m", "--json").stdout)
    assert (report["format"], report["layout"], report["written"]) == ("q4_k_m", "genai", True)
    assert {matrix["format"] for matrix in report["matrices"]} == {"Q4_K", "Q6_K"}
    assert report["num_bytes"] > 0


@pytest.mark.parametrize("name", ["cuda", "webgpu", "openvino", "qnn"])
def test_targets(tmp_path: Path, source: Path, run: Callable[..., Result], name: str) -> None:
    lines = run(source, tmp_path / "out", "--target", name).stdout.splitlines()
    assert lines[1].startswith(f"target {name}: checked against ")
    assert lines[1].endswith("; not executed here")
    assert ["RMSNormalization has no kernel" in line for line in lines[2:]] == [True] * (name == "webgpu")
    shapes = ("--tokens", 2, "--past", 6) if name == "qnn" else ()
    found = json.loads(run(source, tmp_path / "json", "--target", name, *shapes, "--json").stdout)["target"]
    assert (found["name"], found["note"]) == (name, lines[1])
    assert [finding["what"] for finding in found["findings"]] == [line.split(": blk")[0] for line in lines[2:]]
    assert json.loads(run(source, tmp_path / "none", "--json").stdout)["target"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "tpu"], "unknown target 'tpu', expected one of cuda"),
        (["--target", "qnn", "--layout", "genai"], "layout: target qnn: expected standard, got genai"),
        (["--format", "q4k"], "unknown format 'q4k', did you mean Q4_K"),
        (["--layout", "onnx"], "expected one of genai, standard"),
        (["--opset", "17"], "layout genai: expected 23 or more"),
        (["--method", "hqq"], "--no-symmetric"),
    ],
    ids=str,
)
def test_wrong_usage(
    tmp_path: Path, source: Path, run: Callable[..., Result], options: list[str], message: str
) -> None:
    result = run(source, tmp_path / "out", *options)
    assert result.returncode == 2
    assert message in result.stderr


def test_what_cannot_be_exported_is_one_line(tmp_path: Path, run: Callable[..., Result]) -> None:
    source = make_checkpoint(tmp_path / "m", arch="llama", layers=1, head_dim=20, hidden=80)
    result = run(source, tmp_path / "out")
    assert result.returncode == 1
    (line,) = (line for line in result.stderr.splitlines() if "lowbit:" in line)
    assert line.endswith("20 values per head: expected a multiple of 8, found 20; use layout standard")
