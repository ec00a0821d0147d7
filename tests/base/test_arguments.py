"""Arguments of a wrong type or out of range: lowbit's own error or a result, never another package's exception.

Every parameter of every public function gets every bad value, with the others right. What a value means where it can
be obeyed is not the subject here, nor are numbers and names of arguments, for which Python has its TypeError.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from tiny_checkpoint import make_checkpoint

import lowbit
from lowbit import imatrix
from lowbit.arch import of_metadata, spec
from lowbit.base import arguments
from lowbit.cli.execution import execute
from lowbit.conversion import export_hf
from lowbit.evaluate import ladder


def nested(depth: int = 10_000) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


BAD: dict[str, Any] = {
    "10**9": 10**9,
    "2**63": 2**63,
    "10**5000": 10**5000,
    "-1": -1,
    "nan": math.nan,
    "inf": math.inf,
    "1.5": 1.5,
    "'3'": "3",
    "''": "",
    "NUL": "a\0b",
    "surrogate": "\ud800",
    "long": "(" * 5000,
    "bytes": b"3",
    "None": None,
    "True": True,
    "object": object(),
    "list": [1],
    "list of lists": nested(),
    "dict": {"a": object()},
    "dict of numbers": {1: 2},
    "strings": np.array(["a"]),
    "complex": np.ones((2, 256), np.complex128),
    "objects": np.array([object()]),
    "int64": np.arange(4),
    "cube": np.zeros((2, 2, 2), np.float32),
    "class": int,
}
#: What is the caller's own: objects of lowbit, and functions.
LEFT_OUT = {"self", "model", "reference", "progress", "variables", "options", "callback"}

FLOATS = np.ones((2, 256), np.float32)


class Case(NamedTuple):
    function: Callable[..., Any]
    right: dict[str, Any]  # arguments with which it works


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arguments")
    make_checkpoint(folder / "m", layers=1, hidden=64, ffn=64, head_dim=16)
    lowbit.convert(folder / "m", folder / "m.gguf", "F32", verify=False, provenance=False)
    lowbit.save_npz(folder / "x.npz", {"a": lowbit.quantize(FLOATS, "Q8_0")})
    return folder


def cases(folder: Path) -> Iterator[tuple[str, Case]]:
    packed, model = lowbit.quantize(FLOATS, "Q8_0"), lowbit.load(folder / "m.gguf", compute="f32", threads=1)
    tokenizer = model.tokenizer
    text = "the and in on " * 20
    gguf, infos = folder / "m.gguf", [lowbit.gguf.TensorInfo("a", (2, 256), "F32")]
    out, quiet = folder / "o.gguf", {"threads": 1}
    messages = [{"role": "user", "content": "the"}]
    sums = imatrix.Sums({"a": imatrix.Entry(np.ones((1, 256), np.float32), np.ones(1, np.int64))})
    keywords = {"tensor_types": [("a", "F16")], "override_kv": {"a": 1}, "prune_layers": [0], "exclude_weights": ["a"]}
    with lowbit.gguf.open(gguf) as file:
        metadata = dict(file.metadata)
    writer = lowbit.gguf.Writer(folder / "w.gguf", {}, infos)
    for function, right in (
        (lowbit.quantize, {"w": FLOATS, "format": "Q8_0", "threads": 1}),
        (lowbit.dequantize, {"q": packed.data, "format": "Q8_0", "threads": 1}),
        (lowbit.dequantize, {"q": packed, "format": "Q8_0", "threads": 1}),
        (packed.dequantize, {"threads": 1}),
        (lowbit.QTensor, {"data": packed.data, "format": "Q8_0"}),
        (lowbit.QTensor.load, {"path": folder / "x.npz", "name": "a"}),
        (lowbit.compare, {"w": FLOATS, "q": packed, "threads": 1}),
        (lowbit.matmul, {"x": FLOATS, "w": packed, "threads": 1}),
        (lowbit.simd.force, {"name": None}),
        (lowbit.save_npz, {"path": folder / "y.npz", "tensors": {"a": packed}}),
        (lowbit.gguf.write, {"path": out, "metadata": {"a": 1}, "tensors": {"a": FLOATS}}),
        (lowbit.gguf.Writer, {"path": out, "metadata": {"a": 1}, "infos": infos}),
        (lowbit.gguf.file_size, {"metadata": {"a": 1}, "infos": infos}),
        (lowbit.gguf.TensorInfo, {"name": "a", "shape": (2, 256), "format": "F32"}),
        (writer.write, {"buffer": FLOATS}),
        (lowbit.gguf.edit, {"path": gguf, "set": {"a": 1}, "unset": ["general.name"], "dry_run": True}),
        (lowbit.gguf.diff, {"a": gguf, "b": gguf, "ignore": ["a"], "threads": 1}),
        (imatrix.load_imatrix, {"imatrix": {"a": np.ones(3)}}),
        (imatrix.merge, {"parts": [sums]}),
        (imatrix.collect, {"model": model, "text": text, "context": 8, "chunks": 1}),
        (imatrix.Sums, {"entries": sums.entries}),
        (lowbit.evaluate.perplexity, {"model": model, "text": text, "context": 8, "chunks": 1, "threads": 1}),
        (lowbit.evaluate.compare, {"models": {"": model}, "text": text, "context": 8, "chunks": 1, "threads": 1}),
        (
            lowbit.evaluate.kl_divergence,
            {"reference": model, "model": model, "text": text, "context": 8, "chunks": 1},
        ),
        (ladder.ladder, {"path": folder / "m", "text": text, "rungs": [], "context": 8, "threads": 1}),
        (lowbit.convert, {"path": folder / "m", "target": out, "format": "F32", "dry_run": True, **quiet}),
        (lowbit.convert, {"path": folder / "m", "target": out, "format": "Q8_0", "dry_run": True, **quiet, **keywords}),
        (lowbit.quantize_file, {"path": gguf, "target": out, "format": "Q8_0", "dry_run": True, **quiet}),
        (lowbit.ConvertOptions, {}),
        (lowbit.QuantizeOptions, {}),
        (lowbit.split_file, {"path": gguf, "target": out, "split_max_tensors": 2, "dry_run": True}),
        (lowbit.merge_files, {"path": gguf, "target": out, "dry_run": True}),
        (export_hf.export_hf, {"path": gguf, "target": folder / "m", "threads": 1}),
        (lowbit.verify, {"path": gguf, "source": folder / "none", "threads": 1}),
        (lowbit.load, {"path": gguf, "threads": 1}),
        (lowbit.load_tokenizer, {"path": gguf}),
        (lowbit.gguf.open, {"path": gguf}),
        (lowbit.load_npz, {"path": folder / "x.npz"}),
        (imatrix.read, {"path": gguf}),
        (packed.save, {"path": folder / "z.npz"}),
        (tokenizer.encode, {"text": text}),
        (tokenizer.decode, {"ids": [1, 2]}),
        (tokenizer.stream, {}),
        (tokenizer.stream().push, {"token_id": 1}),
        (tokenizer.token, {"token_id": 1}),
        (tokenizer.id, {"token": "a"}),
        (tokenizer.apply_chat_template, {"messages": messages}),
        (lowbit.arch.register, {"architecture": folder / "none.py"}),
        (of_metadata, {"metadata": metadata}),
        (spec, {"metadata": metadata, "tensors": {}}),
    ):
        yield (
            f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', function)}",
            Case(function, right),
        )


def parameters(case: Case) -> list[str]:
    found = inspect.signature(case.function).parameters.values()
    named = [p.name for p in found if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return [name for name in dict.fromkeys([*named, *case.right]) if name not in LEFT_OUT]


def test_no_exception_of_others(made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All that is raised is a lowbit.Error, in one line. What is wrong comes as one list."""
    monkeypatch.chdir(tmp_path)  # what is written under names such as "3"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    wrong = []
    for place, case in cases(made):
        for name in parameters(case):
            for kind, value in BAD.items():
                try:
                    case.function(**{**case.right, name: value})
                except lowbit.Error as error:
                    if not str(error).isprintable():
                        wrong.append(f"{place}({name}={kind}): {error}")
                except BaseException as error:  # a panic of another language is no Exception
                    wrong.append(f"{place}({name}={kind}): {type(error).__name__}: {str(error)[:80]}")
    assert not wrong, "\n".join(wrong)


REFUSED = [
    *(({"threads": value}, rf"threads: expected 1 to 1024, got {value}") for value in (0, -1, 10**9, 2**63)),
    *(
        ({"threads": value}, rf"threads: expected an integer, got {re.escape(str(value))}")
        for value in (1.5, math.nan, True)
    ),
    ({"threads": "3"}, "threads: expected an integer, got '3'"),
    ({"threads": 10**5000}, "threads: expected 1 to 1024, got an int of 16610 bits"),
    ({"format": None}, "format: expected a str, got None"),
    ({"format": "\ud800"}, r"format: expected a str that UTF-8 can encode, got '\\ud800'"),
    ({"format": "Q8_0\0"}, r"unknown format .Q8_0\\x00"),
    ({"dry_run": "no"}, "dry_run: expected a bool, got 'no'"),
    ({"pure": "no"}, "pure: expected a bool, got 'no'"),
    ({"strict": None}, "strict: expected a bool, got None"),
    ({"intermediate": 1.5}, "intermediate: expected a str, got 1.5"),
    ({"lora_scale": math.nan, "lora": ["a"]}, "lora_scale: expected a finite number, got nan"),
    ({"lora_scale": 10**400, "lora": ["a"]}, r"lora_scale: expected -3.40282e\+38 to 3.40282e\+38, got 1000"),
    ({"lora_scale": "1", "lora": ["a"]}, "lora_scale: expected a finite number, got '1'"),
    ({"lora": 7}, "lora: expected a folder or hub id, or a list of them, got 7"),
    ({"split_max_tensors": 1.5}, "split_max_tensors: expected an integer, got 1.5"),
    ({"split_max_size": True}, "split_max_size: expected a number of bytes such as .*, got True"),
    ({"split_max_size": -1}, "split_max_size: expected a number of bytes such as .*, got -1"),
    ({"prune_layers": "0"}, "prune_layers: expected a list, got '0'"),
    ({"prune_layers": [2**63]}, "prune_layers: expected 0 to 2147483647, got 9223372036854775808"),
    ({"include_weights": "ffn"}, "include_weights: expected a list, got 'ffn'"),
    ({"override_kv": [1]}, "override_kv: expected a mapping, got list"),
    ({"tensor_types": "a=F16"}, "tensor_types: expected a list, got 'a=F16'"),
    ({"tensor_types": ["a=F16"]}, "tensor_types: expected pairs of a regular expression and a format, got 'a=F16'"),
    (
        {"tensor_types": [("(" * 2000 + "a" + ")" * 2000, "F16")]},
        "tensor_types: '.*': expected at most 1000 characters, got 4001",
    ),
    ({"tensor_types": [("(" * 490 + "a" + ")" * 490, "F16")]}, "tensor_types: '.*': not a regular expression"),
    ({"tensor_types": [(f"a{{{10**30}}}", "F16")]}, "tensor_types: '.*': not a regular expression"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refused_at_once(made: Path, options: dict[str, Any], message: str) -> None:
    """A conversion that could not be what was asked for names the argument, what was expected and what was given."""
    right = {"format": "Q8_0", "dry_run": True}
    with pytest.raises(lowbit.InputError, match=message):
        lowbit.convert(made / "m", made / "o.gguf", **(right | options))


def test_a_file_of_tensor_types_with_nested_brackets(made: Path) -> None:
    types = made / "types"
    types.write_text("(" * 2000 + "a" + ")" * 2000 + "=Q8_0")
    with pytest.raises(lowbit.Error, match="expected at most 1000 characters, got 4001"):
        lowbit.convert(made / "m", made / "o.gguf", "Q8_0", verify=False, provenance=False, tensor_type_file=types)


@pytest.mark.parametrize("text", ["0", "1.5", "-1", "many", "9" * 5000, "\u0663"])
def test_threads_of_the_environment(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("LOWBIT_THREADS", text)
    with pytest.raises(
        lowbit.InputError, match="THREADS: expected a number of threads" if text != "0" else "expected 1 to 1024, got 0"
    ):
        lowbit.quantize(FLOATS, "Q8_0")


def test_numbers_of_numpy_are_numbers() -> None:
    assert arguments.integer("n", np.int16(3), 0, 5) == 3
    assert arguments.number("x", np.float32(0.5)) == 0.5
    assert arguments.flag("f", np.bool_(True)) is True
    assert lowbit.quantize(FLOATS, "Q8_0", threads=np.uint8(1)) == lowbit.quantize(FLOATS, "Q8_0", threads=2)  # type: ignore[arg-type]


#: Commands with what they need, and their options that take numbers.
COMMANDS: dict[str, tuple[list[str], list[str]]] = {
    "convert": (
        ["m", "o.gguf", "--dry-run"],
        ["--threads", "--split-max-size", "--split-max-tensors", "--prune-layers", "--lora-scale"],
    ),
    "verify": (["m.gguf", "m"], ["--threads", "--lora-scale"]),
    "run": (
        ["m.gguf", "the"],
        [
            "-n",
            "--temperature",
            "--top-k",
            "--top-p",
            "--min-p",
            "--repetition-penalty",
            "--seed",
            "--threads",
            "--context",
        ],
    ),
    "perplexity": (["m.gguf", "text"], ["--context", "--chunks", "--threads"]),
    "imatrix": (["m.gguf", "text", "-o", "i.gguf"], ["--context", "--chunks", "--from-chunk", "--threads"]),
    "split": (["m.gguf", "s", "--dry-run"], ["--split-max-size", "--split-max-tensors"]),
    "metadata": (["m.gguf", "set", "a", "1", "--dry-run"], ["--reserve"]),
    "export": (["hf", "m.gguf", "e"], ["--max-shard-size", "--threads"]),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_numbers_of_commands(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """What is no number is wrong usage; one out of range is, or fails in one line where the model sets the range."""
    monkeypatch.chdir(made)
    Path("text").write_text("the and in on " * 20)
    base, options = COMMANDS[command]
    for option in options:
        for value in ("nan", "1e400", "-1", str(2**63), "9" * 5000):
            status = execute([command, *base, f"{option}={value}" if option.startswith("--") else f"{option}{value}"])
            errors = [line for line in capsys.readouterr().err.splitlines() if line]
            place = f"{command} {option}={value[:30]!r}: {errors}"
            assert status == 2 or value.isdecimal() or (option, value) in (("--lora-scale", "-1"), ("-n", "-1")), place
            assert not any("unexpected" in line for line in errors), place
            assert all(line.isprintable() and len(line.encode()) < 600 for line in errors), place
