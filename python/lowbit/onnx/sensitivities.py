"""Which nodes cost most when they are quantized, and which to keep float so that the output stays near enough."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from lowbit.base.progress import ProgressLike, steps
from lowbit.onnx.graph import Model
from lowbit.onnx.measuring import Comparison
from lowbit.onnx.options import OnnxOptions
from lowbit.onnx.report import NodeReport

#: A quantized model, and the reports of its nodes.
Changed: TypeAlias = tuple[Model, list[NodeReport]]
#: Quantizes the model with other options.
Change: TypeAlias = Callable[[OnnxOptions], Changed]


def node_errors(
    options: OnnxOptions,
    change: Change,
    reports: Sequence[NodeReport],
    comparison: Comparison,
    progress: ProgressLike = None,
) -> list[NodeReport]:
    """The nodes that are quantized, the worst first, with the error of the output if only this one is.

    reports: of the model with all of them quantized.
    """
    labels = {report.name: report for report in reports if report.is_quantized}
    found = []
    with steps("sensitivity", "node", progress) as advance:
        for done, (label, report) in enumerate(labels.items(), 1):
            alone, _ = change(replace(options, include_nodes=[glob.escape(label)]))
            found.append(replace(report, error=comparison.error(alone)))
            advance(done, len(labels))
    return sorted(found, key=lambda report: -(report.error or 0))


def within(
    max_error: float,
    options: OnnxOptions,
    change: Change,
    made: Changed,
    comparison: Comparison,
    progress: ProgressLike = None,
) -> tuple[Changed, float]:
    """The model with so many of the worst nodes float that its error is at most max_error. Returns the error, too.

    made: the model with all nodes quantized, and its reports.
    The number is found by bisection, as if each node that stays float made the error smaller. Where it does not, more
    nodes may stay float than have to; the error holds.
    """
    error = comparison.error(made[0])
    if error <= max_error:
        return made, error
    worst = node_errors(options, change, made[1], comparison, progress)
    few, many = 0, len(worst)
    found = _without(worst, options, change)
    error = comparison.error(found[0])
    while many - few > 1:
        middle = (few + many) // 2
        tried = _without(worst[:middle], options, change)
        lost = comparison.error(tried[0])
        if lost <= max_error:
            many, found, error = middle, tried, lost
        else:
            few = middle
    return found, error


def _without(kept: Sequence[NodeReport], options: OnnxOptions, change: Change) -> Changed:
    """The model with some nodes float, which their reports say."""
    patterns = [glob.escape(report.name) for report in kept]
    model, reports = change(replace(options, exclude_nodes=[*options.exclude_nodes, *patterns]))
    alone = {report.name: report.error for report in kept}
    return model, [
        replace(report, reason=f"quantized alone, it changes the output by {alone[report.name]:.1e}")
        if report.name in alone
        else report
        for report in reports
    ]
