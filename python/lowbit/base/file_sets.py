"""Files that form one model: a set is replaced so that files of two sets never open as one model.

The reference writes only the index and the number of files into the later files of a split model. So files of two
conversions with equal numbers would open as one model. An identifier of the set would make the files differ from the
reference's. Instead, the order of steps keeps sets apart:

1. All new files are complete and on the disk, under temporary names.

2. The old files get temporary names, the first file first. From here on the set is incomplete, and readers report it.

3. The new files get their names, the first file last. Now the set is complete. The old files are removed.

An error or Ctrl-C meanwhile restores the old files. A killed process leaves a set without its first file; the remaining
temporary files are removed when that name is written again. Two writers of one set run steps 2 and 3 one after another.
`gguf.open` detects that a set changed while it opened the files: its first file is then a different one.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from lowbit.base.atomic import lock, locked, sync_folder
from lowbit.base.errors import FileError
from lowbit.base.paths import Identity, identity

#: Renaming takes milliseconds: a process that is not done after this many seconds is stuck.
PATIENCE = 60.0
_PAUSE = 0.01


@contextmanager
def replacing_set(paths: Sequence[str], temporary: Sequence[str]) -> Iterator[None]:
    """Wraps the renaming of the complete files `temporary` to `paths`, the first last. Raises FileError."""
    targets = [os.path.realpath(path) for path in paths]
    for path in temporary:
        _sync(path)
    made = {_identity(path) for path in temporary}
    old: dict[str, str] = {}
    held: list[int] = []
    with _turn(targets[0]):
        try:
            try:
                for target in targets:
                    if os.path.exists(target):
                        _set_aside(target, old, held)
            except OSError as error:
                raise FileError.of(error, target, "cannot replace") from None
            yield
        except BaseException:
            for target in targets:  # the first again before the others
                with suppress(OSError):
                    if _identity(target) in made:
                        os.unlink(target)
            for target, path in reversed(old.items()):
                with suppress(OSError):
                    os.replace(path, target)
            raise
        else:
            for path in old.values():
                with suppress(OSError):
                    os.unlink(path)
        finally:
            for descriptor in held:
                os.close(descriptor)


def _set_aside(target: str, old: dict[str, str], held: list[int]) -> None:
    """Gives a file a temporary name, locked so that no other writer removes it as stale."""
    if (descriptor := locked(target)) is not None:
        held.append(descriptor)
    aside = _temporary(target, f"{os.getpid()}-0-{threading.get_ident()}")
    old[target] = aside
    os.rename(target, aside)
    sync_folder(target)


def _temporary(target: str, number: str) -> str:
    """A name that `atomic.remove_stale` recognises."""
    folder, name = os.path.split(target)
    return os.path.join(folder, f".{name}.{number}.tmp")


def _identity(path: str | int) -> Identity:
    return identity(os.stat(path))


def _sync(path: str) -> None:
    """Syncs before the steps that must be quick. Errors are reported when the file is finished."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _turn(target: str) -> Iterator[None]:
    """One writer of a set at a time, if the system has locks. The locked file is removed by the last writer."""
    if sys.platform == "win32":  # no locks, and open files cannot be removed
        yield
        return
    path = _temporary(target, "0-0")  # no process has this number, so no writer uses the name
    deadline = time.monotonic() + PATIENCE
    while (descriptor := _taken(path, target)) is None:
        if time.monotonic() > deadline:
            raise FileError(
                f"another process has been replacing it for {PATIENCE:.0f} seconds: end it, then try again", path=target
            )
        time.sleep(_PAUSE)
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(path)
        os.close(descriptor)


def _taken(path: str, target: str) -> int | None:
    """A descriptor of the file, created if needed, that no other process holds; None if one does."""
    flags = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        raise FileError.of(error, target, "cannot replace") from None
    is_locked = lock(descriptor)
    with suppress(FileNotFoundError):
        if is_locked is None or (is_locked and _identity(path) == _identity(descriptor)):
            return descriptor
    os.close(descriptor)  # held by another process, or removed by its last holder
    return None
