"""`lowbit onnx` as a shell sees it, in the modes that need no other package."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_networks as networks
import pytest
from shell import Result, runner

import lowbit
from lowbit.cli import onnx as command


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    return runner(capsys, "onnx")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.onnx"
    lowbit.onnx.write(path, networks.transformer())
    return path


def test_the_table_groups_nodes(source: Path, tmp_path: Path, run: Callable[..., Result]) -> None:
    out = tmp_path / "out.onnx"
    result = run("quantize", source, out, "--mode", "dynamic", "--exclude-nodes", "l0_q_m/*", "--exclude-nodes", "y/*")
    assert (result.returncode, result.stderr) == (0, "")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[:5] for line in lines if line[:1] == ["MatMul"] and "channel" in line] == [
        ["MatMul", "int8", "per", "channel", "11"]
    ]
    assert "node is excluded" in result.stdout
    assert "l0_q_m/MatMul, y/MatMul" in result.stdout
    assert "dynamic weight" in result.stdout
    assert "l0_qk/MatMul, l0_av/MatMul, l1_qk/MatMul and 1 more" in " ".join(result.stdout.split())
    assert lines[-1][:7] == [f"{out}:", "dynamic,", "12", "nodes", "quantized,", "6", "stay"]
    excluded = {node.name: node for node in lowbit.onnx.open(out).nodes}
    assert excluded["l0_q_m/MatMul"].op_type == "MatMul"


def test_json_is_the_report(source: Path, tmp_path: Path, run: Callable[..., Result]) -> None:
    out = tmp_path / "out.onnx"
    found = json.loads(run("quantize", source, out, "--mode", "dynamic", "--json").stdout)
    report = lowbit.onnx.quantize(source, tmp_path / "same.onnx", mode="dynamic")
    assert out.read_bytes() == (tmp_path / "same.onnx").read_bytes()
    assert found["nodes"] == [vars(node) for node in report.nodes]
    assert found["bytes_before"] == source.stat().st_size
    assert found["bytes_after"] == out.stat().st_size
    assert found["written"] is True


def test_a_dry_run_writes_nothing(source: Path, tmp_path: Path, run: Callable[..., Result]) -> None:
    out = tmp_path / "out.onnx"
    result = run("quantize", source, out, "--mode", "dynamic", "--dry-run")
    assert result.returncode == 0
    assert f"{out}: would be dynamic, 14 nodes quantized" in result.stdout
    assert (
        json.loads(run("quantize", source, out, "--mode", "dynamic", "--dry-run", "--json").stdout)["written"] is False
    )
    assert [*tmp_path.iterdir()] == [source]


def test_the_source_is_not_replaced(source: Path, run: Callable[..., Result]) -> None:
    before = source.read_bytes()
    result = run("quantize", source, source, "--mode", "dynamic")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"lowbit: {source}: would replace a file that is being read: write to another path\n"
    assert source.read_bytes() == before


def test_weights_beside_the_model(source: Path, tmp_path: Path, run: Callable[..., Result]) -> None:
    for option, names in (("--external-data", ["out.onnx", "out.onnx.data"]), ("--no-external-data", ["out.onnx"])):
        folder = tmp_path / option
        folder.mkdir()
        assert run("quantize", source, folder / "out.onnx", "--mode", "dynamic", option).returncode == 0
        assert sorted(path.name for path in folder.iterdir()) == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode", "int8"], "mode: expected one of dynamic, static, weight-only, float16, bfloat16, got 'int8'"),
        (["--mode", "dynamic", "--smooth", "0.5"], "smooth is an option of mode static, not of dynamic"),
        (["--mode", "static", "--format", "QD"], "format: expected one of QDQ, QOperator, got 'QD'"),
        (["--mode", "weight-only", "--node-bits", "8"], "'8': expected PATTERN=BITS"),
        (["--mode", "weight-only", "--node-bits", "a=99"], "bits: expected 1 to 8, got 99"),
        ([], "--mode"),
    ],
)
def test_wrong_usage(
    arguments: list[str], message: str, source: Path, tmp_path: Path, run: Callable[..., Result]
) -> None:
    result = run("quantize", source, tmp_path / "out.onnx", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert [*tmp_path.iterdir()] == [source]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode", "dynamic", "--exclude-nodes", "l9*"], "exclude_nodes: no node of the model matches 'l9*'"),
        (["--mode", "static"], "calibration: expected typical inputs, got none"),
        (
            ["--mode", "static", "--calibration", "no.npz"],
            "running a model needs onnxruntime: pip install 'lowbit[onnx]'",
        ),
    ],
)
def test_work_that_fails(
    arguments: list[str],
    message: str,
    source: Path,
    tmp_path: Path,
    run: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = run("quantize", source, tmp_path / "out.onnx", *arguments)
    assert (result.returncode, result.stdout) == (1, "")
    assert message in result.stderr
    assert [*tmp_path.iterdir()] == [source]


def test_each_option_arrives(
    source: Path, tmp_path: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def quantize(source: Path, target: str, **options: Any) -> Any:
        given.update(options)
        return lowbit.onnx.QuantizeReport(target, options["mode"], [], 2, 1)

    monkeypatch.setattr(lowbit.onnx, "quantize", quantize)
    options = [
        *("--include-nodes", "l0*", "--include-nodes", "y*", "--exclude-nodes", "l1*", "--include-operators", "MatMul"),
        *("--exclude-operators", "Add", "--format", "QOperator", "--activations", "int8", "--symmetric-activations"),
        *("--no-per-channel", "--calibration", "d/*.npz", "--calibration-method", "mse", "--percentile", "99"),
        *("--batch-size", "4", "--smooth", "0.25", "--no-bias-correction", "--no-search", "--max-error", "0.5"),
        *("--inputs", "i.npz", "--threads", "3"),
    ]
    assert run("quantize", source, tmp_path / "out.onnx", "--mode", "static", *options).returncode == 0
    expected = {
        "include_nodes": ("l0*", "y*"),
        "exclude_nodes": ("l1*",),
        "include_operators": ("MatMul",),
        "exclude_operators": ("Add",),
        "format": "QOperator",
        "activations": "int8",
        "symmetric_activations": True,
        "per_channel": False,
        "calibration": "d/*.npz",
        "calibration_method": "mse",
        "percentile": 99.0,
        "batch_size": 4,
        "smooth": 0.25,
        "bias_correction": False,
        "search": False,
        "max_error": 0.5,
        "inputs": "i.npz",
        "threads": 3,
    }
    assert {name: given[name] for name in expected} == expected
    run("quantize", source, tmp_path / "out.onnx", "--mode", "weight-only", "--bits", "2", "--node-bits", "a=b*=8")
    assert given["bits"] == {"a=b*": 8, "*": 2}
    run("quantize", source, tmp_path / "out.onnx", "--mode", "weight-only", "--node-bits", "*=8")
    assert given["bits"] == {"*": 8}
    np.savez(tmp_path / "i.npz", a=np.ones(3, np.float32))
    words = ["--block-size", "64", "--no-symmetric", "--accuracy-level", "0", "--standard"]
    run("quantize", source, tmp_path / "out.onnx", "--mode", "weight-only", *words, "--importances", tmp_path / "i.npz")
    expected = {"block_size": 64, "symmetric": False, "accuracy_level": 0, "standard": True, "method": "search"}
    assert {name: given[name] for name in expected} == expected
    assert [*given["importances"]] == ["a"]


def test_the_command_has_every_option() -> None:
    known = {option.name for option in dataclasses.fields(lowbit.onnx.OnnxOptions)}
    parameters = {*inspect.signature(command.quantize).parameters}
    assert known - parameters == set()


def test_sensitivity_has_the_options_of_quantize() -> None:
    one, two = (dict(inspect.signature(each).parameters) for each in (command.quantize, command.sensitivity))
    for name in ("target", "max_error", "external_data", "dry_run"):
        del one[name]
    assert one == two


def test_sensitivity(source: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    nodes = [lowbit.onnx.NodeReport("b", "MatMul", "int8", error=0.25), lowbit.onnx.NodeReport("a", "Conv", "int8")]

    def sensitivity(source: Path, options: Any, **data: Any) -> Any:
        given[:] = [options, data["inputs"], data["calibration"]]
        return nodes

    monkeypatch.setattr(lowbit.onnx, "sensitivity", sensitivity)
    arguments = ["sensitivity", source, "--mode", "dynamic", "--exclude-nodes", "l0*", "--inputs", "i.npz"]
    result = run(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows.index(["b", "MatMul", "int8", "0.25"]) + 1 == rows.index(["a", "Conv", "int8"])
    assert given == [lowbit.onnx.OnnxOptions(mode="dynamic", exclude_nodes=["l0*"]), "i.npz", None]
    assert json.loads(run(*arguments, "--json").stdout)["nodes"] == [vars(node) for node in nodes]
    wrong = run("sensitivity", source, "--mode", "int8")
    assert (wrong.returncode, wrong.stdout) == (2, "")
