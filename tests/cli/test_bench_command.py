"""lowbit bench: the options' values, the tables and the JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from command import run

import lowbit
from lowbit.cli import bench as command
from lowbit.evaluate import limits
from lowbit.evaluate.bench import BenchReport
from lowbit.evaluate.llama_bench import LlamaBenchReport
from lowbit.evaluate.profile import ProfileReport, StageReport


def test_depth_and_batch_reach_the_measurement(bard_gguf: Path) -> None:
    options = ["-p", "16", "-n", "4", "-r", "1", "--depth", "0", "--batch", "3", "--threads", "1"]
    result = run("bench", bard_gguf, *options, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert (report["depth"], report["batch"], report["compared"]) == (0, 3, None)
    assert report["read_bytes_per_s"] == pytest.approx(report["step_bytes"] * report["decode_tokens_per_s"] / 3)
    assert 0 < report["read_share"] == pytest.approx(report["read_bytes_per_s"] / report["read_limit_bytes_per_s"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{bard}", "--depth", "-1"], "--depth"),
        (["{bard}", "--batch", "0"], "--batch"),
        (["{bard}", "--compare", "llama-bench=/no/such/program"], "/no/such/program: no such file"),
        (["{bard}", "--compare", "openvino=/x"], "expected llama-bench=PATH, got openvino=/x"),
        (["{bard}", "--limits"], "expected a MODEL, or --limits alone"),
        ([], "expected a MODEL, or --limits alone"),
        (["--profile"], "expected a MODEL, or --limits alone"),
        (["--profile", "--limits"], "expected a MODEL, or --limits alone"),
        (["{bard}", "--plot", "a.svg"], "--tokens and --plot need --profile"),
        (["{bard}", "--tokens", "1"], "--tokens and --plot need --profile"),
        (["{bard}", "--profile", "--batch", "1"], "--profile excludes --prompt-tokens, --new-tokens, --batch"),
        (["{bard}", "--profile", "-n", "4"], "--profile excludes --prompt-tokens, --new-tokens, --batch"),
    ],
)
def test_wrong_options(options: list[str], message: str, bard_gguf: Path) -> None:
    result = run("bench", *(option.replace("{bard}", str(bard_gguf)) for option in options))
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--depth", "1000", "-n", "25"], "1000 + 25 tokens: expected at most 1024"),
        (["--profile", "--depth", "1000", "--tokens", "25"], "1000 + 25 tokens: expected at most 1024"),
        (["--profile", "--plot", "a.txt"], "a.txt: expected a name that ends in .png, .svg, .pdf"),
        (["--compare", f"llama-bench={sys.executable}"], "expected llama-bench, with the option --n-depth"),
        (["--compare", f"llama-bench={sys.executable}", "--batch", "2"], "batch: expected 1, got 2"),
    ],
)
def test_what_cannot_be_measured(options: list[str], message: str, bard_gguf: Path) -> None:
    result = run("bench", bard_gguf, *options)
    assert (result.returncode, result.stdout) == (1, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_limits_with_one_thread_and_with_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(limits, "BUFFER_BYTES", 4 << 20)
    monkeypatch.setattr(limits, "PASSES", 1)
    command._machine(2, json=True)
    found = json.loads(capsys.readouterr().out)
    assert [entry["threads"] for entry in found] == [1, 2]
    assert {entry["simd"] for entry in found} == {lowbit.simd.current()}
    command._machine(1, json=False)
    shown = capsys.readouterr().out
    assert "1 thread" in shown
    assert "2 threads" not in shown
    assert "int8 multiply-adds, G/s" in shown


def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    peer = LlamaBenchReport("/x/llama-bench", 50.0, 0.0, 2.0, 5.0, 0.0, 1.25)
    result = BenchReport(
        model="m.gguf", architecture="qwen3", weight_bytes=10, threads=2, compute="auto", simd="AVX2",
        prompt_tokens=8, new_tokens=4, depth=7, batch=1, repetitions=3, load_s=0.1,
        prefill_tokens_per_s=100.0, prefill_spread=0.125, decode_tokens_per_s=6.25, decode_spread=0.25,
        step_bytes=10, read_bytes_per_s=3.2e9, read_limit_bytes_per_s=12.8e9, read_share=0.25, compared=peer,
    )  # fmt: skip
    command._print(result)
    title, *table = (line.split() for line in capsys.readouterr().out.splitlines() if line.strip())
    assert " ".join(title) == "m.gguf, 2 threads, AVX2, compute auto; memory reads 12.8 GB/s"
    assert table[2:] == [
        ["prefill", "of", "8", "100.0", "12.5%", "50.0", "2.00"],
        ["decode", "of", "4", "at", "7", "6.2", "3.2", "25%", "25.0%", "5.0", "1.25"],
    ]


def test_profile_in_json(bard_gguf: Path) -> None:
    for options, figures in (([], (1, 0, 10)), (["--tokens", "3", "-d", "5", "-r", "2"], (3, 5, 2))):
        result = run("bench", bard_gguf, "--profile", *options, "--threads", "1", "--json")
        assert (result.returncode, result.stderr) == (0, "")
        report = json.loads(result.stdout)
        assert (report["tokens"], report["depth"], report["repetitions"]) == figures
        assert report["threads"] == 1
        assert [(part["stage"], part["layer"]) for part in report["layers"][:7:6]] == [
            ("query_key_value", 0),
            ("query_key_value", 1),
        ]
        assert sum(part["bytes_read"] for part in report["stages"]) == report["step"]["bytes_read"]


def test_the_tables_of_a_profile(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")

    def part(stage: str, layer: int | None, seconds: float) -> StageReport:
        return StageReport(stage, layer, seconds, seconds / 0.004, 2 * 10**6, 5 * 10**6, 3.2e9, 25e9)

    stages = [part("embedding", None, 0.001), part("gate_up", None, 0.002), part("logits", None, 0.001)]
    layers = [part("gate_up", 0, 0.0015), part("down", 0, 0.0025), part("gate_up", 1, 0.0005), part("down", 1, 1e-6)]
    report = ProfileReport(
        "m.gguf", "qwen3", 2, "auto", "AVX2", 1, 9, 10, 12.8e9, part("step", None, 0.004), stages, layers
    )
    command._print_profile(report)
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert " ".join(lines[0]) == ("m.gguf: step of 1 token at 9; 2 threads, AVX2, compute auto; memory reads 12.8 GB/s")
    facts = ["2.000", "3.2", "25%", "5.000", "25.0"]
    assert lines[3:7] == [
        ["embedding", "1.000", "25.0%", *facts],
        ["gate_up", "2.000", "50.0%", *facts],
        ["logits", "1.000", "25.0%", *facts],
        ["step", "4.000", "100.0%", *facts],
    ]
    assert lines[7:9] == [["microseconds", "of", "each", "layer"], ["layer", "gate", "up", "down"]]
    assert lines[10:] == [["0", "1500.0", "2500.0"], ["1", "500.0", "1.0"]]
