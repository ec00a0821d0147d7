"""What the commands print with: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from lowbit.base.quoting import one_line, shown

if TYPE_CHECKING:
    from rich.console import Console, JustifyMethod

# Tables that go into a file or a pipe are as wide as they need to be.
_PIPE_WIDTH = 100_000


@cache
def console() -> Console:
    """The console of results."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(width=width, highlight=False, soft_wrap=False)


def note(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)


class Notes(logging.Handler):
    """What the library logs, as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line for each."""
        note(one_line(f"note: {record.getMessage()}"))


def print_json(value: Any) -> None:
    """`value` as JSON; dataclasses become objects, numbers that JSON lacks (NaN, infinity) null."""
    print(json.dumps(_plain(value), indent=2, ensure_ascii=False))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """A table; columns whose name begins with `>` are aligned to the right, and those without a word are left out.

    What the first column holds, names, stays whole if that leaves half of the terminal.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if title is not None:
        console().print(Text(one_line(title), style="bold"))  # a table's own is folded to its width
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    # Text, not markup: names come from files.
    cells = [[Text(one_line(cell)) for cell in row] for row in rows]
    widest = [max((row[i].cell_len for row in cells), default=1) for i in range(len(columns))]
    whole = widest[0] <= console().width // 2
    for i, column in enumerate(columns):
        if not widest[i]:
            continue
        justify: JustifyMethod = "right" if column.startswith(">") else "left"
        table.add_column(column.removeprefix(">"), justify=justify, overflow="fold", no_wrap=whole and i == 0)
    for row in cells:
        table.add_row(*(cell for cell, width in zip(row, widest, strict=True) if width))
    console().print(table)


def value_text(value: Any, most: int = 200) -> str:
    """A metadata value, as lowbit.evaluate.inspect.summary has it, in one line of at most so many bytes."""
    if isinstance(value, str) and value.isspace():
        return f"{len(value)} blanks"
    if isinstance(value, dict):
        value = f"{value['length']} elements: " + ", ".join(map(str, value["first"])) + ", ..."
    return shown(value, most)


def size(num_bytes: int) -> str:
    """Bytes for people: "7.35 MB", thousands as in file managers and on disks' labels."""
    return _scaled(num_bytes, ("B", "kB", "MB", "GB", "TB"))


def count(number: int) -> str:
    """A number of weights for people: "3.67 M"."""
    return _scaled(number, ("", "K", "M", "G", "T"))


def _scaled(number: int, units: Sequence[str]) -> str:
    value = float(number)
    for unit in units:
        if value < 999.5 or unit == units[-1]:
            break
        value /= 1000
    return f"{number} {unit}".rstrip() if unit == units[0] else f"{value:.3g} {unit}"
