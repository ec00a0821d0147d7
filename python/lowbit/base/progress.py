"""Progress of calls that take long: one type for all functions, and bars for terminals and notebooks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

#: Shorter work shows no bar.
PATIENCE_SECONDS = 0.5
#: The least time between two reported steps; the last step is always reported.
INTERVAL_SECONDS = 0.1


@dataclass(frozen=True)
class Progress:
    """The state of one part of a call: the argument of functions that are passed as `progress`.

    title: the part's name ("download org/name", "write Q4_K_M", "verify"). A call may have several parts, also nested.
    done, total: counted in `unit`, which is "B" for bytes, otherwise a plural ("chunks"). total is None while unknown.
    """

    title: str
    done: int
    total: int | None
    unit: str


#: The type of `progress` arguments. None, False: nothing is shown. True: a bar, on stderr if that is a terminal, or
#: below the cell of a notebook. A function is called in the caller's thread, at most ten times a second, and at the end
#: of each part. An exception in it ends the call, as Ctrl-C does.
ProgressLike = None | bool | Callable[[Progress], object]

#: Reports progress: (done, total).
Advance = Callable[[int, int | None], None]
_Show = Callable[[Progress], object]


@contextmanager
def steps(title: str, unit: str, progress: ProgressLike) -> Iterator[Advance]:
    """Yields the function that reports progress: `advance(done, total)`.

    Raises InputError for a `progress` that is neither a bool nor a function.
    """
    shown = latest = Progress(title, 0, None, unit)
    due = 0.0
    with _display(progress) as show:

        def advance(done: int, total: int | None) -> None:
            nonlocal shown, latest, due
            latest = Progress(title, done, total, unit)
            now = time.monotonic()
            if now >= due or done == total:
                shown, due = latest, now + INTERVAL_SECONDS
                show(latest)

        yield advance
        if latest != shown:
            show(latest)


@contextmanager
def _display(progress: ProgressLike) -> Iterator[_Show]:
    if callable(progress):
        yield progress
    elif not _is_wanted(progress):
        yield lambda step: None
    elif _in_notebook():
        yield _NotebookBar().show
    elif _on_terminal():
        with _terminal_bar() as show:
            yield show
    else:
        yield lambda step: None


def _is_wanted(progress: object) -> bool:
    if progress is None or isinstance(progress, bool):
        return bool(progress)
    from lowbit.base.arguments import flag  # imports NumPy, which the command's help does not need

    return flag("progress", progress, "a bool or a function")


#: The bars on the terminal. Only the last is visible: rich shows one display at a time.
_shown: list[RichProgress] = []


def _on_terminal() -> bool:
    """Whether bars are visible. While rich shows one, it replaces stderr, whose isatty() may then be False."""
    return bool(_shown) or sys.stderr.isatty()


@contextmanager
def _terminal_bar() -> Iterator[_Show]:
    """A bar that disappears when it is full (work after that is not counted), and at the end of the block."""
    bar: RichProgress | None = None
    begin = time.monotonic()

    def show(step: Progress) -> None:
        nonlocal bar
        is_over = step.done == step.total
        if bar is None:
            if is_over or (step.total is not None and time.monotonic() - begin <= PATIENCE_SECONDS):
                return
            bar = _rich_bar(step)
        bar.update(bar.task_ids[0], completed=step.done, total=step.total)
        if is_over:
            _hide(bar)
        elif bar not in _shown:
            _cover(bar)

    try:
        yield show
    finally:
        if bar is not None:
            _hide(bar)


def _rich_bar(step: Progress) -> RichProgress:
    from rich import progress as rich
    from rich.console import Console

    counters = (rich.DownloadColumn(), rich.TransferSpeedColumn()) if step.unit == "B" else (rich.MofNCompleteColumn(),)
    clock = rich.TimeElapsedColumn() if step.total is None else rich.TimeRemainingColumn()
    bar = rich.Progress(
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        *counters,
        clock,
        console=Console(stderr=True),
        transient=True,
    )
    bar.add_task(step.title, total=None)
    return bar


def _cover(bar: RichProgress) -> None:
    """Hides the visible bar and shows this one."""
    if _shown:
        _shown[-1].stop()
    _shown.append(bar)
    bar.start()


def _hide(bar: RichProgress) -> None:
    """Removes a bar and, if it was visible, shows the previous one again."""
    bar.stop()
    if bar in _shown:
        was_last = _shown[-1] is bar
        _shown.remove(bar)
        if was_last and _shown:
            _shown[-1].start()


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


class _NotebookBar:
    """A bar below the cell. It stays there when it is full.

    IPython updates it in place. (rich needs ipywidgets there. Without them it shows no bar, and leaves empty outputs
    and a warning below the cell: findings/rich-progress-in-notebook.sh.)
    """

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._handle: Any = None
        self._step = Progress("", 0, None, "")

    def show(self, step: Progress) -> None:
        """Shows a step; the first one only after PATIENCE_SECONDS."""
        self._step = step
        if self._handle is not None:
            self._handle.update(self)
        elif step.total is None or time.monotonic() - self._begin > PATIENCE_SECONDS:
            from IPython.display import display

            self._handle = display(self, display_id=True)  # type: ignore[no-untyped-call]

    def __repr__(self) -> str:
        step = self._step
        scale, unit = (1e6, "MB") if step.unit == "B" else (1, step.unit)
        done = f"{step.done / scale:.{int(scale > 1)}f}"
        of = "" if step.total is None else f" of {step.total / scale:.{int(scale > 1)}f}"
        return f"{step.title}: {done}{of} {unit}, {time.monotonic() - self._begin:.0f} s"

    def _repr_html_(self) -> str:
        step = self._step
        share = "" if not step.total else f' value="{step.done / step.total:.4f}"'
        import html  # 1 ms

        return f"<progress{share}></progress> {html.escape(repr(self))}"
