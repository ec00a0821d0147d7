"""Output of the commands: results go to stdout, everything else to stderr."""

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

#: Width of output into a file or a pipe.
_PIPE_WIDTH = 100


def console() -> Console:
    """The console for results. Its width is COLUMNS, else the terminal's, else 100."""
    from rich.console import Console

    width = shutil.get_terminal_size((_PIPE_WIDTH, 0)).columns  # COLUMNS has precedence over the terminal
    return Console(width=min(width, 10_000), highlight=False, soft_wrap=False)


def note(text: str) -> None:
    """Prints one line to stderr."""
    print(text, file=sys.stderr, flush=True)


class Notes(logging.Handler):
    """Prints the library's log messages to stderr, each once."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a message unless it was printed before: a command can load several models with the same note."""
        text = one_line(f"note: {record.getMessage()}")
        if text not in self._shown:
            self._shown.add(text)
            note(text)


def print_json(value: Any) -> None:
    """Prints `value` as JSON. Dataclasses become objects; NaN and infinity become null."""
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
    """A metadata value in the form of lowbit.evaluate.inspect.summary, as one line of at most `most` bytes."""
    if isinstance(value, str) and value.isspace():
        return f"{len(value)} blanks"
    if isinstance(value, dict):
        value = f"{value['length']} elements: " + ", ".join(map(str, value["first"])) + ", ..."
    return shown(value, most)


def size(num_bytes: int) -> str:
    """A size in readable units: "7.35 MB", with powers of 1000."""
    return _scaled(num_bytes, ("B", "kB", "MB", "GB", "TB"))


def count(number: int) -> str:
    """A number of weights in readable units: "3.67 M"."""
    return _scaled(number, ("", "K", "M", "G", "T"))


def _scaled(number: int, units: Sequence[str]) -> str:
    value = float(number)
    for unit in units:
        if value < 999.5 or unit == units[-1]:
            break
        value /= 1000
    return f"{number} {unit}".rstrip() if unit == units[0] else f"{value:.3g} {unit}"
