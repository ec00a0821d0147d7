"""Which instruction set the kernels use: `targets()`, `current()`, `force(name)`."""

from __future__ import annotations

import os
from types import TracebackType

from lowbit import _core
from lowbit.base import arguments


def targets() -> list[str]:
    """The targets compiled in that this CPU has, best first, for example ["AVX3_ZEN4", "AVX3_DL", "AVX2", "SSE2"]."""
    return _core.simd_targets()


def current() -> str:
    """The target in use."""
    return _core.simd_current()


class _Forced:
    """What `force` returns: leaving its `with` block goes back to the target before."""

    def __init__(self, before: str) -> None:
        self._before = before

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _core.simd_force(self._before)


def force(name: str | None) -> _Forced:
    """Uses the target `name` from now on in all threads; None goes back to LOWBIT_SIMD or else to the best.

    Also a context manager: `with lowbit.simd.force("AVX2"): ...`. Not to be called while another thread computes.
    Raises InputError, with the names there are, for a target this CPU lacks.
    """
    before = current()
    _core.simd_force(os.environ.get("LOWBIT_SIMD", "") if name is None else arguments.text("name", name))
    return _Forced(before)
