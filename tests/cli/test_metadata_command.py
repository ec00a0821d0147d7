"""`lowbit metadata` as a shell sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shell import Result, runner

import lowbit

KEYS: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "it's \x1b[31mred",
    "llama.block_count": 3,
    "tokenizer.ggml.tokens": [f"t{i}" for i in range(40)],
    "tokenizer.ggml.eos_token_id": np.uint64(7),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    lowbit.gguf.write(path, KEYS | lowbit.gguf.padding(500), {"a": np.arange(33, dtype=np.float32)})
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    return runner(capsys, "metadata")


def typed(path: Path, key: str) -> Any:
    with lowbit.gguf.open(path) as file:
        return file.typed(key)


def test_list_and_get(path: Path, run: Callable[..., Result]) -> None:
    listed = run(path)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "it's \\x1b[31mred" in listed.stdout
    assert "40 elements: t0, t1" in listed.stdout
    as_json = json.loads(run(path, "--json").stdout)
    assert list(as_json) == [*KEYS, "lowbit.padding"]
    assert as_json["tokenizer.ggml.eos_token_id"] == {"type": "u64", "value": 7}
    assert as_json["tokenizer.ggml.tokens"]["type"] == "str[]"
    assert run(path, "get", "general.name").stdout == KEYS["general.name"] + "\n"
    assert json.loads(run(path, "get", "tokenizer.ggml.tokens").stdout) == KEYS["tokenizer.ggml.tokens"]
    assert json.loads(run(path, "get", "llama.block_count", "--json").stdout) == {
        "key": "llama.block_count",
        "type": "u32",
        "value": 3,
    }


def test_set_and_unset(path: Path, tmp_path: Path, run: Callable[..., Result]) -> None:
    before = path.read_bytes()
    dry = run(path, "set", "general.name", "x", "--dry-run")
    assert "general.name: it's \\x1b[31mred -> x\n" in dry.stdout
    assert "would be written in place" in dry.stdout
    assert path.read_bytes() == before
    assert run(path, "set", "general.name", "12").returncode == 0
    assert typed(path, "general.name") == "12"
    assert run(path, "unset", "general.name").returncode == 0
    for text, type, value in [
        ("-1", None, np.int32(-1)),
        ("3", "u8", np.uint8(3)),
        ("[1, 2]", "u16[]", np.array([1, 2], np.uint16)),
        ('["a"]', "str[]", ["a"]),
        ("[1]", "str", "[1]"),
        ("true", None, np.bool_(True)),
        ("text", None, "text"),
    ]:
        run(path, "unset", "new")
        assert run(path, "set", "new", text, *(("--type", type) if type else ())).returncode == 0
        found = typed(path, "new")
        assert np.asarray(found).dtype == np.asarray(value).dtype
        assert np.array_equal(found, value)
    template = tmp_path / "t.jinja"
    template.write_text("{% if %}\n" + "{# long #}" * 100)
    report = run(path, "set", "tokenizer.chat_template", "--from-file", template, "--json", "--reserve", "50")
    assert report.stderr.startswith("note: key tokenizer.chat_template: chat template: ")
    found = json.loads(report.stdout)
    assert (found["in_place"], found["padding"], found["bytes_written"]) == (False, 50, path.stat().st_size)
    assert typed(path, "tokenizer.chat_template") == template.read_text()


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["set"], 2, "expected set KEY VALUE"),
        (["set", "a"], 2, "expected set KEY VALUE"),
        (["set", "a", "b", "c"], 2, "expected set KEY VALUE"),
        (["put", "a", "b"], 2, "expected get, set, unset, recover"),
        (["set", "--tpye", "u32"], 2, "there is no option --tpye"),
        (["set", "a", "1", "--type", "u33"], 2, "type 'u33': expected u8,"),
        (["set", "a", "x", "--type", "u32"], 2, "expected u32, got 'x'"),
        (["set", "a", "1", "--type", "u32[]"], 2, "expected a JSON list, got '1'"),
        (["set", "a", "[1]", "--type", "str[]"], 2, "expected a JSON list of strings"),
        (["set", "llama.block_count", "-1"], 2, "expected a number that uint32 holds, got -1"),
        (["set", "general.architecture", "3", "--type", "u32"], 1, "expected a str, as in the file, got an int"),
        (["set", "general.alignment", "64"], 1, "it cannot be edited"),
        (["set", "general.name", "n" * 1000, "--in-place"], 1, "to edit in place"),
        (["get", "a"], 1, "there is no key a"),
        (["unset", "a"], 1, "there is no key a"),
    ],
)
def test_refused(path: Path, run: Callable[..., Result], arguments: list[str], status: int, reason: str) -> None:
    before = path.read_bytes()
    result = run(path, *arguments)
    assert (result.returncode, result.stdout) == (status, "")
    assert reason in result.stderr
    assert path.read_bytes() == before


def test_recover(path: Path, run: Callable[..., Result]) -> None:
    before = path.read_bytes()
    assert "no edit was interrupted" in run(path, "recover").stdout
    for arguments in (["recover"], ["set", "general.name", KEYS["general.name"]]):
        lowbit.gguf.rewriting.Undo(str(path)).save(len(before), 24, before[24:100])
        path.write_bytes(b"EDIT" + before[4:24] + bytes(76) + before[100:])
        listed = run(path)
        assert listed.returncode == 1
        assert "`lowbit metadata FILE recover` undoes it" in listed.stderr
        assert run(path, *arguments).returncode == 0
        assert path.read_bytes() == before


def test_special_tokens_are_set_by_their_text(path: Path, run: Callable[..., Result]) -> None:
    key = "tokenizer.ggml.eos_token_id"
    lowbit.gguf.edit(path, {"tokenizer.ggml.tokens": [*(f"t{i}" for i in range(38)), "5", "<|im_end|>"]})
    for words, expected in (
        (["t9"], 9),
        (["5"], 5),
        (["5", "--token"], 38),
        (["<|im_end|>"], 39),
        (["12", "--type", "u64"], 12),
    ):
        assert run(path, "set", key, *words).returncode == 0
        assert typed(path, key) == np.uint64(expected)
    assert run(path, "set", "tokenizer.ggml.eot_token_id", "t3", "--dry-run").stdout.startswith(
        "tokenizer.ggml.eot_token_id: nothing -> 3\n"
    )
    wrong = run(path, "set", key, "im_end")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "token 'im_end' is not in tokenizer.ggml.tokens, did you mean <|im_end|>?" in wrong.stderr
    for words in (["general.name", "t3", "--token"], [key, "3", "--token", "--type", "u32"]):
        wrong = run(path, "set", *words)
        assert (wrong.returncode, "--token" in wrong.stderr) == (2, True)
    assert typed(path, key) == np.uint64(12)


def test_warnings_about_templates_are_printed(path: Path, run: Callable[..., Result]) -> None:
    result = run(path, "set", "tokenizer.chat_template", "{% if %}")
    assert result.returncode == 0
    assert "note: key tokenizer.chat_template: chat template: " in result.stderr
