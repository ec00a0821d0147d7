"""The command in this process, which is much faster than in one of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from lowbit.cli.execution import execute


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def runner(capsys: pytest.CaptureFixture[str], *command: str) -> Callable[..., Result]:
    """Runs `lowbit` with the words of a command and more arguments."""

    def call(*arguments: object) -> Result:
        status = execute([*command, *map(str, arguments)])
        return Result(status, *capsys.readouterr())

    return call
