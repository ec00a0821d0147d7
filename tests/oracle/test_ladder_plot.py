"""The picture of a ladder, which needs matplotlib: it is drawn, the same each time, and its labels are apart."""

from __future__ import annotations

import dataclasses
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

import lowbit
from lowbit.evaluate import plot
from lowbit.evaluate.ladder import RUNGS, Ladder, Rung

pytestmark = pytest.mark.oracle

MAGIC = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


def rung(format: str, bits: float, divergence: float, perplexity: float = 50.0) -> Rung:
    size = int(bits * 460_000 + 70_000)
    return Rung(format, size, bits, perplexity, 1.0, divergence, divergence / 20, 0.9, 1000.0, 300.0, 0)


@pytest.fixture
def crowded() -> Ladder:
    """Every rung, half of them on nearly the same spot."""
    bits = np.concatenate([np.linspace(8.5, 3, 8), np.linspace(2.6, 2.4, len(RUNGS) - 8)])
    rungs = [rung(name, b, 10 ** (0.5 - b / 2)) for name, b in zip(RUNGS, bits, strict=True)]
    return Ladder("models/some", 512, 25, 6375, "given", rung("BF16", 16, 0), rungs)


@pytest.mark.parametrize("suffix", MAGIC)
def test_files(suffix: str, crowded: Ladder, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        plot.draw(crowded, path)
    data = [path.read_bytes() for path in paths]
    assert data[0] == data[1]
    assert data[0].startswith(MAGIC[suffix])
    assert sorted(tmp_path.iterdir()) == paths


def test_labels_are_apart(crowded: Ladder) -> None:
    figure = Figure(figsize=(8, 9), layout="constrained")
    renderer = FigureCanvasAgg(figure).get_renderer()
    plot._panels(figure, crowded)
    axes = figure.axes[0]
    texts = [text for text in axes.texts if text.get_text() in RUNGS]
    assert [text.get_text() for text in texts] == list(RUNGS)
    figure.canvas.draw()
    boxes = [Text.get_window_extent(text, renderer) for text in texts]  # without the lines to the markers
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    frame = axes.get_window_extent(renderer)
    assert all(frame.contains(*box.min) and frame.contains(*box.max) for box in boxes)
    panels = figure.axes[:3]
    assert [panel.get_ylabel() for panel in panels] == ["KL divergence (nats)", "perplexity", "tokens/s"]
    for panel, figure_of in zip(panels, ("kl_divergence", "perplexity", "decode_tokens_per_s"), strict=True):
        points = np.concatenate([points.get_offsets() for points in panel.collections if len(points.get_offsets())])
        expected = [(rung.bits_per_weight, getattr(rung, figure_of)) for rung in crowded.rungs]
        assert {tuple(point) for point in points.tolist()} >= set(expected)


def test_figures_without_a_place(crowded: Ladder, tmp_path: Path) -> None:
    """Zero and infinity are not on a logarithmic axis; a single rung has no scale of sizes."""
    rungs = [rung("BF16", 16, 0.0), rung("IQ1_S", 2, float("inf"), float("inf")), rung("TQ1_0", 2, float("nan"))]
    for some in (rungs, rungs[:1], [rung("Q8_0", 8.5, 1e-4)]):
        path = tmp_path / f"{len(some)}-{some[0].format}.png"
        plot.draw(dataclasses.replace(crowded, rungs=some), path)
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_failure_leaves_what_was_there(crowded: Ladder, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"before")
    with pytest.raises((TypeError, AttributeError)):
        plot.draw(dataclasses.replace(crowded, rungs=[None]), path)
    assert path.read_bytes() == b"before"
    with pytest.raises(lowbit.InputError, match="no such folder"):
        plot.draw(crowded, tmp_path / "none" / "x.png")
