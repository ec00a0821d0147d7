"""How many threads a call uses."""

from __future__ import annotations

import os

from lowbit import _core


def num_threads(threads: int | None = None) -> int:
    """Returns `threads` if given, else the environment's LOWBIT_THREADS, else the processors this process may use.

    Raises InputError unless the number is at least 1.
    """
    if threads is None:
        text = os.environ.get("LOWBIT_THREADS", "")
        if not text:
            return _core.available_threads()
        if not text.isascii() or not text.isdecimal():
            raise _core.InputError(f"LOWBIT_THREADS: expected a number of threads, got {text!r}")
        threads = int(text)
    if threads < 1:
        raise _core.InputError(f"threads: expected at least 1, got {threads}")
    return threads
