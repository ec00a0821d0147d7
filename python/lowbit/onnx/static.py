"""Mode "static": int8 weights, and activations in 8 or 16 bits whose ranges were calibrated.

The model is run on typical inputs (calibration.py), values are observed (ranges.py), the nodes are chosen
(static_plan.py) and rewritten (static_nodes.py). smooth.py has what needs statistics of channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from lowbit.base.progress import ProgressLike, steps
from lowbit.onnx.calibration import CalibrationData, feeds, repeatable
from lowbit.onnx.graph import Model
from lowbit.onnx.measuring import Comparison
from lowbit.onnx.opsets import raised
from lowbit.onnx.options import OnnxOptions
from lowbit.onnx.ranges import Observed, affine
from lowbit.onnx.report import NodeReport
from lowbit.onnx.rewriting import Scope
from lowbit.onnx.running import Session
from lowbit.onnx.smooth import ChannelValues, channel_axis, smoothed, smoothed_inputs
from lowbit.onnx.static_nodes import LEAST_OPSET, Calibrated, Rewriting
from lowbit.onnx.static_plan import PRODUCTS, candidates, make_plan, ranged


def static(
    model: Model, options: OnnxOptions, calibration: CalibrationData, progress: ProgressLike = None
) -> tuple[Model, list[NodeReport]]:
    """The quantized model, and the reports of its nodes."""
    model = raised(model, LEAST_OPSET)
    if options.smooth is not None:
        calibration = repeatable(calibration)
        model = _smoothed(model, options, calibration, progress)
    variants = [
        replace(options, search=search, bias_correction=correction)
        for search in dict.fromkeys((options.search, False))
        for correction in dict.fromkeys((options.bias_correction, False))
    ]
    if len(variants) > 1:
        calibration = repeatable(calibration)
    calibrated = _calibrated(model, options, calibration, progress)
    made = [Rewriting(model, variant, calibrated.again(model)).run() for variant in variants]
    if len(made) == 1:
        return made[0]
    # Both bring the results of each node closer to the float ones, but errors of several nodes can cancel each other.
    compared = Comparison(model, calibration, options.threads or 1)
    return min(made, key=lambda found: compared.error(found[0]))


def _smoothed(model: Model, options: OnnxOptions, calibration: CalibrationData, progress: ProgressLike) -> Model:
    """The model after SmoothQuant."""
    assert options.smooth is not None
    scope = Scope.of_graph(model)
    session = Session(model, candidates(model, scope), threads=options.threads or 1)
    plan = make_plan(model, options, scope, _not_float(session), session.matrices())
    groups = smoothed_inputs(plan, scope)
    found = {name: ChannelValues(-1) for name in groups}
    for values in _runs(session, [*found], model, options, calibration, progress, "smooth"):
        for name, each in found.items():
            each.add(values[name])
    largest = {name: each.largest for name, each in found.items()}
    seen = {name: nodes for name, nodes in groups.items() if found[name].means is not None}
    return smoothed(model, plan, scope, largest, seen, options.smooth)


def _not_float(session: Session) -> dict[str, str]:
    return dict.fromkeys({*session.outputs} - session.float_outputs(), "its values are not float32")


def _runs(
    session: Session,
    names: list[str],
    model: Model,
    options: OnnxOptions,
    calibration: CalibrationData,
    progress: ProgressLike,
    title: str,
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """The values of each run of the calibration."""
    with steps(title, "runs", progress) as advance:
        for run, feed in enumerate(feeds(calibration, model, options.batch_size)):
            yield session.run(feed, names)
            advance(run + 1, None)


def _calibrated(model: Model, options: OnnxOptions, calibration: CalibrationData, progress: ProgressLike) -> Calibrated:
    scope = Scope.of_graph(model)
    session = Session(model, candidates(model, scope), threads=options.threads or 1)
    refused = _not_float(session)
    plan = make_plan(model, options, scope, refused, session.matrices())
    observed = {name: Observed(options.calibration_method) for name in ranged(plan, scope)}
    channels: dict[tuple[str, int], ChannelValues] = {}
    if options.bias_correction or options.search:
        for step in plan.steps.values():
            if step.node.op_type in PRODUCTS and (axis := channel_axis(step.node)) is not None:
                channels[step.node.inputs[0], axis] = ChannelValues(axis)
    for values in _runs(session, [*observed], model, options, calibration, progress, "calibrate"):
        for name, each in observed.items():
            each.add(values[name])
        for (name, _), of_channels in channels.items():
            of_channels.add(values[name])
    for name, each in observed.items():
        if not each.is_finite:
            refused[name] = "the calibration gave values that are not finite"
        elif not each.runs:
            refused[name] = "the calibration gave no values"
    plan = make_plan(model, options, scope, refused, session.matrices())
    while lacking := [name for name in ranged(plan, scope) if name not in observed]:
        # A product whose bias was an Add: the sum was observed, and stays float now.
        refused |= dict.fromkeys(lacking, "the calibration gave values that are not finite behind it")
        plan = make_plan(model, options, scope, refused, session.matrices())
    found = {}
    for name in ranged(plan, scope):
        low, high = observed[name].range(options.activations, options.symmetric_activations, options.percentile)
        found[name] = affine(low, high, options.activations, options.symmetric_activations)
    return Calibrated(plan, scope, found, channels)
