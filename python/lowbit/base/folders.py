"""Folders that appear completely or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lowbit.base.atomic import abandoned, locked
from lowbit.base.errors import FileError
from lowbit.base.paths import is_dir, status


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder under a temporary name in the same parent. It gets the name `path` at the end unless there is an
    exception."""
    try:
        if status(path) and (not is_dir(path) or any(path.iterdir())):
            raise FileError("there already", path=path, errno=errno.EEXIST, expected="a new or an empty folder")
        if not is_dir(path.parent):
            raise FileError("no such folder; make it first", path=path.parent, errno=errno.ENOENT)
        _remove_stale(path)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        lock = locked(temporary)
    except OSError as error:
        raise FileError.of(error, path) from None
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())  # mkdtemp gives access to the owner only
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    except OSError as error:
        failed = FileError.of(error, path)
        failed.path = str(failed.path).replace(str(temporary), str(path))
        raise failed from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextmanager
def made(folder: str | None) -> Iterator[None]:
    """Makes a folder for the files that are written inside, and removes it if there is an exception before the first.
    None: there is nothing to make. Raises FileError."""
    if folder is None:
        yield
        return
    try:
        os.mkdir(folder)
    except OSError as error:
        raise FileError.of(error, folder) from None
    try:
        yield
    except BaseException:
        with suppress(OSError):  # it has files
            os.rmdir(folder)
        raise


def _remove_stale(path: Path) -> None:
    """Removes the temporary folders of killed writers. The folders of live writers are locked."""
    for folder in abandoned(str(path.parent), re.compile(rf"\.{re.escape(path.name)}\.\w{{8}}\.part")):
        shutil.rmtree(folder, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
