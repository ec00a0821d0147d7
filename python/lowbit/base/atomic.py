"""Files that are written completely or not at all, locks, and removal of the temporary files of killed writers."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any

from lowbit import _core
from lowbit.base.paths import AnyPath, target

if sys.platform != "win32":
    import fcntl


class AtomicFile:
    """Written under a temporary name in the same folder until the `with` block ends without an exception.

    Has the methods of a Python file that `zipfile` needs. Raises FileError if the system refuses.
    """

    def __init__(self, path: AnyPath) -> None:
        self._core = _core.AtomicWriter(target(path))

    @property
    def temporary_path(self) -> str:
        """The path of the file until the block ends. The file has all that was written up to this call."""
        return os.fsdecode(self._core.temporary_path)

    def write(self, data: Any) -> int:
        """Appends the bytes of a contiguous buffer; returns their number."""
        return self._core.write(data)

    def flush(self) -> None:
        """Does nothing: `zipfile` calls it, but does not read the file."""

    def __enter__(self) -> AtomicFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._core.commit()
        finally:
            self._core.abort()


def lock(descriptor: int) -> bool | None:
    """Locks an open file until it is closed. Returns whether that succeeded; None if there are no locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None  # a file system without locks
    return True


def locked(path: str | os.PathLike[str]) -> int | None:
    """A descriptor that keeps a file or folder locked until it is closed or the process ends.

    None if another process holds the lock, or if there are no locks. Links are not followed.
    """
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    if lock(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def sync_folder(path: str) -> None:
    """Waits until the file names in the folder of `path` are on the disk."""
    with suppress(OSError):  # some systems cannot
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def abandoned(folder: str, temporary: re.Pattern[str]) -> Iterator[str]:
    """Paths in a folder whose names match, and which no living writer has locked. Links are left out."""
    for name in os.listdir(folder or "."):
        path = os.path.join(folder, name)
        if temporary.fullmatch(name) and (held := locked(path)) is not None:
            try:
                yield path
            finally:
                os.close(held)


def remove_stale(path: str) -> None:
    """Removes temporary files of killed writers: of this file, and of split models of its name with any number of
    files. The files of live writers are locked."""
    folder, name = os.path.split(path)
    stem = re.escape(re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", name))
    temporary = re.compile(rf"\.{stem}(-\d{{5}}-of-\d{{5}})?(\.gguf)?\.[\d-]+\.tmp", re.ASCII)
    with suppress(OSError):
        for found in abandoned(folder, temporary):
            with suppress(OSError):
                os.unlink(found)
