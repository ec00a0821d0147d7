"""The instruction set of the kernels: `targets()`, `current()`, `force(name)`."""

from __future__ import annotations

import os
from types import TracebackType

from lowbit import _core
from lowbit.base import arguments


def targets() -> list[str]:
    """The compiled targets that this CPU supports, best first, for example ["AVX3_ZEN4", "AVX3_DL", "AVX2", "SSE2"]."""
    return _core.simd_targets()


def current() -> str:
    """The target in use."""
    return _core.simd_current()


class _Forced:
    """The result of `force`. Leaving its `with` block restores the previous target."""

    def __init__(self, before: str) -> None:
        self._before = before

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _core.simd_force(self._before)


def force(name: str | None) -> _Forced:
    """Uses the target `name` from now on in all threads. None restores LOWBIT_SIMD, or the best target.

    Also a context manager: `with lowbit.simd.force("AVX2"): ...`. Do not call it while another thread computes. If the
    CPU lacks the target, it raises InputError with the available names.
    """
    before = current()
    _core.simd_force(os.environ.get("LOWBIT_SIMD", "") if name is None else arguments.text("name", name))
    return _Forced(before)
