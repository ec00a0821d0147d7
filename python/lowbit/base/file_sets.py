"""Files that are one model only together: how a set of them is replaced, so that two sets never open as one.

Files of a split model say how many there are and which one each is, and the reference writes nothing else into the
later ones, so files of two conversions with equal numbers would open as one model. An identification of the set would
change files that have to equal the reference's. Instead the order of steps keeps sets apart:

1. All new files are complete and on the disk, under temporary names.
2. The old files get temporary names, the first of them first. From here on the set is incomplete, and readers say so.
3. The new files get their names, the first last: now the set is whole again. The old files are removed.

An error or Ctrl-C on the way puts the old files back. A process killed on the way leaves a set without its first file;
the rest under temporary names is removed when that name is written again. Two writers of one set take turns in steps 2
and 3. `gguf.open` sees that a set changed while it opened the files: the first file is another one then.
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

#: Renaming takes milliseconds: whoever is not done after so many seconds never will be.
PATIENCE = 60.0
_PAUSE = 0.01


@contextmanager
def replacing_set(paths: Sequence[str], temporary: Sequence[str]) -> Iterator[None]:
    """Around what renames the complete files `temporary` to `paths`, the first last. Raises FileError."""
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
    """Gives a file the name of a temporary one, locked so that no other writer takes it for a rest."""
    if (descriptor := locked(target)) is not None:
        held.append(descriptor)
    aside = _temporary(target, f"{os.getpid()}-0-{threading.get_ident()}")
    old[target] = aside
    os.rename(target, aside)
    sync_folder(target)


def _temporary(target: str, number: str) -> str:
    """A name as `atomic.remove_stale` knows it."""
    folder, name = os.path.split(target)
    return os.path.join(folder, f".{name}.{number}.tmp")


def _identity(path: str | int) -> Identity:
    return identity(os.stat(path))


def _sync(path: str) -> None:
    """Waits for the disk before the steps that should be quick. What it refuses is said where the file is finished."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _turn(target: str) -> Iterator[None]:
    """One writer of a set at a time, where the system has locks. The locked file is gone when the last is done."""
    if sys.platform == "win32":  # no locks there, and no open file is removed
        yield
        return
    path = _temporary(target, "0-0")  # of no process, so no writer's
    deadline = time.monotonic() + PATIENCE
    while (descriptor := _taken(path, target)) is None:
        if time.monotonic() > deadline:
            raise FileError(f"another process has been replacing it for {PATIENCE:.0f} seconds", path=target)
        time.sleep(_PAUSE)
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(path)
        os.close(descriptor)


def _taken(path: str, target: str) -> int | None:
    """A descriptor of the file, made if need be, that nobody else holds; None if somebody does."""
    flags = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        raise FileError.of(error, target, "cannot replace") from None
    is_locked = lock(descriptor)
    with suppress(FileNotFoundError):
        if is_locked is None or (is_locked and _identity(path) == _identity(descriptor)):
            return descriptor
    os.close(descriptor)  # another's, or removed by its last holder
    return None
