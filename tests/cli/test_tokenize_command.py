"""`lowbit tokenize` and `lowbit detokenize` as a shell sees them."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from shell import Result, runner
from tokenizer_cases import REFERENCE, metadata

import lowbit

BARD = Path(lowbit.__file__).parent / "data" / "bard"
HOWEVER_IT_LOOKS = " <s>Größe  \r\n\t🫠</s>\n"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    command = runner(capsys)

    def call(*arguments: object, input: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(input)))
        return command(*arguments)

    return call


def model(folder: Path, name: str) -> Path:
    path = folder / f"{name}.gguf"
    keys = {"general.architecture": "llama", **metadata(name)}
    lowbit.gguf.write(path, keys, {"a": np.zeros(32, np.float32)})
    return path


@pytest.mark.parametrize("name", ["llama-bpe", "llama-spm", "phi-3", "gemma-4"])
def test_ids_are_those_of_llama_cpp(run, tmp_path, name):
    path = model(tmp_path, name)
    for text, special, ids in REFERENCE[name]["cases"][-12:]:
        if "</s>" in text or text.startswith("-") or not text:
            continue
        flags = [] if special else ["--no-add-special-tokens", "--no-parse-special"]
        result = run("tokenize", path, text, "--ids", *flags)
        assert (result.returncode, result.stdout.split()) == (0, [str(i) for i in ids]), text


def test_texts_come_from_arguments_files_and_stdin_as_they_are(run, tmp_path):
    path, file = model(tmp_path, "llama-bpe"), tmp_path / "text.txt"
    file.write_bytes(HOWEVER_IT_LOOKS.encode())
    expected = lowbit.load_tokenizer(path).encode(HOWEVER_IT_LOOKS)
    for arguments in ([HOWEVER_IT_LOOKS], ["-"], ["--file", file]):
        report = json.loads(run("tokenize", path, *arguments, "--json", input=HOWEVER_IT_LOOKS.encode()).stdout)
        assert report["ids"] == expected
        assert report["tokens"] == [lowbit.load_tokenizer(path).token(i) for i in expected]


def test_the_table_shows_what_each_token_adds(run):
    result = run("tokenize", BARD, "ROMEO: \x1b[1mhié")
    assert (result.returncode, result.stdout.isascii() or "é" in result.stdout, "\x1b" in result.stdout) == (
        0,
        True,
        False,
    )
    rows = [line.split(maxsplit=2) for line in result.stdout.splitlines()[3:] if line.strip()]
    tokenizer = lowbit.load_tokenizer(BARD)
    ids = tokenizer.encode("ROMEO: \x1b[1mhié")
    assert [int(row[0]) for row in rows] == ids
    texts = "".join(row[2].strip()[1:-1] for row in rows)
    assert texts == tokenizer.decode(ids).replace("\x1b", r"\x1b")
    assert result.stderr == f"{len(ids)} tokens\n"


@pytest.mark.parametrize("form", ["--ids", "--json"])
@pytest.mark.parametrize("name", ["llama-spm", "llama-bpe", "gemma-4"])
def test_what_tokenize_prints_is_read_back(run, tmp_path, name, form):
    path = model(tmp_path, name)
    printed = run("tokenize", path, HOWEVER_IT_LOOKS, form, "--no-add-special-tokens").stdout
    back = json.loads(run("detokenize", path, "-", "--json", input=printed.encode()).stdout)
    tokenizer = lowbit.load_tokenizer(path)
    assert back["ids"] == tokenizer.encode(HOWEVER_IT_LOOKS, add_special_tokens=False)
    assert back["text"] == tokenizer.decode(back["ids"])
    if name != "llama-spm":  # SentencePiece's text begins with a space of its own
        assert back["text"] == HOWEVER_IT_LOOKS


@pytest.mark.parametrize(
    "words", [["72", "73", "74"], ["72,73, 74"], ["[72, 73, 74]"], ["72 73\n74\n"], ["[72", "73", "74]"]]
)
def test_ids_are_written_in_many_ways(run, words):
    expected = lowbit.load_tokenizer(BARD).decode([72, 73, 74])
    assert run("detokenize", BARD, *words) == (0, expected + "\n", "")
    assert run("detokenize", BARD, "-", input=" ".join(words).encode()) == (0, expected + "\n", "")


def test_special_tokens_are_left_out_if_asked(run, tmp_path):
    path = model(tmp_path, "llama-spm")
    ids = lowbit.load_tokenizer(path).encode("<s>hi</s>")
    assert run("detokenize", path, *ids, "--skip-special-tokens").stdout == "hi\n"
    assert "<s>" in run("detokenize", path, *ids).stdout


@pytest.mark.parametrize(
    ("arguments", "input", "status", "message"),
    [
        (["tokenize", BARD], b"", 2, "expected a text, - for stdin, or --file"),
        (["tokenize", BARD, "a", "--file", BARD / "config.json"], b"", 2, "expected a text, - for stdin, or --file"),
        (["tokenize", BARD, "a", "--ids", "--json"], b"", 2, "expected one of --ids and --json"),
        (["tokenize", BARD, "-"], b"a\xff", 1, "stdin: not UTF-8 at offset 1"),
        (["tokenize", "no/such.gguf", "a"], b"", 1, "no/such.gguf"),
        (["detokenize", BARD, "1", "x\x1b"], b"", 2, r"expected token ids, got 'x\x1b'"),
        (["detokenize", BARD, "1.5"], b"", 2, "expected token ids, got '1.5'"),
        (["detokenize", BARD, "9" * 5000], b"", 2, "expected token ids, got '9999"),
        (["detokenize", BARD, "-1"], b"", 1, "token id -1, expected 0 to "),
        (["detokenize", BARD, "4096000"], b"", 1, "token id 4096000, expected 0 to "),
        (["detokenize", BARD, "-"], b'{"ids": "1"}', 2, "expected \"ids\" with a list of integers, got '1'"),
        (["detokenize", BARD, "-"], b'{"ids"', 2, "not JSON"),
        (["detokenize", BARD, "-"], b"[" * 100_000 + b"{", 2, "expected token ids, got '{'"),
        (["detokenize", BARD, "-"], b'{"a": ' * 100_000, 2, "not JSON"),
    ],
)  # fmt: skip
def test_wrong_usage(run, arguments, input, status, message):
    result = run(*arguments, input=input)
    assert (result.returncode, result.stdout) == (status, "")
    assert message in result.stderr


def test_no_ids_are_no_text(run):
    assert run("detokenize", BARD, "-", input=b"\n") == (0, "\n", "")
    assert run("tokenize", BARD, "", "--ids", "--no-add-special-tokens") == (0, "\n", "")
