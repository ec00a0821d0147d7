"""Files that appear whole or not at all, locks, and what writers that were killed left behind."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from types import TracebackType
from typing import Any

from lowbit import _core
from lowbit.base.paths import AnyPath, target

if sys.platform != "win32":
    import fcntl


class AtomicFile:
    """Written under a temporary name in the same folder until the `with` block ends without an exception.

    Has of a Python file what `zipfile` needs. Raises FileError if the system refuses.
    """

    def __init__(self, path: AnyPath) -> None:
        self._core = _core.AtomicWriter(target(path))

    def write(self, data: Any) -> int:
        """Appends the bytes of a contiguous buffer; returns how many."""
        return self._core.write(data)

    def flush(self) -> None:
        """Nothing is held back."""

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
    """Locks an open file until it is closed: whether that worked, None where there are no locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None  # a file system without
    return True


def locked(path: str | os.PathLike[str]) -> int | None:
    """A descriptor that keeps a file or folder locked until it is closed or the process ends.

    None if another holds the lock, or where there are none. A link is not followed.
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
    """Waits until the disk has the names of the folder that `path` lies in."""
    with suppress(OSError):  # some systems cannot
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_stale(path: str) -> None:
    """Removes temporary files of writers that were killed: of this file, and of split models of its name, whatever the
    number of their files. A living writer's are locked."""
    folder, name = os.path.split(path)
    stem = re.escape(re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", name))
    temporary = re.compile(rf"\.{stem}(-\d{{5}}-of-\d{{5}})?(\.gguf)?\.[\d-]+\.tmp", re.ASCII)
    with suppress(OSError):
        for found in os.listdir(folder or "."):
            if temporary.fullmatch(found) and (held := locked(os.path.join(folder, found))) is not None:
                with suppress(OSError):
                    os.unlink(os.path.join(folder, found))
                os.close(held)
