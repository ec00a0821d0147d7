"""The sequences of a model: which are in use, and what the idle ones hold."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lowbit.base.errors import ContextFullError

#: Held while a sequence is selected or returned, and during a fork, so that it is free in the child.
_CHOOSING = threading.RLock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_CHOOSING.acquire, after_in_parent=_CHOOSING.release, after_in_child=_CHOOSING.release)


class Sequences:
    """Sequence ids of a model, each with the tokens that are in its cache.

    A new prompt uses the idle sequence with the longest common prefix, so a chat computes only its new tokens.
    """

    def __init__(self, num: int) -> None:
        self._idle: dict[int, list[int]] = {i: [] for i in range(num)}

    @contextmanager
    def take(self, prompt: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """A sequence for `prompt` while the context lasts: its id, and the list of the tokens in its cache.

        Raises ContextFullError if all are in use.
        """
        with _CHOOSING:
            if not self._idle:
                raise ContextFullError("all sequences of the model are in use; load it with a larger max_sequences")
            # Without a common prefix, the sequence with the fewest tokens is used.
            best = max(self._idle, key=lambda i: (num_shared(self._idle[i], prompt), -len(self._idle[i])))
            held = self._idle.pop(best)
        try:
            yield best, held
        finally:
            with _CHOOSING:
                self._idle[best] = held


def num_shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
