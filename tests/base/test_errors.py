"""Errors: Python's classes that they are, their fields; errors and results survive pickle, copies and processes."""

from __future__ import annotations

import ast
import concurrent.futures
import copy
import dataclasses
import errno
import importlib
import inspect
import multiprocessing
import os
import pickle
import pkgutil
import re
import shutil
import struct
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
import pytest
from tiny_checkpoint import edit_json, make_checkpoint

import lowbit
from lowbit.base.errors import Error

PACKAGE = Path(lowbit.__file__).parent
FIELDS = {"path": "a/b", "tensor": "t", "key": "k", "offset": 7, "expected": "e", "found": "f"}
#: Classes that hold open files, or code: none of these is a result.
RESOURCES = {"OpenedCheckpoint", "Architecture", "Writer", "File", "Model", "Tokenizer"}


def modules() -> list[ModuleType]:
    """All modules of the package but those of the command."""
    names = [found.name for found in pkgutil.walk_packages(lowbit.__path__, "lowbit.")]
    return [importlib.import_module(name) for name in names if not re.match(r"lowbit\.(cli|__main__|_core)", name)]


#: What type hints name, imported for type checkers only in some modules.
NAMES = {
    name: value for module in modules() for name, value in vars(module).items() if isinstance(value, (type, UnionType))
}


def hints_of(value: Any) -> dict[str, Any]:
    return typing.get_type_hints(value, NAMES | vars(sys.modules[value.__module__]))


def is_data(kind: object) -> bool:
    if not isinstance(kind, type) or not kind.__module__.startswith("lowbit") or kind.__name__ in RESOURCES:
        return False
    return issubclass(kind, Exception) or dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")


def mentioned(hint: object) -> Iterator[object]:
    """The classes in a type hint."""
    if get_origin(hint) is None:
        yield hint
    for part in get_args(hint):
        yield from mentioned(part)


def public_classes() -> list[type]:
    """Errors, and the data classes that the package exports or that what it exports returns, those in them included."""
    waiting: list[object] = [getattr(lowbit, name) for name in lowbit.__all__]
    waiting += [getattr(module, name) for module in modules() for name in getattr(module, "__all__", ())]
    found: dict[type, None] = {}
    while waiting:
        value = waiting.pop()
        if is_data(value) and value not in found:
            assert isinstance(value, type)
            found[value] = None
            waiting += value.__subclasses__() if issubclass(value, Exception) else []
            waiting += [part for hint in hints_of(value).values() for part in mentioned(hint)]
        elif inspect.isfunction(value):
            waiting += mentioned(hints_of(value).get("return"))
    return sorted(found, key=lambda kind: (kind.__module__, kind.__name__))


def example(hint: Any) -> Any:
    """A value of a type."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return example(args[0])
    if origin is Literal:
        return args[0]
    if origin is tuple:
        return tuple(example(arg) for arg in args if arg is not ...)
    if origin is np.dtype:
        return np.dtype(np.float32)
    if origin is Callable:
        return np.zeros
    if origin is np.ndarray or hint is np.ndarray:
        return np.arange(3, dtype=np.float32)
    if origin in (list, Sequence, typing.Sequence):
        return [example(args[0])]
    if origin in (dict, Mapping):
        return {example(args[0]): example(args[1])}
    if origin in (set, frozenset):
        return origin({example(args[0])})
    if is_data(hint):
        return made(hint)
    if hint is lowbit.QTensor:
        return lowbit.quantize(np.ones((1, 32), np.float32), "Q8_0")
    simple = {str: "text", int: 3, float: 0.5, bool: True, bytes: b"b", type(None): None, Any: "any", Path: Path("p")}
    return simple[hint]


#: Of classes that check what they are given.
VALID = {
    kind: {"tensor_types": [("ffn", "Q8_0")], "include_weights": ["a"], "prune_layers": [1], "override_kv": {"k": 3.5}}
    for kind in (lowbit.ConvertOptions, lowbit.QuantizeOptions)
} | {lowbit.onnx.OnnxOptions: {"mode": "static", "smooth": 0.5, "include_nodes": ["a*"]}}


def made(kind: type) -> Any:
    """An instance with a value of each field."""
    if kind in VALID:
        return kind(**VALID[kind])
    if issubclass(kind, Exception):
        hints = hints_of(kind.__init__)
        own = inspect.signature(kind.__init__).parameters.keys() - {"self", "text", "rest", "fields", *FIELDS}
        more = {name: example(hints[name]) for name in own}
        return kind("what is wrong", **FIELDS, **more)  # type: ignore[arg-type]
    hints = hints_of(kind)
    if hasattr(kind, "_fields"):
        return kind(*(example(hints[name]) for name in kind._fields))
    return kind(**{field.name: example(hints[field.name]) for field in dataclasses.fields(kind) if field.init})


def content(value: Any) -> Any:
    """What compares equal if all that a value holds is equal."""
    if isinstance(value, Exception):
        return type(value), str(value), value.args, content(vars(value))
    if isinstance(value, np.ndarray):
        return value.dtype, value.tolist()
    if isinstance(value, lowbit.QTensor):
        return value.format, value.data.tolist()
    if isinstance(value, Mapping):
        return {key: content(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [type(value), *map(content, value)]
    if dataclasses.is_dataclass(value):
        return type(value), {field.name: content(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


COPIES: dict[str, Callable[[Any], Any]] = {
    **{f"pickle {n}": lambda value, n=n: pickle.loads(pickle.dumps(value, n)) for n in range(2, 6)},
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("kind", public_classes(), ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_copies_are_equal(kind: type) -> None:
    value = made(kind)
    for name, copied in COPIES.items():
        again = copied(value)
        assert type(again) is type(value), name
        assert content(again) == content(value), name
        assert str(again) == str(value), name


def test_all_kinds_of_results_are_found() -> None:
    names = {kind.__name__ for kind in public_classes()}
    assert names >= {
        "Error", "FileError", "FormatError", "InputError", "UnsupportedError", "ContextFullError", "VerificationError",
        "Report", "SplitReport", "ExportReport", "Verdict", "Check", "Perplexity", "Figures", "Divergence", "Ladder",
        "Rung", "BenchReport", "InspectReport", "TensorTotal", "TensorReport",
        "Edit", "Change", "GgufDiff", "KeyDiff", "TensorDiff",
        "Imatrix",
        "Sums", "Entry", "Coverage", "Comparison", "RowComparison", "ConvertOptions", "QuantizeOptions", "TensorInfo",
    }  # fmt: skip


# Errors as they are raised: what is called in a folder with m.gguf (a model), m (the checkpoint that it was made of)
# and cut.gguf; the class; and the fields. Those that are not named are None.


def write_nothing(folder: Path) -> Any:
    return lowbit.gguf.write(folder / "none" / "x.gguf", {}, {})


def with_config(folder: Path, **changes: Any) -> Any:
    edit_json(folder / "m" / "config.json", changes)
    return lowbit.convert(folder / "m", folder / "x.gguf", "F32", progress=False)


def with_shape(folder: Path) -> Any:
    return with_config(folder, hidden_size=128)


def with_wrong_metadata(folder: Path, key: str, value: Any, read: Callable[[Path], Any] = lowbit.load) -> Any:
    lowbit.gguf.edit(folder / "m.gguf", set={key: value})
    return read(folder / "m.gguf")


NORM = "model.layers.0.input_layernorm.weight"
RAISED: dict[str, tuple[Callable[[Path], Any], type[Error], dict[str, Any]]] = {
    "no file, C++": (
        lambda f: lowbit.gguf.open(f / "none.gguf"),
        lowbit.FileError,
        {"path": "none.gguf", "errno": errno.ENOENT, "strerror": os.strerror(errno.ENOENT)},
    ),
    "no folder, C++": (write_nothing, lowbit.FileError, {"path": "none/x.gguf", "errno": errno.ENOENT}),
    "a folder, C++": (
        lambda f: lowbit.gguf.open(f / "m"),
        lowbit.FileError,
        {"path": "m", "errno": errno.EISDIR, "expected": "a regular file", "found": "a directory"},
    ),
    "no file": (
        lambda f: lowbit.load_npz(f / "none.npz"),
        lowbit.FileError,
        {"path": "none.npz", "errno": errno.ENOENT},
    ),
    "no checkpoint": (
        lambda f: lowbit.convert(f / "none", f / "x"),
        lowbit.FileError,
        {"path": "none", "errno": errno.ENOENT},
    ),
    "no tokenizer": (
        lambda f: lowbit.load_tokenizer(f / "none"),
        lowbit.FileError,
        {"path": "none", "errno": errno.ENOENT},
    ),
    "a file there": (
        lambda f: lowbit.export_hf(f / "m.gguf", f / "m", progress=False),
        lowbit.FileError,
        {"path": "m", "errno": errno.EEXIST, "expected": "a new or an empty folder"},
    ),
    "cut off, C++": (
        lambda f: lowbit.gguf.open(f / "cut.gguf"),
        lowbit.FormatError,
        {
            "path": "cut.gguf",
            "offset": 8,
            "expected": "8 bytes",
            "found": re.compile("0 before the end of the file, .*"),
        },
    ),
    "a value, C++": (
        lambda f: lowbit.gguf.write(f / "x.gguf", {"general.alignment": 3}, {}),
        lowbit.InputError,
        {"key": "general.alignment", "expected": "a power of two from 8 to 2097152", "found": "3"},
    ),
    "a format, C++": (
        lambda f: lowbit.quantize(np.ones((1, 33), np.float32), "Q8_0"),
        lowbit.InputError,
        {"expected": "a multiple of the block size 32", "found": "33"},
    ),
    "a weight, C++": (
        lambda f: lowbit.quantize(np.full((1, 32), np.nan, np.float32), "Q8_0"),
        lowbit.InputError,
        {"expected": "a finite number", "found": "NaN"},
    ),
    "an argument": (
        lambda f: lowbit.quantize(np.ones(32), "Q8_0", threads=0),
        lowbit.InputError,
        {"expected": "1 to 1024", "found": "0"},
    ),
    "a setting": (
        lambda f: with_config(f, hidden_size="x"),
        lowbit.FormatError,
        {"path": "m/config.json", "key": "hidden_size", "expected": "a positive integer", "found": "x"},
    ),
    "a setting in another": (
        lambda f: with_config(f, rope_scaling={"rope_type": "linear", "factor": -1}),
        lowbit.FormatError,
        {"path": "m/config.json", "key": "rope_parameters.factor", "expected": "a positive number", "found": "-1"},
    ),
    "a shape": (
        with_shape,
        lowbit.FormatError,
        {
            "path": "m/model.safetensors",
            "tensor": re.compile("model.*weight"),
            "expected": "[288, 128] from config.json (vocab_size, hidden_size)",
            "found": "[288, 64]",
        },
    ),
    "metadata": (
        lambda f: with_wrong_metadata(f, "qwen3.rope.scaling.type", "x"),
        lowbit.UnsupportedError,
        {"path": "m.gguf", "key": "qwen3.rope.scaling.type", "expected": "none, linear or yarn", "found": "x"},
    ),
    "metadata of a tokenizer": (
        lambda f: with_wrong_metadata(f, "tokenizer.ggml.pre", "x", lowbit.load_tokenizer),
        lowbit.UnsupportedError,
        {"path": "m.gguf", "key": "tokenizer.ggml.pre", "found": "x"},
    ),
    "no key": (
        lambda f: lowbit.gguf.edit(f / "m.gguf", unset=["none"]),
        lowbit.InputError,
        {"path": "m.gguf", "key": "none"},
    ),
    "no override": (
        lambda f: lowbit.quantize_file(
            f / "m.gguf", f / "x", "Q8_0", override_kv={"qwen3.block_count": "x"}, progress=False
        ),
        lowbit.InputError,
        {"key": "qwen3.block_count", "expected": "an int, as in the file", "found": "a str"},
    ),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("errors")
    make_checkpoint(folder / "m", layers=1, hidden=64, ffn=64, head_dim=16)
    lowbit.convert(folder / "m", folder / "m.gguf", "F32", progress=False)
    (folder / "cut.gguf").write_bytes(b"GGUF" + struct.pack("<I", 3))
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("name", RAISED)
def test_fields(folder: Path, name: str) -> None:
    function, kind, expected = RAISED[name]
    with pytest.raises(kind) as caught:
        function(folder)
    error = caught.value
    assert isinstance(error, Error)
    if "path" in expected:
        expected = {**expected, "path": str(folder / expected["path"])}
        assert str(error).startswith(f"{expected['path']}: ")
    for field in FIELDS:
        found = getattr(error, field)
        if isinstance(wanted := expected.get(field), re.Pattern):
            assert wanted.fullmatch(found), field
        else:
            assert found == wanted, field
        assert found is None or field == "path" or str(found).rpartition(".")[2] in str(error), field
    for field in expected.keys() - FIELDS.keys():
        assert getattr(error, field) == expected[field], field
    again = pickle.loads(pickle.dumps(error))
    assert content(again) == content(error)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("no file, C++", FileNotFoundError),
        ("no folder, C++", FileNotFoundError),
        ("a folder, C++", IsADirectoryError),
        ("no file", FileNotFoundError),
        ("no checkpoint", FileNotFoundError),
        ("a file there", FileExistsError),
    ],
)
def test_a_file_error_is_the_oserror_of_its_errno(folder: Path, name: str, kind: type[OSError]) -> None:
    with pytest.raises(kind) as caught:
        RAISED[name][0](folder)
    error = caught.value
    assert isinstance(error, lowbit.FileError)
    assert type(error).__name__ == "FileError"
    assert error.filename == error.path
    assert "Errno" not in str(error)
    assert isinstance(pickle.loads(pickle.dumps(error)), kind)


def test_no_permission(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: str, *_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr("os.open", refused)
    with pytest.raises(PermissionError, match=r"m\.gguf: Permission denied$") as caught:
        lowbit.load_npz(folder / "m.gguf")
    assert isinstance(caught.value, lowbit.FileError)


def test_a_file_error_without_errno_is_an_oserror() -> None:
    error = lowbit.FileError("no", path="p")
    assert type(error) is lowbit.FileError
    assert (error.errno, error.strerror, error.filename) == (None, None, "p")
    with pytest.raises(OSError, match=r"^p: no$"):
        raise error


def test_input_errors_are_value_errors() -> None:
    with pytest.raises(ValueError, match="threads"):
        lowbit.quantize(np.ones(32), "Q8_0", threads=0)


def raise_in_worker(name: str, folder: Path) -> None:
    RAISED[name][0](folder)


def test_errors_cross_processes(folder: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        for name in ("no file, C++", "cut off, C++", "a weight, C++", "no key"):
            with pytest.raises(RAISED[name][1]) as here:
                RAISED[name][0](folder)
            with pytest.raises(RAISED[name][1]) as there:
                pool.submit(raise_in_worker, name, folder).result()
            assert content(there.value) == content(here.value)


def test_an_error_of_a_class_of_ones_own() -> None:
    class OwnError(lowbit.FormatError):
        def __init__(self, number: int) -> None:
            super().__init__(f"number {number}", key="k")
            self.number = number

    error = copy.deepcopy(OwnError(3))
    assert (str(error), error.number, error.key) == ("number 3", 3, "k")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (lowbit.FormatError("t"), "t"),
        (lowbit.FormatError("t", path="p"), "p: t"),
        (lowbit.FormatError("t is 1", path="p", expected=2, found=1), "p: t is 1, expected 2"),
        (lowbit.FormatError("t:", path="p", expected=2, found=1), "p: t: expected 2, found 1"),
        (lowbit.InputError("t:", expected=2, found=1), "t: expected 2, got 1"),
        (lowbit.FormatError(path="p", expected=2, found=1, rest="; do this"), "p: expected 2, found 1; do this"),
        (lowbit.FormatError("t:", expected=2), "t: expected 2"),
        (lowbit.FileError("no", path=b"\xff/p"), r"\xff/p: no"),
        (lowbit.FormatError("a\nb", path="\x1b[2J", expected="\u202e"), r"\x1b[2J: a\nb, expected \u202e"),
    ],
)
def test_messages(error: Error, message: str) -> None:
    assert str(error) == message
    assert repr(error) == f"{type(error).__name__}({message!r})"
    assert len(str(type(error)("t" * 9999, path="p" * 9999, expected="e" * 9999, found="f" * 9999))) <= 500


def test_an_outer_function_adds_what_it_knows() -> None:
    error = lowbit.FormatError("the data is wrong", tensor="t")
    error.about("block 3: ", path=Path("p"), tensor="other")
    assert str(error) == "p: block 3: the data is wrong"
    assert error.tensor == "t"
    turned = error.turned(lowbit.UnsupportedError, key="k")
    assert (str(turned), turned.tensor, turned.key) == (str(error), "t", "k")


def texts(call: ast.Call) -> str:
    """The texts among a call's arguments, what is put into them as {expression}."""
    found = ""
    for value in call.args:
        for part in value.values if isinstance(value, ast.JoinedStr) else [value]:
            if isinstance(part, ast.Constant):
                found += str(part.value)
            elif isinstance(part, ast.FormattedValue):
                found += f"{{{ast.unparse(part.value)}}}"
    return found


def test_fields_are_set_where_the_text_names_them() -> None:
    names = {kind.__name__ for kind in public_classes() if issubclass(kind, Error)} | {"error", "_error"}
    wrong = []
    for source in sorted(PACKAGE.rglob("*.py")):
        for call in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or ast.unparse(call.func).rpartition(".")[2] not in names:
                continue
            text, given = texts(call), {keyword.arg for keyword in call.keywords}
            named = {name for name in ("tensor", "key") if re.search(rf"\b{name} '?{{", text)}
            named |= {"offset"} if "at offset {" in text else set()
            if ast.unparse(call.func).rpartition(".")[2] in ("error", "_error"):
                named = set()  # which set some themselves
            if missing := named - given:
                wrong.append(f"{source.name}:{call.lineno}: {', '.join(missing)}")
            if re.search(r"\bexpected\b|(found|got) {", text):
                wrong.append(f"{source.name}:{call.lineno}: expected and found are arguments")
            if re.match(r"{(self\.)?(path|folder|file\.path)}", text):
                wrong.append(f"{source.name}:{call.lineno}: path is an argument")
    assert not wrong, "\n".join(wrong)


def test_fields_are_set_where_the_text_of_the_core_names_them() -> None:
    root = PACKAGE.parent.parent / "src"
    wrong = []
    for source in sorted(root.rglob("*.cc")):
        for thrown in re.findall(r"\b(?:throw|return) \w*Error\w*\([^;]*;", source.read_text(encoding="utf-8")):
            text = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', re.split(r"\.(?:Expected|Found|Rest)\(", thrown)[0]))
            for name in ("tensor", "key"):
                if re.search(rf"\b{name} $|\b{name} [:,]", text) and f".{name.title()}(" not in thrown:
                    wrong.append(f"{source.name}: {name}: {text}")
            if re.search(r"\bexpected\b|, (found|got) ", text):
                wrong.append(f"{source.name}: expected and found are fields: {text}")
    assert not wrong, "\n".join(wrong)
