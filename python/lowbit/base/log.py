"""The logger "lowbit" for notes to the caller. The library itself prints nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from logging import Logger

_IS_QUIET: ContextVar[bool] = ContextVar("lowbit_is_quiet", default=False)


@cache
def _log() -> Logger:
    import logging  # 2 ms

    log = logging.getLogger("lowbit")
    log.addHandler(logging.NullHandler())  # without any handler, logging would print warnings
    return log


def log_notes(notes: Iterable[str]) -> None:
    """Logs each note as a warning."""
    if not _IS_QUIET.get():
        for note in notes:
            _log().warning("%s", note)


@contextmanager
def without_notes() -> Iterator[None]:
    """Logs no notes inside the block: for conversions to temporary files."""
    token = _IS_QUIET.set(True)
    try:
        yield
    finally:
        _IS_QUIET.reset(token)
