"""The scripts of benchmarks/ as modules."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


def benchmark_module(name: str) -> Any:
    """A module of benchmarks/, whose scripts find each other beside them. engines.py takes its folder from the path."""
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        if str(FOLDER) in sys.path:
            sys.path.remove(str(FOLDER))
