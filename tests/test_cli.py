"""The command `lowbit` as a shell sees it: what it prints where, and how it exits."""

import json
import os
import subprocess
import sys

import pytest

import lowbit

COMMANDS = ["demo", "convert", "quantize", "inspect", "formats", "run", "chat", "bench", "perplexity"]


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """The command, on its way to a pipe."""
    command = [sys.executable, "-m", "lowbit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, encoding="utf-8", **options)  # type: ignore[call-overload]


def test_help_lists_the_commands() -> None:
    result = run("--help")
    assert (result.returncode, result.stderr) == (0, "")
    listed = result.stdout.split("Commands:")[1]
    for command in COMMANDS:
        assert f"\n  {command} " in listed


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_helps_with_examples(command: str) -> None:
    result = run(command, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "Examples:\n" in result.stdout
    assert f"\n    lowbit {command}" in result.stdout


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, lowbit.cli as c; c.run(['--help']); print(*sorted(m.split('.')[0] for m in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"rich", "tokenizers", "jinja2", "huggingface_hub", "torch", "transformers"} & set(loaded)


def test_version() -> None:
    result = run("--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"lowbit {lowbit.__version__} ({lowbit.simd.current()})\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["run"],
        ["formats", "--nonsense"],
        ["bench", "model.gguf", "-n", "0"],
        ["perplexity", "m", "/nowhere"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert "Usage: lowbit" in result.stderr
    assert "Traceback" not in result.stderr


def test_formats_are_those_of_the_package() -> None:
    result = run("formats", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    listed = json.loads(result.stdout)
    assert [row["name"] for row in listed] == [f.name for f in lowbit.formats()]
    for row, known in zip(listed, lowbit.formats(), strict=True):
        assert row == {key: getattr(known, key) for key in row}
        assert row["bits_per_weight"] == 8 * row["block_bytes"] / row["block_size"]
    table = run("formats").stdout
    assert all(f" {row['name']} " in table for row in listed)


def test_reader_that_goes_away() -> None:
    # Nobody reads at all: the first write fails.
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "lowbit", "formats", "--json"]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (result.returncode, result.stderr) == (1, "")
