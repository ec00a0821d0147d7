"""What the commands print with: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import logging
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from lowbit.base.quoting import one_line, shown

if TYPE_CHECKING:
    from rich.console import Console

#: Columns of what goes into a file or a pipe.
_PIPE_WIDTH = 100


def console() -> Console:
    """The console of results: as wide as COLUMNS says, else as the terminal, else 100 columns."""
    from rich.console import Console

    width = shutil.get_terminal_size((_PIPE_WIDTH, 0)).columns  # COLUMNS goes before the terminal's
    return Console(width=min(width, 10_000), highlight=False, soft_wrap=False)


def note(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)


class Notes(logging.Handler):
    """What the library logs, as lines on stderr, each once."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one that is new: a command may load several models, and each says it."""
        text = one_line(f"note: {record.getMessage()}")
        if text not in self._shown:
            self._shown.add(text)
            note(text)


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
