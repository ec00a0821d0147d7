"""Output files appear whole or not at all, whatever happens to the process that writes them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import lowbit
from lowbit import _core
from lowbit.base.atomic import AtomicFile

INFO = lowbit.gguf.TensorInfo("t", (1 << 16,), "I8")

# Writes half of the data, says so, and waits.
HALF_WRITER = """
import sys, lowbit
info = lowbit.gguf.TensorInfo("t", (1 << 16,), "I8")
writer = lowbit.gguf.Writer(sys.argv[1], {}, [info])
writer.write(bytes(1 << 15))
print("half", flush=True)
sys.stdin.read()
"""

# Writes everything, but the system allows files of 10,000 bytes only.
LIMITED_WRITER = """
import resource, signal, sys, lowbit
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
info = lowbit.gguf.TensorInfo("t", (1 << 16,), "I8")
try:
    with lowbit.gguf.Writer(sys.argv[1], {}, [info]) as writer:
        writer.write(bytes(1 << 16))
except lowbit.FileError as error:
    print(error)
"""


def write_whole(path: Path) -> None:
    with lowbit.gguf.Writer(path, {}, [INFO]) as writer:
        writer.write(bytes(1 << 16))


def start_half_writer(path: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", HALF_WRITER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == b"half"
    return process


def finish(process: subprocess.Popen[bytes], end: Callable[[], None]) -> None:
    with process:
        end()


PIECE = 2 << 20  # in which the system gets a file


def test_a_file_written_in_parts_of_any_size(tmp_path: Path) -> None:
    path = tmp_path / "x"
    written = bytearray()
    with AtomicFile(path) as file:
        for i, size in enumerate([0, 5, PIECE, PIECE - 6, 1, 1, 3 * PIECE, 2 * PIECE - 1, 1, PIECE + 7, 300]):
            part = np.random.default_rng(i).bytes(size)
            assert file.write(part) == size
            written += part
            if i % 4 == 3:
                assert Path(file.temporary_path).read_bytes() == written
    assert path.read_bytes() == written


if sys.platform == "linux":

    def test_a_file_written_in_small_parts_takes_few_system_calls(tmp_path: Path) -> None:
        def num_writes() -> int:
            counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
            return int(counts["syscw"])

        part = bytes(4096)
        with AtomicFile(tmp_path / "x") as file:
            before = num_writes()
            for _ in range(4 * PIECE // len(part)):
                file.write(part)
            assert num_writes() - before == 4


def test_a_killed_writer_leaves_the_target_alone_and_its_rest_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    process = start_half_writer(path)
    (temporary,) = os.listdir(tmp_path)
    assert temporary.startswith(f".x.gguf.{process.pid}-")
    assert temporary.endswith(".tmp")
    finish(process, process.kill)
    assert os.listdir(tmp_path) == [temporary]
    write_whole(path)
    assert os.listdir(tmp_path) == ["x.gguf"]


def test_a_living_writer_keeps_its_file(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    process = start_half_writer(path)
    (temporary,) = os.listdir(tmp_path)
    write_whole(path)
    assert sorted(os.listdir(tmp_path)) == [temporary, "x.gguf"]
    finish(process, process.kill)


def test_other_files_are_never_taken_for_a_rest(tmp_path: Path) -> None:
    names = [
        ".x.gguf.tmp",
        ".x.gguf..tmp",
        ".x.gguf.12x.tmp",
        ".y.gguf.12-0.tmp",
        ".x.gguf.12-0.tmp2",
        "x.gguf.1.tmp",
    ]
    for name in names:
        (tmp_path / name).touch()
    write_whole(tmp_path / "x.gguf")
    assert set(os.listdir(tmp_path)) == {*names, "x.gguf"}


def test_two_writers_of_one_target_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    with lowbit.gguf.Writer(path, {}, [INFO]) as first:
        write_whole(path)
        first.write(bytes(range(256)) * 256)
    assert bytes(lowbit.gguf.open(path).tensors["t"][:256].view("u1")) == bytes(range(256))
    assert os.listdir(tmp_path) == ["x.gguf"]


if os.name == "posix":

    def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path) -> None:
        path = tmp_path / "x.gguf"
        result = subprocess.run(
            [sys.executable, "-c", LIMITED_WRITER, path], capture_output=True, text=True, check=True
        )
        assert f"{path}: cannot write: File too large" in result.stdout
        assert os.listdir(tmp_path) == []

    def test_links_are_followed(tmp_path: Path) -> None:
        (tmp_path / "store").mkdir()
        target, link = tmp_path / "store" / "x.gguf", tmp_path / "link.gguf"
        link.symlink_to(Path("store") / "x.gguf")
        for _ in ("dangling", "existing"):
            write_whole(link)
            assert link.is_symlink()
            assert target.stat().st_size > 1 << 16
        assert sorted(os.listdir(tmp_path)) == ["link.gguf", "store"]

    def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(lowbit.FileError, match="expected a regular file, found a device or pipe"):
            write_whole(tmp_path / "pipe")
        assert (tmp_path / "pipe").is_fifo()

    def test_names_that_are_not_utf8(tmp_path: Path) -> None:
        path = os.fsencode(tmp_path) + b"/\xff.gguf"
        write_whole(path)  # type: ignore[arg-type]
        assert list(lowbit.gguf.open(path).tensors) == ["t"]
        with pytest.raises(lowbit.FileError, match=r"\\xfe\.gguf"):
            lowbit.gguf.open(os.fsencode(tmp_path) + b"/\xfe.gguf")


def test_paths_with_a_nul_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"precious")
    path = os.fsencode(tmp_path) + b"/a\0b"
    for call in (
        lambda: _core.AtomicWriter(path),
        lambda: _core.GgufWriter(path, _core.GgufPlan([], [])),
        lambda: _core.GgufFile.open(path),
        lambda: _core.GgufFile.open_one(path),
    ):
        with pytest.raises(lowbit.InputError, match=r"a\\x00b: expected a path without NUL"):
            call()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"a": b"precious"}


# A thousand folders have the names that it would try.
CROWDED_WRITER = """
import os, sys, lowbit
for number in range(1000):
    os.mkdir(f"{sys.argv[1]}/.a.{os.getpid()}-{number}.tmp")
try:
    lowbit.gguf.write(sys.argv[1] + "/a", {}, {})
except lowbit.FileError as error:
    print(error)
"""


def test_the_search_for_a_temporary_name_ends(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", CROWDED_WRITER, tmp_path], capture_output=True, text=True, check=True
    )
    assert f"{tmp_path}/a: cannot write" in result.stdout
