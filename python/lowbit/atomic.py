"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

from lowbit import _core


class AtomicFile:
    """Written under a temporary name in the same folder until the `with` block ends without an exception.

    Has of a Python file what `zipfile` needs. Raises FileError if the system refuses.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._core = _core.AtomicWriter(os.fsencode(path))

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
        if kind is None:
            self._core.commit()
        else:
            self._core.abort()
