"""What the C library keeps of freed memory."""

from __future__ import annotations

import contextlib
import ctypes


def trim_heap() -> None:
    """Gives freed memory back to the system.

    glibc keeps the holes that a large structure of small pieces leaves: of a tokenizer with 262,144 tokens and 514,906
    merges, 400 MB stay resident once it is gone. Other C libraries have no such call; there, nothing happens.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
