"""Which of several ways to fit weights brings the outputs for typical inputs closest to the float model's.

Each way brings the results of single nodes closer to the float ones. But errors of several nodes can cancel each
other, which only the outputs show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from lowbit.onnx.measuring import Comparison
from lowbit.onnx.options import OnnxOptions
from lowbit.onnx.sensitivities import Change, Changed


def variants(options: OnnxOptions) -> list[OnnxOptions]:
    """The options, and those with plainer ways in place of the defaults."""
    if options.mode == "static":
        switches = [dict.fromkeys((switch, False)) for switch in (options.search, options.bias_correction)]
        return [replace(options, search=search, bias_correction=corrects) for search, corrects in product(*switches)]
    if options.mode == "weight-only" and options.method == "search" and options.importances is None:
        return [options, replace(options, method="round")]
    return [options]


def closest(tried: Sequence[OnnxOptions], change: Change, comparison: Comparison) -> tuple[OnnxOptions, Changed]:
    """The options whose outputs are closest, with the model and the reports. The first of equals."""
    least = math.inf
    for options in tried:
        made = change(options)
        error = comparison.error(made[0])
        if error < least or options is tried[0]:
            least, best = error, (options, made)
    return best
