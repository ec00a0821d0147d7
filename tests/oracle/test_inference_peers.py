"""benchmarks/inference.py with engines of other packages: they run lowbit's exports, and the chart needs matplotlib."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmark_modules import benchmark_module
from matplotlib.figure import Figure

pytestmark = pytest.mark.oracle


peers, chart = benchmark_module("peers"), benchmark_module("chart")


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_engines_run_an_export(engine: str, bard_gguf: Path, tmp_path: Path) -> None:
    assert engine in peers.packages()
    folder = peers.exported(engine, bard_gguf, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert peers.exported(engine, bard_gguf, tmp_path) == folder
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before  # made once
    with peers.Engine(engine, "the peer", folder, 1) as runner:
        samples = [runner.prefill(8), runner.decode(3, 0, 1), runner.decode(3, 5, 2), runner.load()]
    assert all(0 < sample.wall_s < 600 for sample in samples)


def _row(opponent: str, part: str, rate: float, **facts: float) -> dict[str, Any]:
    sides = {side: {"per_s": {"median": value}} for side, value in (("ours", rate), ("peer", rate / 2))}
    return {"part": part, "opponent": opponent, "file": "m", "setting": "8", "simd": "AVX2", **sides, **facts}


def test_the_chart_has_each_figure_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [_row("x", "prefill", 10, limit_per_s=50), _row("y", "prefill", 10, limit_per_s=50), _row("x", "load", 4)]
    source, first, second = tmp_path / "in.json", tmp_path / "a.svg", tmp_path / "b.svg"
    source.write_text(json.dumps({"results": rows}))
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    for path in (first, second):
        chart.draw(source, path)
    assert first.read_bytes() == second.read_bytes()
    panels = figures[0].axes
    assert [axes.get_title(loc="left") for axes in panels] == ["prompt, tokens/s", "load and first token, seconds"]
    widths = [[patch.get_width() for patch in axes.patches] for axes in panels]
    assert widths == [[10, 5, 5], [0.25, 0.5]]  # lowbit, then each peer; of loading, seconds
    (limit,) = panels[0].collections
    assert {float(x) for x, _ in limit.get_segments()[0]} == {50.0}
    assert not panels[1].collections
    (legend,) = figures[0].legends
    assert sorted(text.get_text() for text in legend.get_texts()) == ["limit", "lowbit", "x", "y"]
