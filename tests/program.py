"""Programs of their own for what may end one: crashes, forks, the end of the interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lowbit

BARD = Path(lowbit.__file__).parent / "data" / "bard"


def run(code: str, *arguments: object, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """How the program ended, after two minutes at the latest."""
    line = [sys.executable, *options, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120, env=environment)


def check(code: str, *arguments: object) -> str:
    """What the program printed; it must end well."""
    result = run(code, *arguments)
    assert result.returncode == 0, (result.returncode, result.stderr)
    return result.stdout
