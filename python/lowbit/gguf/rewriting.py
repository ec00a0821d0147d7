"""Rewriting the start of a GGUF file, in place or in a copy.

In place, no order of writes keeps the file valid at every moment, because the number of keys and the keys are in
different pages. So the old bytes are first saved in a second file (`Undo`), and the file does not start with "GGUF"
until the new bytes are on the disk. A program that opens it meanwhile, or after a crash, gets an error instead of a
mixture. The next edit restores the old bytes.
"""

from __future__ import annotations

import builtins
import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

import numpy as np

from lowbit.base.atomic import AtomicFile, lock, sync_folder
from lowbit.base.errors import FileError, FormatError
from lowbit.base.files import FileReader, read_bytes
from lowbit.base.paths import check_regular
from lowbit.base.progress import Advance

_MAGIC, _EDITING = b"GGUF", b"EDIT"
_COPY_BYTES = 8 << 20


@contextmanager
def system_errors(path: str) -> Iterator[None]:
    """Converts errors of the system to FileError."""
    try:
        yield
    except OSError as error:
        raise FileError.of(error, path, "cannot edit") from None


@contextmanager
def locked(path: str) -> Iterator[FileIO]:
    """The file, open for reading and writing, locked against other edits."""
    with system_errors(path):
        check_regular(path, os.stat(path), "cannot edit:")
        with builtins.open(path, "r+b", buffering=0) as file:
            if lock(file.fileno()) is False:  # None: the file system has no locks
                raise FileError("cannot edit: another program is editing the file", path=path)
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                raise FileError("cannot edit: another program has just replaced the file", path=path)
            yield file


def difference(old: bytes, new: bytes) -> range:
    """The smallest range that contains all differing bytes."""
    differs = np.flatnonzero(np.frombuffer(old, np.uint8) != np.frombuffer(new, np.uint8))
    return range(int(differs[0]), int(differs[-1]) + 1) if len(differs) else range(0)


def write_at(file: FileIO, offset: int, data: bytes) -> None:
    """Writes all bytes, and waits until they are on the disk."""
    file.seek(offset)
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
    os.fsync(file.fileno())


class Undo:
    """The bytes that an edit in place overwrites, in a second file: head, SHA-256 of the rest, and the bytes."""

    SUFFIX = ".lowbit-undo"
    _HEAD = struct.Struct("<16sQQ32s")  # magic, size of the edited file, offset of the bytes
    _MAGIC = b"lowbit undo 1\n\0\0"

    def __init__(self, target: str) -> None:
        self.target = target
        self.path = target + self.SUFFIX

    def save(self, size: int, offset: int, old: bytes) -> None:
        """Waits until the file is on the disk."""
        with builtins.open(self.path, "xb", buffering=0) as file:
            write_at(file, 0, self._HEAD.pack(self._MAGIC, size, offset, hashlib.sha256(old).digest()) + old)
        sync_folder(self.path)

    def restore(self, file: FileIO) -> bool:
        """Restores the bytes if the file's magic shows an interrupted edit, then removes the saved copy.

        Returns whether it restored them.
        """
        file.seek(0)
        needed = file.read(len(_MAGIC)) != _MAGIC
        if needed:
            offset, old = self._load(os.fstat(file.fileno()).st_size)
            write_at(file, offset, old)
            write_at(file, 0, _MAGIC)
        self.remove()
        return needed

    def remove(self) -> None:
        """Removes the saved bytes."""
        with suppress(FileNotFoundError):
            os.unlink(self.path)

    def _load(self, size: int) -> tuple[int, bytes]:
        if not os.path.lexists(self.path):
            raise FileError(
                f"an edit was interrupted, and the file that undoes it is missing: {self.path}", path=self.target
            )
        data = read_bytes(self.path, self._HEAD.size + size)
        if len(data) >= self._HEAD.size:
            magic, size_then, offset, digest = self._HEAD.unpack_from(data)
            old = data[self._HEAD.size :]
            known = (magic, size_then, digest) == (self._MAGIC, size, hashlib.sha256(old).digest())
            if known and offset + len(old) <= size:
                return offset, old
        raise FormatError(
            path=self.path, expected=f"the saved bytes of the interrupted edit of {self.target}", found="other content"
        )


def recover(file: FileIO, target: str) -> bool:
    """Rolls back an interrupted edit. Returns whether there was one."""
    undo = Undo(target)
    file.seek(0)
    return (os.path.lexists(undo.path) or file.read(len(_EDITING)) == _EDITING) and undo.restore(file)


def drop_undo(target: str) -> None:
    """Removes the saved bytes of a file that has been replaced, unless the new file is being edited."""
    if os.path.lexists(Undo(target).path):
        with suppress(FileError, FormatError), locked(target) as file:
            recover(file, target)


def write_in_place(file: FileIO, target: str, old: bytes, new: bytes) -> None:
    """Overwrites the file's start, `old`, with `new`; on an error the file is unchanged."""
    changed = difference(old, new)
    undo = Undo(target)
    try:
        undo.save(os.fstat(file.fileno()).st_size, changed.start, old[changed.start : changed.stop])
        write_at(file, 0, _EDITING)
        write_at(file, changed.start, new[changed.start : changed.stop])
        write_at(file, 0, _MAGIC)
    except BaseException:
        undo.restore(file)
        raise
    undo.remove()


def copy(target: str, header: bytes, data_begin: int, advance: Advance) -> None:
    """Replaces the file by a copy with another header and the same data."""
    reader = FileReader(Path(target))
    total = len(header) + reader.size - data_begin
    with AtomicFile(target) as out:
        out.write(header)
        for begin in range(data_begin, reader.size, _COPY_BYTES):
            size = min(_COPY_BYTES, reader.size - begin)
            out.write(reader.read(begin, size))
            advance(total - (reader.size - begin - size), total)
