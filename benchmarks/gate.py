"""Compares two results of one benchmark: gate.py OLD.json NEW.json. Exits with 1 if a row lost more than --tolerance.

A row that both measured against a peer is compared by its ratio, so that the hour or a busy machine matters less;
others by our rate. Results of different machines are refused, unless --force: then only ratios are compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: What must be equal for rates to be comparable.
MACHINE = ("cpu", "cores", "system", "simd")

Record = Mapping[str, Any]


class GateError(Exception):
    """The two cannot be compared."""


@dataclass(frozen=True)
class Change:
    """A row in both. factor: the new figure over the old one; below 1, it has become slower."""

    name: str
    by: str
    factor: float

    def is_lost(self, tolerance: float) -> bool:
        return not self.factor >= 1 - tolerance  # NaN included


def read(path: Path) -> Record:
    """A result file of a benchmark with rows of rates."""
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        for row in record["results"]:
            _ = row["name"], _rate(row)
        _ = record["benchmark"], [record["machine"][key] for key in MACHINE]
    except OSError as error:
        raise GateError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, LookupError, RecursionError):
        raise GateError(f"{path}: expected the results of a benchmark, with names and rates") from None
    return record


def _rate(row: Record) -> float:
    return float(row["ours"]["per_s"]["median"])


def _rows(record: Record) -> dict[str, Record]:
    return {row["name"]: row for row in record["results"]}


def compare(old: Record, new: Record, *, force: bool = False) -> list[Change]:
    """The rows that both have. Raises GateError if the benchmarks or the machines differ."""
    if old["benchmark"] != new["benchmark"]:
        raise GateError(f"results of {old['benchmark']} and of {new['benchmark']}")
    differing = [key for key in MACHINE if old["machine"][key] != new["machine"][key]]
    if differing and not force:
        values = "; ".join(f"{key}: {old['machine'][key]} and {new['machine'][key]}" for key in differing)
        raise GateError(f"different machines ({values}); --force compares ratios to the peer")
    changes = []
    before = _rows(old)
    for name, row in _rows(new).items():
        if name not in before:
            continue
        if "speedup" in row and "speedup" in before[name]:
            figures = [float(entry["speedup"]["median"]) for entry in (before[name], row)]
            changes.append(Change(name, "ratio", figures[1] / figures[0]))
        elif not differing:
            changes.append(Change(name, "rate", _rate(row) / _rate(before[name])))
    if not changes:
        raise GateError("no row is in both")
    return changes


def report(old: Record, new: Record, changes: list[Change], tolerance: float) -> list[str]:
    """Lines that say what was lost, what only one of the two has, and the count."""
    lost = [change for change in changes if change.is_lost(tolerance)]
    names, before, now = {change.name for change in changes}, _rows(old), _rows(new)
    lines = [f"lost: {change.name}: {change.factor:.2f} times the {change.by} before" for change in lost]
    lines += [f"vanished: {name}" for name in before if name not in now]
    lines += [f"new: {name}" for name in now if name not in before]
    lines += [f"not compared: {name}" for name in now if name in before and name not in names]
    return [*lines, f"{len(changes)} rows compared, {len(lost)} lost more than {tolerance:.0%}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", type=Path, metavar="OLD.json")
    parser.add_argument("new", type=Path, metavar="NEW.json")
    parser.add_argument("--tolerance", type=float, default=0.1, metavar="PART", help="allowed loss [default: 0.1]")
    parser.add_argument("--force", action="store_true", help="compare results of different machines by their ratios")
    options = parser.parse_args()
    if not 0 <= options.tolerance < 1:
        parser.error(f"--tolerance: expected a part from 0 to 1, got {options.tolerance}")
    try:
        old, new = read(options.old), read(options.new)
        changes = compare(old, new, force=options.force)
    except GateError as error:
        parser.exit(2, f"gate.py: {error}\n")
    print("\n".join(report(old, new, changes, options.tolerance)))
    return int(any(change.is_lost(options.tolerance) for change in changes))


if __name__ == "__main__":
    sys.exit(main())
