"""Bytes of several tensors that are made together, when the first of them is read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from lowbit.onnx.dtypes import Bytes

#: Results of fewer bytes are kept: the writer asks for small tensors more than once.
_KEPT = 1 << 20


class Parts:
    """The results of `run`, which are forgotten when each was read, if they are many bytes."""

    def __init__(self, run: Callable[[], list[Bytes]]) -> None:
        self._run = run
        self._made: list[Bytes] = []
        self._unread: set[int] = set()
        self._lock = threading.Lock()

    def part(self, index: int) -> Callable[[], Bytes]:
        """The source of a tensor."""
        return _Part(self, index)

    def make(self) -> None:
        """Runs, for what else `run` finds out."""
        with self._lock:
            self._make()
            self._forget()

    def read(self, index: int) -> Bytes:
        """The bytes of a part."""
        with self._lock:
            if not self._made:
                self._make()
            part = self._made[index]
            self._unread.discard(index)
            if not self._unread:
                self._forget()
            return part

    def _make(self) -> None:
        self._made = self._run()
        self._unread = set(range(len(self._made)))

    def _forget(self) -> None:
        if sum(part.nbytes for part in self._made) >= _KEPT:
            self._made = []


@dataclass(frozen=True, eq=False)
class _Part:
    parts: Parts
    index: int

    def __call__(self) -> Bytes:
        return self.parts.read(self.index)
