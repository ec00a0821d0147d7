"""Mode "static": int8 weights, and activations in 8 or 16 bits whose ranges were calibrated.

The model is run on typical inputs (observing.py), values are observed (ranges.py, channel_values.py), the nodes are
chosen (static_plan.py) and rewritten (static_nodes.py). smooth.py has SmoothQuant.
"""

from __future__ import annotations

from lowbit.base.progress import ProgressLike
from lowbit.onnx.calibration import CalibrationData
from lowbit.onnx.channel_values import ChannelValues, channel_axis
from lowbit.onnx.graph import Model
from lowbit.onnx.observing import observe
from lowbit.onnx.opsets import raised
from lowbit.onnx.options import OnnxOptions
from lowbit.onnx.ranges import Observed, affine
from lowbit.onnx.report import NodeReport
from lowbit.onnx.rewriting import Scope
from lowbit.onnx.running import Session
from lowbit.onnx.smooth import smoothed, smoothed_inputs
from lowbit.onnx.static_nodes import LEAST_OPSET, Calibrated, Rewriting
from lowbit.onnx.static_plan import PRODUCTS, Plan, candidates, make_plan, ranged


class Static:
    """A model with data to calibrate with. Called with options, it returns the quantized model and the reports.

    The options may differ from those it was made with in the nodes that they select, `search` and `bias_correction`.
    Each value is observed once.
    """

    def __init__(
        self, model: Model, options: OnnxOptions, calibration: CalibrationData, progress: ProgressLike = None
    ) -> None:
        self._calibration, self._progress = calibration, progress
        self._load(raised(model, LEAST_OPSET), options)
        if options.smooth is not None:
            self._load(self._smoothed(options, options.smooth), options)

    def __call__(self, options: OnnxOptions) -> tuple[Model, list[NodeReport]]:
        """The quantized model, and the reports of its nodes."""
        plan = self._plan(options)
        ranges = {}
        for name in ranged(plan, self._scope):
            low, high = self._ranges[name].range(options.activations, options.symmetric_activations, options.percentile)
            ranges[name] = affine(low, high, options.activations, options.symmetric_activations)
        calibrated = Calibrated(plan, Scope.of_graph(self._model), ranges, self._channels)
        return Rewriting(self._model, options, calibrated).run()

    def _load(self, model: Model, options: OnnxOptions) -> None:
        self._model = model
        self._scope = Scope.of_graph(model)
        self._session = Session(model, candidates(model, self._scope), threads=options.threads or 1)
        names = {*self._session.outputs} - self._session.float_outputs()
        self._refused = dict.fromkeys(names, "its values are not float32")
        self._ranges: dict[str, Observed] = {}
        self._channels: dict[tuple[str, int], ChannelValues] = {}

    def _make_plan(self, options: OnnxOptions) -> Plan:
        return make_plan(self._model, options, self._scope, self._refused, self._session.matrices())

    def _plan(self, options: OnnxOptions) -> Plan:
        """A plan whose values were observed, and have ranges."""
        while True:
            plan = self._make_plan(options)
            self._observe(plan, options)
            names = ranged(plan, self._scope)
            refused = {name: reason for name in names if (reason := _refusal(self._ranges[name]))}
            if not refused:
                return plan
            self._refused |= refused

    def _observe(self, plan: Plan, options: OnnxOptions) -> None:
        """Runs the model if the plan needs values that were not observed yet."""
        ranges = {
            name: Observed(options.calibration_method) for name in ranged(plan, self._scope) if name not in self._ranges
        }
        channels = {}
        products = [step.node for step in plan.steps.values() if step.node.op_type in PRODUCTS]
        for node in products if options.search or options.bias_correction else ():
            if (axis := channel_axis(node)) is not None and (node.inputs[0], axis) not in self._channels:
                channels[node.inputs[0], axis] = ChannelValues(axis)
        names = [*dict.fromkeys((*ranges, *(name for name, _ in channels)))]
        if not names:
            return
        for values in observe(
            self._session, names, self._model, options, self._calibration, self._progress, "calibrate"
        ):
            for name, observed in ranges.items():
                observed.add(values[name])
            for (name, _), of_channels in channels.items():
                of_channels.add(values[name])
        self._ranges |= ranges
        self._channels |= channels

    def _smoothed(self, options: OnnxOptions, share: float) -> Model:
        """The model after SmoothQuant."""
        plan = self._make_plan(options)
        groups = smoothed_inputs(plan, self._scope)
        found = {name: ChannelValues(-1) for name in groups}
        for values in observe(self._session, found, self._model, options, self._calibration, self._progress, "smooth"):
            for name, each in found.items():
                each.add(values[name])
        largest = {name: each.largest for name, each in found.items()}
        seen = {name: nodes for name, nodes in groups.items() if found[name].means is not None}
        return smoothed(self._model, plan, self._scope, largest, seen, share)


def _refusal(observed: Observed) -> str:
    """Why a value has no range, or nothing."""
    if not observed.is_finite:
        return "the calibration gave values that are not finite"
    return "" if observed.runs else "the calibration gave no values"
