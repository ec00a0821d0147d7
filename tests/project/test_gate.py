"""The gate: which rows it compares, by what, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GATE = Path(__file__).resolve().parents[2] / "benchmarks" / "gate.py"
MACHINE = {"cpu": "A", "cores": 2, "system": "Linux x86_64", "simd": "AVX2", "load": 0.1}


def row(name: str, rate: float, ratio: float | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "ours": {"per_s": {"min": 0.1, "median": rate, "max": 1e9}}}
    return found if ratio is None else found | {"speedup": {"min": 0.1, "median": ratio, "max": 9.0}}


def gate(
    folder: Path, old: list[dict[str, Any]], new: list[dict[str, Any]], *options: str, **machine: Any
) -> subprocess.CompletedProcess[str]:
    """machine: what is different of the new one's."""
    for name, rows, facts in (("old", old, {}), ("new", new, machine)):
        record = {"benchmark": "inference", "machine": MACHINE | facts, "results": rows}
        (folder / f"{name}.json").write_text(json.dumps(record))
    return run(folder / "old.json", folder / "new.json", *options)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, GATE, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_a_loss_of_more_than_the_tolerance_fails(tmp_path: Path) -> None:
    old = [row("a", 100, 2.0), row("b", 100)]
    for rate, ratio, options, expected in (
        (100, 1.81, (), []),
        (100, 1.79, (), ["lost: a: 0.90 times the ratio before"]),
        (91, 2.0, (), []),
        (89, 2.5, (), ["lost: b: 0.89 times the rate before"]),
        (89, 2.5, ("--tolerance", "0.2"), []),
        (50, 1.0, (), ["lost: a: 0.50 times the ratio before", "lost: b: 0.50 times the rate before"]),
    ):
        result = gate(tmp_path, old, [row("a", 1, ratio), row("b", rate)], *options)
        assert (result.returncode, result.stderr) == (bool(expected), "")
        assert result.stdout.splitlines()[:-1] == expected
        assert result.stdout.splitlines()[-1].startswith(f"2 rows compared, {len(expected)} lost more than")


def test_a_row_that_only_one_measured_with_a_peer_is_compared_by_its_rate(tmp_path: Path) -> None:
    result = gate(tmp_path, [row("a", 100)], [row("a", 95, 0.5)])
    assert (result.returncode, result.stderr) == (0, "")
    assert gate(tmp_path, [row("a", 100, 9.0)], [row("a", 80)]).returncode == 1


def test_rows_of_one_alone_are_listed(tmp_path: Path) -> None:
    result = gate(tmp_path, [row("a", 1), row("gone", 1)], [row("fresh", 1), row("a", 1)])
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == ["vanished: gone", "new: fresh", "1 rows compared, 0 lost more than 10%"]


def test_nan_is_a_loss(tmp_path: Path) -> None:
    assert gate(tmp_path, [row("a", 1)], [row("a", float("nan"))]).returncode == 1


@pytest.mark.parametrize("fact", [{"cpu": "B"}, {"cores": 4}, {"simd": "AVX3_ZEN4"}])
def test_other_machines_are_refused_or_compared_by_ratios(fact: dict[str, Any], tmp_path: Path) -> None:
    old, new = [row("a", 100, 2.0), row("b", 100)], [row("a", 1, 1.9), row("b", 1)]
    refused = gate(tmp_path, old, new, **fact)
    assert (refused.returncode, refused.stdout) == (2, "")
    (name,) = fact
    assert f"different machines ({name}: " in refused.stderr
    forced = gate(tmp_path, old, new, "--force", **fact)
    assert (forced.returncode, forced.stderr) == (0, "")
    assert forced.stdout.splitlines() == ["not compared: b", "1 rows compared, 0 lost more than 10%"]
    assert gate(tmp_path, old, [row("a", 1, 1.0)], "--force", **fact).returncode == 1


def test_the_load_of_a_machine_may_differ(tmp_path: Path) -> None:
    assert gate(tmp_path, [row("a", 1)], [row("a", 1)], load=3.0).returncode == 0


def test_what_cannot_be_compared_is_one_line(tmp_path: Path) -> None:
    assert gate(tmp_path, [row("a", 1)], [row("b", 1)]).stderr == "gate.py: no row is in both\n"
    good, bad = tmp_path / "new.json", tmp_path / "bad.json"
    for text in ("", "[]", "{}", '{"results": [{"name": "a"}]}', "[" * 100000):
        bad.write_text(text)
        result = run(bad, good)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr == f"gate.py: {bad}: expected the results of a benchmark, with names and rates\n"
    assert "No such file" in run(tmp_path / "none.json", good).stderr
    other = json.loads(good.read_text()) | {"benchmark": "formats"}
    bad.write_text(json.dumps(other))
    assert run(bad, good).stderr == "gate.py: results of formats and of inference\n"
    assert run(good, good, "--tolerance", "1.5").returncode == 2


def test_stored_results_of_one_benchmark_pass_against_themselves() -> None:
    path = GATE.parent / "results" / "formats.json"
    assert run(path, path).returncode == 0
