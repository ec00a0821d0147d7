"""The number of threads of a call."""

from __future__ import annotations

import os

from lowbit import _core
from lowbit.base import arguments

#: The largest number (src/bindings/formats.cc).
MOST_THREADS = 1024


def num_threads(threads: int | None = None) -> int:
    """`threads` if given, else the environment variable LOWBIT_THREADS, else the processors that this process may use.

    Raises InputError unless it is a number from 1 to MOST_THREADS.
    """
    if threads is None:
        text = os.environ.get("LOWBIT_THREADS", "")
        if not text:
            return _core.available_threads()
        if not text.isascii() or not text.isdecimal() or len(text) > 9:
            raise arguments.wrong("LOWBIT_THREADS", "a number of threads", text)
        threads = int(text)
    return arguments.integer("threads", threads, 1, MOST_THREADS)
