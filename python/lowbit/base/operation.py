"""An operation never replaces a file that it reads.

An operation is one call of a function that reads and writes files (`convert`, `split_file`), or one command. During it,
code that opens a file calls `reading`, and code that will write a file calls `replacing`, before the first byte and in
dry runs too. A file that is in both is refused, in either order, and through links. The readers (`base/files.py`,
`gguf.open`) call `reading` themselves, so new kinds of input are protected too.
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
    """One operation: a `with` block, or a decorated function. Its reads also count for the operations around it."""
    token = _current.set(_Operation(_current.get()))
    try:
        yield
    finally:
        _current.reset(token)


def reading(path: str | os.PathLike[str], found: os.stat_result | None = None) -> None:
    """Registers a file that is read. found: its status, if known.

    Raises InputError if the operation, or one around it, will replace it.
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
    """Registers files that will be written. They need not exist.

    Raises InputError if the operation reads one of them, FileError for anything but a regular file.
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
    """Whether the path still refers to the file: systems reuse the numbers of removed files."""
    found = status(path)
    return found is not None and identity(found) == file


def _refusal(path: str) -> InputError:
    return InputError("would replace a file that is being read: write to another path", path=path)
