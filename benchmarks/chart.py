"""Draws the rows of inference.py: chart.py IN.json OUT.svg. Needs the extra `plot`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]

TITLES = {
    "prefill": "prompt, tokens/s",
    "decode": "one sequence, tokens/s",
    "depth": "one sequence after many tokens, tokens/s",
    "batch": "several sequences together, tokens/s",
    "load": "load and first token, seconds",
}
#: Colours that most people can distinguish (Okabe and Ito). Ours is the first.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


def groups(rows: list[Row], part: str) -> dict[tuple[str, str, str], list[Row]]:
    """Rows of one part that were measured together: by file, setting and SIMD target."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row["part"] == part:
            found.setdefault((row["file"], row["setting"], row["simd"]), []).append(row)
    return found


def value(row: Row, side: str) -> float:
    """Tokens per second; of `load`, seconds."""
    rate = float(row[side]["per_s"]["median"])
    return 1 / rate if row["part"] == "load" else rate


def draw(results: Path, path: Path) -> None:
    """Writes the picture. The same rows give the same file."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    rows = json.loads(results.read_text())["results"]
    parts = [part for part in TITLES if groups(rows, part)]
    colours = dict(zip(["lowbit", *dict.fromkeys(row["opponent"] for row in rows)], COLOURS * 9, strict=False))
    with matplotlib.rc_context({"svg.hashsalt": "lowbit", "font.size": 9, "axes.grid.axis": "x", "axes.grid": True}):
        bars = [sum(len(group) + 2 for group in groups(rows, part).values()) for part in parts]
        figure = Figure(figsize=(8, 0.6 * len(parts) + 0.22 * sum(bars) + 0.6), layout="constrained")
        FigureCanvasSVG(figure)
        panels = figure.subplots(len(parts), 1, height_ratios=bars, squeeze=False)[:, 0]
        for axes, part in zip(panels, parts, strict=True):
            _panel(axes, groups(rows, part), colours)
            axes.set_title(TITLES[part], loc="left")
        handles: dict[str, Any] = {}
        for axes in panels:
            handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _panel(axes: Any, found: dict[tuple[str, str, str], list[Row]], colours: dict[str, str]) -> None:
    """Bars of each group, ours first, with the machine's limit as a line."""
    at, places, names = 0.0, [], []
    for (file, setting, simd), rows in found.items():
        bars = [("lowbit", value(rows[0], "ours")), *((row["opponent"], value(row, "peer")) for row in rows)]
        places.append(at + (len(bars) - 1) / 2)
        names.append(f"{file} {setting}\n{simd}")
        for name, width in bars:
            axes.barh(at, width, color=colours[name], label=name)
            axes.annotate(f"{width:.3g}", (width, at), (3, 0), textcoords="offset points", va="center", fontsize=7)
            at += 1
        if "limit_per_s" in rows[0]:
            axes.vlines(rows[0]["limit_per_s"], at - len(bars) - 0.5, at - 0.5, colors="black", label="limit")
        at += 1
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.set_axisbelow(True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("svg", type=Path)
    options = parser.parse_args()
    draw(options.results, options.svg)


if __name__ == "__main__":
    main()
