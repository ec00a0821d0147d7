"""The command `lowbit` in a process of its own, on its way to a pipe."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping


def run(
    *arguments: object, input: str | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What it printed and how it ended. env: the whole environment."""
    line = [sys.executable, "-m", "lowbit", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, encoding="utf-8", input=input, env=env)
