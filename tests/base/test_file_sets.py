"""A split model that replaces another: the old one, the new one, or none, whenever the writer ends; never a mixture."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lowbit
from lowbit import gguf
from lowbit.base import file_sets
from lowbit.base.files import FileReader
from lowbit.gguf import reading
from lowbit.gguf.source import gguf_tensors

NAMES = [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tensors = {f"blk.{i}.{n}.weight": np.ones((32, 256), np.float32) for i in range(3) for n in ("ffn_up", "attn_q")}
    keys = {"general.architecture": "llama", "llama.block_count": 3, "llama.attention.head_count": 8}
    keys |= {"llama.attention.head_count_kv": 8, "llama.embedding_length": 256}
    gguf.write(tmp_path / "source.gguf", keys, tensors)
    (tmp_path / "set").mkdir()
    return tmp_path / "source.gguf"


def make(source: Path, format: str, tensors: int = 2) -> lowbit.Report:
    target = source.parent / "set" / "m.gguf"
    return lowbit.quantize_file(source, target, format, threads=1, split_max_tensors=tensors)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def formats(folder: Path) -> set[str] | None:
    """The formats of the set, None if it is refused, however it is opened."""
    found: set[str] | None = None
    # Where some files are there, none is said to be simply missing.
    words = "split model" if any((folder / name).exists() for name in NAMES) else "No such file"
    for name in NAMES:
        if refused(folder / name, words):
            continue
        with gguf.open(folder / name) as file:
            assert len(file.infos) == 6
            found = (found or set()) | {info.format for info in file.infos.values()}
    return found


def refused(path: Path, words: str) -> bool:
    try:
        gguf.open(path).close()
    except lowbit.FileError as error:
        return words in str(error)
    return False


def at_each_step(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Calls `act` with the number of each step, before and after everything that changes the folder's names."""
    count = 0

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            act(count)
            result = function(*args, **options)
            count += 1
            act(count)
            return result

        return step

    monkeypatch.setattr(gguf.Writer, "finish", wrapped(gguf.Writer.finish))
    changing = {name: wrapped(getattr(os, name)) for name in ("rename", "replace", "unlink")}
    monkeypatch.setattr(file_sets, "os", SimpleNamespace(**{**vars(os), **changing}))


if os.name == "posix":

    def killed(source: Path, step: int) -> bool:
        """Whether the writer came as far as this step, at which it ends without a word."""
        pid = os.fork()
        if pid == 0:
            at_each_step(pytest.MonkeyPatch(), lambda now: os._exit(9) if now == step else None)
            make(source, "F16")
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9

    @pytest.mark.parametrize("again", ["same number", "another number", "whole"])
    def test_a_killed_writer(source: Path, again: str) -> None:
        folder = source.parent / "set"
        make(source, "Q8_0")
        old = contents(folder)
        seen, step = [], 1
        while True:
            for path in folder.iterdir():
                path.unlink()
            for name, data in old.items():
                (folder / name).write_bytes(data)
            if not killed(source, step):
                break
            found = formats(folder)
            assert found in ({"Q8_0"}, {"F16"}, None), step
            seen.append(found)
            if again == "same number":
                make(source, "Q4_0")
                assert (formats(folder), sorted(contents(folder))) == ({"Q4_0"}, NAMES), step
            else:  # what a killed writer left is found by its name, not by its number of files
                others = set(make(source, "Q4_0", 3 if again == "another number" else 6).paths)
                left = {path for path in folder.iterdir() if str(path) not in others}
                assert {path.name for path in left} <= set(NAMES), step
            step += 1 if again == "same number" else 4
        assert step > 12
        assert seen[0] == {"Q8_0"}
        assert None in seen
        assert seen[-1] == {"F16"} or again != "same number"
        assert formats(folder) == {"F16"}

    WRITER = """
import sys
import lowbit
for i in range(12):
    format = ("Q8_0", "F16")[(i + int(sys.argv[3])) % 2]
    lowbit.quantize_file(sys.argv[1], sys.argv[2], format, threads=1, split_max_tensors=2)
"""

    def test_two_writers_and_a_reader(source: Path) -> None:
        folder = source.parent / "set"
        make(source, "Q8_0")
        line = [sys.executable, "-c", WRITER, str(source), str(folder / "m.gguf")]
        writers = [subprocess.Popen([*line, str(i)]) for i in range(2)]
        seen = []
        while any(writer.poll() is None for writer in writers):
            seen.append(formats_at_once(folder))
        assert [writer.returncode for writer in writers] == [0, 0]
        assert {"F16", "Q8_0"} not in seen
        assert formats(folder) in ({"Q8_0"}, {"F16"})
        assert sorted(contents(folder)) == NAMES

    def formats_at_once(folder: Path) -> set[str] | None:
        try:
            with gguf.open(folder / NAMES[1]) as file:
                return {info.format for info in file.infos.values()}
        except lowbit.Error:
            return None

    def test_links_and_permissions_of_a_set(source: Path) -> None:
        folder, store = source.parent / "set", source.parent / "store"
        store.mkdir()
        make(source, "Q8_0")
        for name in NAMES:
            (folder / name).chmod(0o640)
            (folder / name).rename(store / name)
            (folder / name).symlink_to(store / name)
        make(source, "F16")
        assert all((folder / name).is_symlink() for name in NAMES)
        assert [path.stat().st_mode & 0o777 for path in sorted(store.iterdir())] == [0o640] * 3
        assert formats(folder) == {"F16"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
@pytest.mark.parametrize("before", [NAMES, NAMES[1:2], []], ids=["three", "one", "none"])
def test_an_error_at_any_step_puts_the_old_files_back(
    source: Path, before: list[str], error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = source.parent / "set"
    make(source, "Q8_0")
    for name in set(NAMES) - set(before):
        (folder / name).unlink()
    old = contents(folder)
    step = 1
    while True:
        raised = False

        def fail(now: int, step: int = step) -> None:
            nonlocal raised
            if now == step:
                raised = True
                raise error

        with monkeypatch.context() as patch:
            at_each_step(patch, fail)
            with suppress(OSError, lowbit.FileError, KeyboardInterrupt):
                make(source, "F16")
        if not raised:
            break
        found = contents(folder)
        if formats(folder) != {"F16"}:  # an old file that could not be removed takes nothing back
            assert found == old, step
        for path in folder.iterdir():
            path.unlink()
        for name, data in old.items():
            (folder / name).write_bytes(data)
        step += 1
    assert step > 6
    assert sorted(contents(folder)) == NAMES


def test_a_set_of_another_number_is_named(source: Path) -> None:
    assert make(source, "Q8_0").notes == []
    (note,) = make(source, "F16", 3).notes
    assert note.startswith("3 of 3 files of an older model")
    assert "m-00001-of-00003.gguf remain: this one has 2" in note
    assert make(source, "F16", 6).notes == []  # of one file, which has another name


def test_whoever_waits_too_long_says_so(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(source, "Q8_0")
    old = contents(source.parent / "set")
    monkeypatch.setattr(file_sets, "PATIENCE", 0.0)
    monkeypatch.setattr(file_sets, "lock", lambda descriptor: False)
    with pytest.raises(lowbit.FileError, match="another process has been replacing it"):
        make(source, "F16")
    (source.parent / "set" / f".{NAMES[0]}.0-0.tmp").unlink()  # which the other process has
    assert contents(source.parent / "set") == old


def test_a_set_that_changes_while_it_is_opened(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = source.parent / "set"
    make(source, "Q8_0")

    def opening(path: bytes) -> Any:
        opened = reading_core.GgufFile.open(path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reading, "_core", reading_core)
            make(source, "F16")
        return opened

    reading_core = reading._core
    monkeypatch.setattr(reading, "_core", SimpleNamespace(GgufFile=SimpleNamespace(open=opening)))
    with pytest.raises(lowbit.FileError, match=r"m-00001-of-00003\.gguf: the file was replaced while it was opened"):
        gguf.open(folder / NAMES[1])


def test_a_file_that_is_replaced_before_its_tensors_are_read(source: Path) -> None:
    """Offsets of one file in another would give other weights without a word."""
    with gguf.open(source) as file:
        gguf.write(source, {}, {"other": np.zeros(4, np.float32)})
        with pytest.raises(lowbit.FileError, match="the file was replaced while it was opened"):
            gguf_tensors(file)
        assert file.tensors["blk.0.ffn_up.weight"].shape == (32, 256)  # mapped


def test_what_killed_writers_left(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    gguf.write(path, {"general.architecture": "llama"} | gguf.padding(), {"x": np.zeros(4, np.float32)})
    stale = [".m.gguf.999999-0.tmp", ".m-00002-of-00003.gguf.999999-1.tmp", ".m-00001-of-00009.gguf.7-0-1.tmp"]
    others = [".m.gguf.tmp", ".mm.gguf.999999-0.tmp", ".m-1-of-2.gguf.9-0.tmp", "m.gguf.9-0.tmp", ".m.gguf.9-x.tmp"]
    for edit in ({"general.name": "in place"}, {"general.name": "x" * 100_000}, {}):
        for name in stale + others:
            (tmp_path / name).touch()
        gguf.edit(path, edit)
        assert sorted(os.listdir(tmp_path)) == sorted([*others, "m.gguf"])
    assert FileReader(path).size > 100_000


def test_a_file_that_replaces_one_with_an_interrupted_edit(tmp_path: Path) -> None:
    path, undo = tmp_path / "m.gguf", tmp_path / "m.gguf.lowbit-undo"
    for write in (lambda: gguf.write(path, {}, {}), lambda: gguf.edit(path, {"general.name": "a"})):
        gguf.write(path, {"general.architecture": "llama"}, {})
        undo.write_bytes(b"of an edit that was killed")
        write()
        assert os.listdir(tmp_path) == ["m.gguf"]
