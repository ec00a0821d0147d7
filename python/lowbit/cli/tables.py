"""Tables that fit the terminal. Long cells are folded; nothing is cut off.

Names (in the first column) and numbers are never folded. If they do not fit into the terminal, each row is printed as
a record with one line per column.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lowbit.base.quoting import one_line
from lowbit.cli.console import console

if TYPE_CHECKING:
    from rich.console import JustifyMethod

#: Blanks between two columns, and at both ends of a row together.
_BETWEEN, _AROUND = 2, 2
#: A column of text wider than 2/n of the terminal keeps at least 1/n; narrower text may be folded to a word per line.
_LEAST_SHARE = 5
#: The smallest width of the values in records.
_LEAST_VALUE = 10


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Prints a table. Columns of numbers have names that begin with `>`. Empty columns are left out."""
    from rich.text import Text

    if title is not None:
        console().print(Text(one_line(title), style="bold"))
    rows = [[one_line(cell) for cell in row] for row in rows]
    used = [i for i in range(len(columns)) if not rows or any(row[i] for row in rows)]
    names = [columns[i] for i in used]
    cells = [[row[i] for i in used] for row in rows]
    widths = _widths(names, cells, console().width)
    if widths is None:
        _print_records([name.removeprefix(">") for name in names], cells)
    else:
        _print_columns(names, cells, widths)


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int] | None:
    """The width of each column; None if names and numbers do not fit unfolded."""
    from rich.cells import cell_len

    def longest(texts: Iterable[str]) -> int:
        return max(map(cell_len, texts), default=0)

    room = width - _BETWEEN * (len(columns) - 1) - _AROUND
    share = width // _LEAST_SHARE
    # Minimal widths when more and more is folded: nothing, the columns' names, text, numbers with blanks in them.
    steps: list[list[int]] = [[], [], [], []]
    for i, column in enumerate(columns):
        name, cells = column.removeprefix(">"), [row[i] for row in rows]
        parts = [part for cell in cells for part in cell.split()]
        whole = max(longest(cells), longest(name.split()))
        text = number = whole
        if column.startswith(">"):
            number = max(longest(parts), longest(name.split()))
        elif i > 0:
            word = share if whole > 2 * share else min(longest(parts), share)
            text = number = min(whole, max(longest(name.split()), word, longest(filter(_is_number, parts))))
        for step, least in zip(steps, (max(whole, cell_len(name)), whole, text, number), strict=True):
            step.append(least)
    widths = list(steps[0])
    if sum(steps[-1]) > room:
        return None
    for floor in steps[1:]:
        while (excess := sum(widths) - room) > 0 and widths != floor:  # the widest column first
            i = max(range(len(widths)), key=lambda i: (widths[i] > floor[i], widths[i]))
            widths[i] = max(floor[i], widths[i] - excess, min(widths[i] - 1, sum(widths) // len(widths)))
    return widths


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _print_columns(columns: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name, width in zip(columns, widths, strict=True):
        justify: JustifyMethod = "right" if name.startswith(">") else "left"
        table.add_column(name.removeprefix(">"), justify=justify, overflow="fold", width=width)
    for row in rows:
        table.add_row(*map(Text, row))  # not markup: names come from files
    console().print(table)


def _print_records(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    labels = max(map(cell_len, columns))
    for row in rows:
        record = Table.grid(padding=(0, 2, 0, 0))
        record.add_column(width=labels)
        record.add_column(overflow="fold", width=max(_LEAST_VALUE, console().width - labels - 2))
        for name, cell in zip(columns, row, strict=True):
            if cell:
                record.add_row(name, Text(cell))
        console().print(record)
        console().print()
