"""Paths that no system has, and things that are no files: one typed error of one line each, and nobody waits."""

from __future__ import annotations

import ast
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run
from tiny_checkpoint import make_checkpoint, write_imatrix, write_safetensors

import lowbit
from lowbit import imatrix
from lowbit.base.files import read_bytes, read_text
from lowbit.evaluate import plot
from lowbit.evaluate.bench import bench
from lowbit.evaluate.inspect import inspect
from lowbit.evaluate.ladder import ladder
from lowbit.hf.checkpoint import read_safetensors

SIZES = {"layers": 1, "hidden": 64, "ffn": 64, "head_dim": 16}
QUIET = {"progress": False}
Call = Callable[[Path, Any], Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("paths")
    make_checkpoint(path / "m", **SIZES)
    lowbit.convert(path / "m", path / "w.gguf", "F32", **QUIET)
    lowbit.split_file(path / "w.gguf", path / "p", split_max_tensors=6, **QUIET)
    write_imatrix(path / "i.gguf", path / "m")
    (path / "adapter").mkdir()
    (path / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    (path / "folder").mkdir()
    (path / "folder" / "file").touch()
    if os.name == "posix":
        os.mkfifo(path / "pipe")
        (path / "loop").symlink_to("loop")
    return path


READERS: dict[str, Call] = {
    "load": lambda d, x: lowbit.load(x),
    "load_tokenizer": lambda d, x: lowbit.load_tokenizer(x),
    "convert": lambda d, x: lowbit.convert(x, d / "o", **QUIET),
    "lora": lambda d, x: lowbit.convert(d / "m", d / "o", lora=[x], **QUIET),
    "imatrix": lambda d, x: lowbit.convert(d / "m", d / "o", "Q4_0", imatrix=x, **QUIET),
    "tensor_type_file": lambda d, x: lowbit.convert(d / "m", d / "o", tensor_type_file=x, **QUIET),
    "quantize_file": lambda d, x: lowbit.quantize_file(x, d / "o", "Q4_0", **QUIET),
    "split_file": lambda d, x: lowbit.split_file(x, d / "o", split_max_tensors=6, **QUIET),
    "merge_files": lambda d, x: lowbit.merge_files(x, d / "o", **QUIET),
    "export_hf": lambda d, x: lowbit.export_hf(x, d / "o", **QUIET),
    "verify": lambda d, x: lowbit.verify(x, d / "m", **QUIET),
    "verify, source": lambda d, x: lowbit.verify(d / "w.gguf", x, **QUIET),
    "inspect": lambda d, x: inspect(x),
    "imatrix.read": lambda d, x: imatrix.read(x),
    "load_imatrix": lambda d, x: imatrix.load_imatrix(x),
    "load_npz": lambda d, x: lowbit.load_npz(x),
    "QTensor.load": lambda d, x: lowbit.QTensor.load(x),
    "gguf.open": lambda d, x: lowbit.gguf.open(x),
    "gguf.edit": lambda d, x: lowbit.gguf.edit(x, {"general.name": "a"}),
    "gguf.diff": lambda d, x: lowbit.gguf.diff(d / "w.gguf", x),
    "register": lambda d, x: lowbit.arch.register(x),
    "bench": lambda d, x: bench(x),
    "ladder": lambda d, x: ladder(x),
    "ladder, imatrix": lambda d, x: ladder(d / "w.gguf", "a" * 400, rungs=["Q8_0"], imatrix=x, context=8, chunks=1),
    "open_checkpoint": lambda d, x: lowbit.open_checkpoint(x),
    "read_safetensors": lambda d, x: read_safetensors(x),
    "read_text": lambda d, x: read_text(x),
}
WRITERS: dict[str, Call] = {
    "convert": lambda d, x: lowbit.convert(d / "m", x, "F32", **QUIET),
    "convert, dry": lambda d, x: lowbit.convert(d / "m", x, "F32", dry_run=True, **QUIET),
    "quantize_file": lambda d, x: lowbit.quantize_file(d / "w.gguf", x, "Q8_0", **QUIET),
    "merge_files": lambda d, x: lowbit.merge_files(d / "p-00001-of-00003.gguf", x, **QUIET),
    "export_hf": lambda d, x: lowbit.export_hf(d / "w.gguf", x, **QUIET),
    "gguf.write": lambda d, x: lowbit.gguf.write(x, {}, {}),
    "Sums.save": lambda d, x: imatrix.read(d / "i.gguf").save(x),
    "save_npz": lambda d, x: lowbit.save_npz(x, {"a": lowbit.quantize(np.ones((1, 32), np.float32), "Q8_0")}),
    "draw": lambda d, x: plot.draw(None, x),  # type: ignore[arg-type]
}
NO_PATHS: dict[str, Any] = {
    "NUL": "a\0b.gguf", "bytes with NUL": b"a\0b.gguf", "surrogate": "a\ud800.gguf", "empty": "", "no bytes": b"",
    "number": 3, "nothing": None, "list": [], "hub id with NUL": "org/na\0me",
}  # fmt: skip


def refused(call: Call, folder: Path, path: Any, error: type[lowbit.Error]) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(error) as caught:
        call(folder, path)
    assert "\n" not in str(caught.value)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("kind", NO_PATHS)
def test_what_is_no_path(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)  # nothing is to be written there
    path = NO_PATHS[kind]
    optional = ("imatrix", "tensor_type_file", "ladder, imatrix") if path is None else ()
    for name, call in {**READERS, **{f"to {name}": call for name, call in WRITERS.items()}}.items():
        if name not in optional:
            refused(call, folder, path, lowbit.InputError)
    refused(lambda d, x: lowbit.split_file(d / "w.gguf", x, split_max_tensors=6, **QUIET), folder, path, lowbit.Error)


if os.name == "posix":
    NO_FILES = {
        "a name too long": "{}/" + "a" * 300,
        "a path too long": "{}/" + "a/" * 3000,
        "links in a circle": "{}/loop",
        "below a file": "{}/w.gguf/x",
        "a pipe": "{}/pipe",
        "a device": "/dev/zero",
        "a folder": "{}/folder",
    }

    @pytest.mark.parametrize("kind", NO_FILES)
    def test_what_is_no_file(folder: Path, kind: str) -> None:
        path = NO_FILES[kind].format(folder)
        for name, call in READERS.items():
            error = lowbit.Error if name == "inspect" or kind == "a folder" else lowbit.FileError
            refused(call, folder, path, error)
        for name, call in WRITERS.items():
            takes_folders = kind == "a folder" and name.split(",")[0] in ("convert", "quantize_file", "merge_files")
            if (name, kind) != ("convert, dry", "below a file") and not takes_folders:
                refused(call, folder, path, lowbit.InputError if name == "draw" else lowbit.FileError)

    SMALL = [
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
        "chat_template.jinja", "additional_chat_templates/a.jinja", "README.md", "model.safetensors",
        "model.safetensors.index.json", "tokenizer.model", "vocab.json", "added_tokens.json",
    ]  # fmt: skip

    @pytest.mark.parametrize("name", SMALL)
    def test_pipes_in_a_checkpoint_are_not_waited_for(tmp_path: Path, name: str) -> None:
        path = make_checkpoint(tmp_path / "m", **SIZES) / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        for call in (
            lambda: lowbit.convert(tmp_path / "m", tmp_path / "o.gguf", "F32", verify=True, **QUIET),
            lambda: lowbit.load(tmp_path / "m").tokenizer,
        ):
            with suppress(lowbit.Error):  # what nobody needs is as good as not there
                call()

    def test_pipes_of_adapters_and_edits(folder: Path, tmp_path: Path) -> None:
        adapter = tmp_path / "adapter"
        adapter.mkdir()
        write_safetensors(adapter / "adapter_model.safetensors", {})
        os.mkfifo(adapter / "adapter_config.json")
        with pytest.raises(lowbit.FileError, match="adapter_config"):
            lowbit.load(folder / "m", lora=adapter)
        data = bytearray((folder / "w.gguf").read_bytes())
        data[:4] = b"EDIT"
        (tmp_path / "w.gguf").write_bytes(data)
        os.mkfifo(tmp_path / "w.gguf.lowbit-undo")
        with pytest.raises(lowbit.FileError, match="expected a regular file"):
            lowbit.gguf.edit(tmp_path / "w.gguf")

    def test_a_limit_counts_what_is_read_and_not_what_the_system_says(tmp_path: Path) -> None:
        assert os.stat("/proc/self/status").st_size == 0
        assert read_bytes("/proc/self/status", 1 << 20).startswith(b"Name:")
        with pytest.raises(lowbit.FormatError, match="more than 10 bytes"):
            read_bytes("/proc/self/status", 10)
        (tmp_path / "a").write_bytes(b"x" * 11)
        with pytest.raises(lowbit.FormatError, match="11 bytes, expected at most 10"):
            read_bytes(tmp_path / "a", 10)
        assert read_bytes(tmp_path / "a", 11) == b"x" * 11

    def test_texts_from_pipes(folder: Path) -> None:
        """A shell gives `<(command)` as the name of a pipe."""
        read, write = os.pipe()
        os.write(write, "Grüße".encode())
        os.close(write)
        assert read_text(f"/dev/fd/{read}", pipes=True) == "Grüße"
        assert read_text(folder / "pipe", pipes=True) == ""  # nobody writes
        os.close(read)
        text = "".join(chr(65 + i % 26) for i in range(3000))
        result = run("perplexity", folder / "w.gguf", "/dev/stdin", "--context", 8, "--chunks", 1, "--json", input=text)
        assert '"chunks": 1' in result.stdout, result.stderr

    def test_a_folder_that_may_not_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stat = os.stat

        def refusing(path: Any, *args: Any, **options: Any) -> os.stat_result:
            if str(path).startswith(str(tmp_path / "m")):
                raise PermissionError(13, "Permission denied", path)
            return stat(path, *args, **options)

        monkeypatch.setattr(os, "stat", refusing)
        for call in (lowbit.load, lowbit.load_tokenizer, lowbit.gguf.open, inspect, lowbit.open_checkpoint):
            with pytest.raises(lowbit.FileError, match="Permission denied"):
                call(tmp_path / "m")  # type: ignore[operator]


def test_bytes_are_paths(folder: Path, tmp_path: Path) -> None:
    model, target = os.fsencode(folder / "m"), os.fsencode(tmp_path / "o.gguf")
    lowbit.convert(model, target, "F32", **QUIET)
    assert lowbit.load(target).logits([1, 2]).tolist() == lowbit.load(model).logits([1, 2]).tolist()
    assert lowbit.verify(target, model, **QUIET).ok
    lowbit.export_hf(target, os.fsencode(tmp_path / "hf"), **QUIET)
    assert lowbit.load_tokenizer(os.fsencode(tmp_path / "hf")).encode("a") == lowbit.load_tokenizer(model).encode("a")
    assert inspect(target).path == str(tmp_path / "o.gguf")


#: What each reader takes of the folder.
GOOD = {
    "load_tokenizer": "m", "convert": "m", "verify, source": "m", "ladder": "m", "open_checkpoint": "m",
    "read_safetensors": "m/model.safetensors", "merge_files": "p-00001-of-00003.gguf", "imatrix": "i.gguf",
    "imatrix.read": "i.gguf", "load_imatrix": "i.gguf", "load_npz": "q.npz", "QTensor.load": "q.npz",
    "read_text": "m/config.json", "tensor_type_file": "types", "register": "arch.py", "lora": "adapter",
    "ladder, imatrix": "i.gguf",
}  # fmt: skip


def test_the_home_folder_is_expanded(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every path: what is not found, or not right, is so by its whole name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "d").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    lowbit.save_npz("~/d/q.npz", {"a": lowbit.quantize(np.ones((1, 32), np.float32), "Q8_0")})
    write_safetensors(folder / "adapter" / "adapter_model.safetensors", {})
    (folder / "types").write_text("ffn_down=Q8_0")
    (folder / "arch.py").write_text("ARCHITECTURE = None")
    for name, call in READERS.items():
        for path in (f"~/d/{GOOD.get(name, 'w.gguf')}", Path("~/d", GOOD.get(name, "w.gguf"))):
            with suppress(lowbit.FormatError, lowbit.InputError):  # a tiny model, an empty adapter: found at least
                call(folder, path)
            if (made := folder / "o").is_dir():
                shutil.rmtree(made)
            made.unlink(missing_ok=True)
    for name, call in WRITERS.items():
        if name != "draw":
            call(folder, f"~/{name}.out")
    assert {path.name for path in tmp_path.iterdir()} == {"d"} | {f"{name}.out" for name in WRITERS} - {
        "draw.out", "convert, dry.out",
    }  # fmt: skip


def test_a_file_that_is_called_as_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    lowbit.gguf.write("./~", {"a": 1}, {})
    lowbit.gguf.write("~nobody.gguf", {"a": 2}, {})  # there is no such user
    assert sorted(path.name for path in tmp_path.iterdir()) == ["~", "~nobody.gguf"]
    for path, value in (("./~", 1), ("~nobody.gguf", 2)):
        assert inspect(path).metadata["a"] == value
        assert json.loads(run("metadata", path, "get", "a", "--json").stdout)["value"] == value
    with pytest.raises(lowbit.FileError, match="home"):
        inspect("~")


def test_a_large_file_that_is_no_importance_matrix(tmp_path: Path) -> None:
    """The header of a safetensors file, and a file that holds nothing else: 1 TB of it are not read."""
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": np.zeros((4, 4), np.float32)})
    for content in (path.read_bytes(), b"\0" * 64 + b"x" * 1000, b"\x01\0\0\0\x01\0\0\0a\x01\0\0\0\xff\xff\xff\x7f"):
        path.write_bytes(content)
        os.truncate(path, 1 << 40)
        with pytest.raises(lowbit.FormatError, match=r"not an importance matrix|this is a safetensors file"):
            imatrix.read(path)


#: Who may ask the system about files, and open them: everybody else calls these.
OPENING = {
    "base/paths.py", "base/operation.py", "base/files.py", "base/atomic.py", "base/file_sets.py", "gguf/rewriting.py",
    "gguf/editing.py", "base/folders.py", "evaluate/ladder.py", "cli/demo.py", "cli/execution.py",
}  # fmt: skip
#: What else has a method of such a name.
OTHERS = {
    "gguf", "lowbit.gguf", "_core.GgufFile", "target", "tensor", "t", "archive", "self.archive",
}  # fmt: skip
CALLS = {"open", "read_bytes", "read_text", "is_file", "is_dir", "isfile"}


def test_files_are_opened_in_one_place() -> None:
    """A new input that is opened by other means could be replaced, waited for, or fill the memory."""
    package = Path(lowbit.__file__).parent
    found = []
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or name in OPENING:
                continue
            function = node.func
            if isinstance(function, ast.Name) and function.id == "open":
                found.append(f"{name}:{node.lineno}: open")
            if isinstance(function, ast.Attribute) and function.attr in CALLS:
                owner = ast.unparse(function.value)
                if owner not in OTHERS:
                    found.append(f"{name}:{node.lineno}: {owner}.{function.attr}")
    assert found == []
