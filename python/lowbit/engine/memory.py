"""Weights in memory of the process's own."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit import _core
from lowbit.base.progress import Advance
from lowbit.tensors.qtensor import QTensor, bytes_of

__all__ = ["Weight", "in_memory"]

Weight = QTensor | npt.NDArray[Any]

#: Each weight starts at a multiple: a line of the caches.
ALIGNMENT = 64


def in_memory(weights: Mapping[str, Weight], advance: Advance) -> dict[str, Weight]:
    """Copies of `weights`, in large pages where the system has them on request (Linux). advance: counts tensors.

    What is copied from a mapped file does not stay in the process's memory.
    """
    sizes = {name: -(-weight.nbytes // ALIGNMENT) * ALIGNMENT for name, weight in weights.items()}
    memory = _large_pages(max(1, sum(sizes.values())))
    copies: dict[str, Weight] = {}
    start = 0
    for name, weight in weights.items():
        source = bytes_of(weight)
        copy = np.frombuffer(memory, source.dtype, source.size, start).reshape(source.shape)
        copy[...] = source
        _core.MappedFile.release(source.view(np.uint8))
        copies[name] = QTensor(copy, weight.format) if isinstance(weight, QTensor) else copy
        start += sizes[name]
        advance(len(copies), len(weights))
    return copies


def _large_pages(num_bytes: int) -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(-1, num_bytes)
    # By default the memory would be shared with child processes, and such memory has small pages.
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if sys.platform == "linux":
        with suppress(OSError):  # a system without large pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
