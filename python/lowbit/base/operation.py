"""What an operation reads is never what it replaces.

An operation is one call of a function that reads files and writes others (`convert`, `split_file`), or one command.
While it runs, whatever opens a file says so with `reading`, and whatever is about to write says so with `replacing`,
before the first byte and in dry runs too. A file that is both is refused, whichever comes first, also through links.
Readers call `reading` themselves (`file_reader`, `gguf.open`), so a new kind of input needs nothing to be protected.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from lowbit.base.errors import InputError
from lowbit.base.paths import Identity, check_regular, identity, status


class _Operation:
    def __init__(self, outer: _Operation | None) -> None:
        self.outer = outer
        self.read: dict[Identity, str] = {}
        self.replaced: dict[Identity, str] = {}


_current: ContextVar[_Operation | None] = ContextVar("lowbit_operation", default=None)


@contextmanager
def operation() -> Iterator[None]:
    """One operation: a `with` block, or a function that this decorates. What it reads, those around it read as well."""
    token = _current.set(_Operation(_current.get()))
    try:
        yield
    finally:
        _current.reset(token)


def reading(path: str | os.PathLike[str], found: os.stat_result | None = None) -> None:
    """Says that a file is read. found: what the system says of it, if that is known.

    Raises InputError if the operation, or one around it, is going to replace it.
    """
    current = _current.get()
    if current is None or (found := found or status(path)) is None:
        return
    file = identity(found)
    while current is not None:
        if file in current.replaced and _is_still(file, current.replaced[file]):
            raise _refusal(current.replaced[file])
        current.read[file] = os.fspath(path)
        current = current.outer


def replacing(paths: Iterable[str]) -> None:
    """Says which files are written. Those need not be there.

    Raises InputError if the operation reads one of them, FileError for what is no regular file.
    """
    current = _current.get()
    for path in paths:
        if (found := status(path)) is None:
            continue
        check_regular(path, found)
        if current is None:
            continue
        file = identity(found)
        if file in current.read and _is_still(file, current.read[file]):
            raise _refusal(path)
        current.replaced[file] = path


def _is_still(file: Identity, path: str) -> bool:
    """Whether a file is there under its name: a system gives the numbers of removed files to others."""
    found = status(path)
    return found is not None and identity(found) == file


def _refusal(path: str) -> InputError:
    return InputError("would replace a file that is being read", path=path)
