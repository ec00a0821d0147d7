"""Plot of a ladder: divergence, perplexity and speed over bits per weight. Needs the extra `plot`.

`check` and `write` serve other plots too.
"""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lowbit.base.atomic import AtomicFile
from lowbit.base.errors import InputError, UnsupportedError
from lowbit.base.paths import AnyPath, checked, is_dir
from lowbit.evaluate.ladder import Ladder, Rung

__all__ = ["GREY", "check", "draw", "write"]

SUFFIXES = (".png", ".svg", ".pdf")
#: Prefix of a name -> colour and marker. Most people can distinguish these colours (Okabe and Ito).
FAMILIES = {"IQ": ("#D55E00", "s"), "TQ": ("#009E73", "^"), "": ("#0072B2", "o")}
NAMES = {"IQ": "IQ: points of a grid", "TQ": "TQ: ternary", "": "Q: levels with scales"}
GREY = "#666666"
#: Half the width of a marker, in points.
MARKER = 6
#: Positions of a label in points relative to its marker, best first: next to it, then farther around it.
PLACES = [(7, 0), (-7, 0), (0, 10), (0, -10)] + [
    (dx, dy) for distance in (9, 18, 27, 36, 45) for dy in (distance, -distance) for dx in (7, -7, 16, -16, 32, -32)
]


def check(path: AnyPath) -> None:
    """Raises UnsupportedError without matplotlib, InputError if `path` has another extension or no folder."""
    path = Path(checked(path))
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(path=path, expected=f"a name that ends in {', '.join(SUFFIXES)}")
    if not is_dir(path.absolute().parent):
        raise InputError("no such folder", path=path)
    if importlib.util.find_spec("matplotlib") is None:
        raise UnsupportedError("a plot needs matplotlib: pip install 'lowbit[plot]'")


def draw(ladder: Ladder, path: AnyPath) -> None:
    """Writes the plot of a ladder. Raises the errors of `write`."""
    write(path, (8, 9), lambda figure: _panels(figure, ladder))


def write(path: AnyPath, inches: tuple[float, float], panels: Callable[[Any], None]) -> None:
    """Writes a figure that `panels` fills, completely or not at all, in the format of the file's extension.

    Raises the errors of `check`, and FileError if the file cannot be written.
    """
    check(path)
    path = checked(path)
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    suffix = Path(path).suffix.lower()[1:]
    # With these settings, the same figures give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "lowbit", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=inches, layout="constrained")
        FigureCanvasAgg(figure)  # measures the size of texts
        panels(figure)
        data = io.BytesIO()
        undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        figure.savefig(data, format=suffix, dpi=150, metadata=undated.get(suffix))
    with AtomicFile(path) as file:
        file.write(data.getbuffer())


def _panels(figure: Any, ladder: Ladder) -> None:
    divergence, perplexity, speed = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 1.2))
    rungs, original = ladder.rungs, ladder.original
    _points(divergence, rungs, "kl_divergence", "KL divergence (nats)")
    _points(perplexity, rungs, "perplexity", "perplexity")
    _points(speed, rungs, "decode_tokens_per_s", "tokens/s")
    for axes, value in ((perplexity, original.perplexity), (speed, original.decode_tokens_per_s)):
        axes.axhline(value, color=GREY, linestyle="--", linewidth=1)
        place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "annotation_clip": False}
        axes.annotate(original.format, (1, value), (4, 0), color=GREY, ha="left", va="center", **place)
    for axes, figure_name in ((divergence, "kl_divergence"), (perplexity, "perplexity")):
        if _shown(rungs, figure_name):
            axes.set_yscale("log")
    for axis in (perplexity.yaxis.set_major_formatter, perplexity.yaxis.set_minor_formatter):
        axis("{x:.3g}")
    speed.set_ylim(0, 1.15 * max(rung.decode_tokens_per_s for rung in (original, *rungs)))
    speed.set_xlabel("bits a weight")
    if divergence.collections:
        divergence.legend(loc="upper right")
    divergence.set_title(f"{Path(ladder.model).name} on {ladder.tokens} tokens", loc="left")
    divergence.margins(0.08, 0.12)
    _sizes(divergence, rungs)
    figure.canvas.draw()  # labels need the final positions
    _label(divergence, _shown(rungs, "kl_divergence"))


def _shown(rungs: Sequence[Rung], figure: str) -> list[Rung]:
    """The rungs whose figure can be shown on a logarithmic axis."""
    return [rung for rung in rungs if 0 < getattr(rung, figure) < math.inf]


def _family(rung: Rung) -> str:
    return next(family for family in FAMILIES if rung.format.startswith(family))


def _points(axes: Any, rungs: Sequence[Rung], figure: str, title: str) -> None:
    """Draws one figure of all rungs, with its standard error if there is one."""
    axes.set_ylabel(title)
    for family, (colour, marker) in FAMILIES.items():
        inside = [rung for rung in _shown(rungs, figure) if _family(rung) == family]
        if not inside:
            continue
        bits, values = zip(*((rung.bits_per_weight, getattr(rung, figure)) for rung in inside), strict=True)
        axes.scatter(bits, values, s=28, c=colour, marker=marker, label=NAMES[family], zorder=3)
        errors = [getattr(rung, f"{figure}_error", 0.0) for rung in inside]
        axes.errorbar(bits, values, errors, fmt="none", ecolor=colour, elinewidth=1, zorder=2)


def _sizes(axes: Any, rungs: Sequence[Rung]) -> None:
    """Adds a scale of file sizes, which are linear in the bits per weight."""
    least, most = (choose(rungs, key=lambda rung: rung.bits_per_weight) for choose in (min, max))
    if least.bits_per_weight == most.bits_per_weight:
        return
    slope = (most.file_bytes - least.file_bytes) / (most.bits_per_weight - least.bits_per_weight) / 1e6
    start = least.file_bytes / 1e6 - slope * least.bits_per_weight
    scale = axes.secondary_xaxis("top", (lambda bits: start + slope * bits, lambda size: (size - start) / slope))
    scale.set_xlabel("file size (MB)")


def _label(axes: Any, rungs: Sequence[Rung]) -> None:
    """Puts each name at the first position where it covers no marker and no other name, and is inside the panel."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    renderer = axes.figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    legend = axes.get_legend()
    taken = [legend.get_window_extent(renderer)] if legend else []
    for rung in rungs:
        x, y = axes.transData.transform((rung.bits_per_weight, rung.kl_divergence))
        taken.append(Bbox.from_extents(x - MARKER, y - MARKER, x + MARKER, y + MARKER))
    for rung in rungs:
        text = axes.annotate(
            rung.format,
            (rung.bits_per_weight, rung.kl_divergence),
            PLACES[0],
            textcoords="offset points",
            fontsize=8,
            va="center",
            color=FAMILIES[_family(rung)][0],
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": GREY, "shrinkA": 0, "shrinkB": 7},
            zorder=4,
        )

        def place(where: tuple[int, int], text: Any = text) -> Any:
            text.set_position(where)
            text.set_ha("left" if where[0] > 0 else "right" if where[0] < 0 else "center")
            text.update_positions(renderer)
            return Text.get_window_extent(text, renderer)  # without the line to the marker

        def crowd(where: tuple[int, int], place: Callable[[tuple[int, int]], Any] = place) -> int:
            box = place(where)
            outside = not (frame.contains(*box.min) and frame.contains(*box.max))
            return int(outside) + sum(bool(box.overlaps(other)) for other in taken)

        taken.append(place(min(PLACES, key=crowd)))
