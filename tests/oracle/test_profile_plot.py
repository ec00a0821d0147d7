"""The picture of a profile, which needs matplotlib: bars of the figures, and marks at the memory's limit."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from lowbit.evaluate import profile_plot
from lowbit.evaluate.profile import ProfileReport, StageReport

pytestmark = pytest.mark.oracle

IN_A_LAYER = ["query_key_value", "heads", "attention", "attention_output", "gate_up", "down"]


def part(stage: str, layer: int | None, seconds: float) -> StageReport:
    return StageReport(stage, layer, seconds, seconds, 3 * 10**6, 1, 1.0, 1.0)


@pytest.fixture
def report() -> ProfileReport:
    """Stage i of layer j takes i + 10 j milliseconds; each reads for 1.5 of them."""
    stages = [part(stage, None, 1e-3 * i) for i, stage in enumerate(["embedding", *IN_A_LAYER, "logits"])]
    layers = [part(stage, j, 1e-3 * (i + 10 * j)) for j in range(3) for i, stage in enumerate(IN_A_LAYER)]
    whole = part("step", None, 0.3)
    return ProfileReport("m/some.gguf", "qwen3", 2, "auto", "AVX2", 1, 9, 10, 2e9, whole, stages, layers)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_files(suffix: str, report: ProfileReport, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        profile_plot.draw(report, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(tmp_path.iterdir()) == paths


def test_bars_and_marks(report: ProfileReport) -> None:
    figure = Figure(figsize=(9, 7), layout="constrained")
    profile_plot._panels(figure, report)
    by_stage, by_layer = figure.axes
    assert [bar.get_width() for bar in by_stage.patches] == pytest.approx(range(8))
    assert [label.get_text() for label in by_stage.get_yticklabels()] == [stage.stage for stage in report.stages]
    assert [[*line.get_xdata()] for line in by_stage.lines] == [pytest.approx([1.5, 1.5])] * 8
    assert by_stage.get_title(loc="left") == "some.gguf, step of 1 token at 9: 300 ms, 2 threads"
    heights = {(round(bar.get_x() + 0.4), round(bar.get_y(), 6)): bar.get_height() for bar in by_layer.patches}
    for layer in range(3):
        times = [i + 10 * layer for i in range(6)]
        for i, time in enumerate(times[1:], 1):
            assert heights[layer, sum(times[:i])] == pytest.approx(time)
    colours = [bar.get_facecolor() for bar in by_stage.patches]
    assert len({*colours}) == 8
    assert {bar.get_facecolor() for bar in by_layer.patches} == {*colours[1:-1]}
