"""Freed memory that the C library keeps."""

from __future__ import annotations

import contextlib
import ctypes


def trim_heap() -> None:
    """Returns freed memory to the system.

    glibc keeps freed memory that consists of small pieces: after a tokenizer with 262,144 tokens and 514,906 merges is
    freed, 400 MB stay resident. Without glibc this does nothing.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
