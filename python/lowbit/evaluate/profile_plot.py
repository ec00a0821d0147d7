"""Plot of a profile: time of each stage beside the memory's limit, and of each layer. Needs the extra `plot`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowbit.base.paths import AnyPath
from lowbit.evaluate.plot import GREY, write
from lowbit.evaluate.profile import ProfileReport

__all__ = ["draw"]

#: A colour for each stage, in the order of a step. Most people can distinguish them (Okabe and Ito).
COLOURS = ("#999999", "#0072B2", "#F0E442", "#D55E00", "#56B4E9", "#009E73", "#E69F00", "#CC79A7")


def draw(profile: ProfileReport, path: AnyPath) -> None:
    """Writes the plot, with a bar for each stage and one for each layer. Raises the errors of `plot.write`."""
    write(path, (9, 7), lambda figure: _panels(figure, profile))


def _panels(figure: Any, profile: ProfileReport) -> None:
    by_stage, by_layer = figure.subplots(2, 1, height_ratios=(3, 2))
    _stages(by_stage, profile)
    _layers(by_layer, profile)
    step = f"step of {profile.tokens} token{'s' if profile.tokens > 1 else ''} at {profile.depth}"
    title = f"{Path(profile.model).name}, {step}: {profile.step.seconds * 1e3:.3g} ms, {profile.threads} threads"
    by_stage.set_title(title, loc="left")


def _stages(axes: Any, profile: ProfileReport) -> None:
    """A bar for each stage, from the top, with a mark where it would end if it read at the memory's limit."""
    limit = profile.read_limit_bytes_per_s
    for row, (stage, colour) in enumerate(zip(profile.stages, COLOURS, strict=True)):
        axes.barh(row, stage.seconds * 1e3, color=colour)
        least = stage.bytes_read / limit * 1e3
        axes.plot([least, least], [row - 0.4, row + 0.4], color="black", linewidth=2)
        end = (max(least, stage.seconds * 1e3), row)
        axes.annotate(f"{stage.share:.1%}", end, (4, 0), textcoords="offset points", va="center", color=GREY)
    axes.set_yticks(range(len(profile.stages)), [stage.stage for stage in profile.stages])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")
    axes.set_axisbelow(True)
    axes.set_xlabel(f"ms; black lines: the stage's bytes at the memory's limit, {limit / 1e9:.3g} GB/s")


def _layers(axes: Any, profile: ProfileReport) -> None:
    """A bar for each layer, stacked from its stages."""
    ends: dict[int | None, float] = {}
    for stage, colour in zip(profile.stages, COLOURS, strict=True):
        parts = [part for part in profile.layers if part.stage == stage.stage]
        heights = [part.seconds * 1e3 for part in parts]
        bottoms = [ends.get(part.layer, 0.0) for part in parts]
        axes.bar([part.layer for part in parts], heights, bottom=bottoms, color=colour)
        ends |= {part.layer: low + high for part, low, high in zip(parts, bottoms, heights, strict=True)}
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(visible=False, axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel("layer")
    axes.set_ylabel("ms")
