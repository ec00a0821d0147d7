"""Limits of this machine, measured: how fast it reads memory and multiplies."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from lowbit import _core
from lowbit.base import simd
from lowbit.base.threads import num_threads

__all__ = ["MachineLimits", "machine_limits", "read_rate"]

#: Bytes of the buffer that is read. Caches are smaller.
BUFFER_BYTES = 256 << 20
#: Measurements of each rate; the best counts, because other programs can only lower it.
PASSES = 8


@dataclass(frozen=True)
class MachineLimits:
    """The result of `machine_limits`: rates of `threads` threads on the SIMD target `simd`.

    read_huge_pages_bytes_per_s: memory in pages of 2 MiB, where the system has them on request (Linux). Decoding reads
        the weights of every matrix once for each token, so this bounds its speed.
    read_bytes_per_s: memory in ordinary pages, as mapped files have them on systems that keep files in small pages.
    int8_per_s, bf16_per_s, f32_per_s: multiply-adds with the instructions of the matrix products, operands in cache.
    """

    simd: str
    threads: int
    read_bytes_per_s: float
    read_huge_pages_bytes_per_s: float
    int8_per_s: float
    bf16_per_s: float
    f32_per_s: float


def machine_limits(threads: int | None = None) -> MachineLimits:
    """Measures how fast this machine reads memory and multiplies. It takes about a second and 256 MiB of memory.

    threads: number of threads; None: LOWBIT_THREADS, else one per processor.

    Each rate is the best of 8 measurements, so that other programs disturb it less. Raises InputError for a wrong
    number of threads.

        lowbit.machine_limits(threads=2).read_bytes_per_s
    """
    threads = num_threads(threads)
    rates = {f"{name}_per_s": _core.multiply_add_rate(name, PASSES, threads) for name in ("int8", "bf16", "f32")}
    return MachineLimits(
        simd=simd.current(),
        threads=threads,
        read_bytes_per_s=_core.read_rate(BUFFER_BYTES, False, PASSES, threads),
        read_huge_pages_bytes_per_s=_core.read_rate(BUFFER_BYTES, True, PASSES, threads),
        **rates,
    )


@functools.cache
def read_rate(threads: int) -> float:
    """`MachineLimits.read_huge_pages_bytes_per_s` alone, measured once in a process."""
    return _core.read_rate(BUFFER_BYTES, True, PASSES, threads)
