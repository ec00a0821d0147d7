"""Progress bars on a terminal: one at a time, on stderr, gone at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

#: Work that takes less shows no bar.
PATIENCE_SECONDS = 0.5
#: The bars on the screen, of which only the last is seen: a terminal has room for one display.
_shown: list[Progress] = []


@contextmanager
def progress_bar(title: str, *, unit: str = "", enabled: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Yields a function that is told what is done, of how much: `advance(done, total)`, in bytes if `unit` is "B".

    A bar that is full goes away, since what is left to do then has not been counted.
    """
    if not enabled or not _on_terminal():
        yield lambda done, total: None
        return
    from rich.progress import DownloadColumn, MofNCompleteColumn, TimeRemainingColumn, TransferSpeedColumn

    counters = (DownloadColumn(), TransferSpeedColumn()) if unit == "B" else (MofNCompleteColumn(),)
    bar = _bar(*counters, TimeRemainingColumn())
    task = bar.add_task(title, total=None)
    begin = time.monotonic()

    def advance(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        if done >= total:
            _hide(bar)
        elif not bar.live.is_started and time.monotonic() - begin > PATIENCE_SECONDS:
            _show(bar)

    try:
        yield advance
    finally:
        _hide(bar)


@contextmanager
def waiting(title: str, *, enabled: bool = True) -> Iterator[None]:
    """Shows that work goes on and for how long, between the bars of its parts."""
    if not enabled or not _on_terminal():
        yield
        return
    from rich.progress import TimeElapsedColumn

    bar = _bar(TimeElapsedColumn())
    bar.add_task(title, total=None)
    _show(bar)
    try:
        yield
    finally:
        _hide(bar)


def _on_terminal() -> bool:
    """Whether bars are seen. While rich shows one, its substitute for stderr may deny that it is a terminal."""
    return bool(_shown) or sys.stderr.isatty()


def _bar(*columns: ProgressColumn) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *columns,
        console=Console(stderr=True),
        transient=True,
    )


def _show(bar: Progress) -> None:
    if _shown:
        _shown[-1].stop()
    _shown.append(bar)
    bar.start()


def _hide(bar: Progress) -> None:
    """Takes a bar off the screen, if it is there, and shows the one that it covered."""
    bar.stop()
    if bar in _shown:
        was_last = _shown[-1] is bar
        _shown.remove(bar)
        if was_last and _shown:
            _shown[-1].start()
