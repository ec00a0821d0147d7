"""The values between nodes, seen while a model runs on typical inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy.typing as npt

from lowbit.base.progress import ProgressLike, steps
from lowbit.onnx.calibration import CalibrationData, feeds
from lowbit.onnx.channel_values import Channels, ChannelValues, channel_axis
from lowbit.onnx.graph import Model
from lowbit.onnx.options import OnnxOptions
from lowbit.onnx.rewriting import Scope
from lowbit.onnx.running import Session

#: The operators whose weights are fitted to their input.
_PRODUCTS = ("Gemm", "MatMul")


def observe(
    session: Session,
    names: Collection[str],
    model: Model,
    options: OnnxOptions,
    calibration: CalibrationData,
    progress: ProgressLike,
    title: str,
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """The values of these names in each run."""
    with steps(title, "runs", progress) as advance:
        for run, feed in enumerate(feeds(calibration, model, options.batch_size)):
            yield session.run(feed, [*names])
            advance(run + 1, None)


def observed_channels(
    model: Model,
    options: OnnxOptions,
    calibration: CalibrationData,
    progress: ProgressLike = None,
) -> Channels:
    """The statistics of the inputs of products with a constant weight, which options select."""
    scope = Scope.of_graph(model)
    found: dict[tuple[str, int], ChannelValues] = {}
    for node in model.graph.nodes:
        if node.operator in _PRODUCTS and len(node.inputs) > 1 and options.selects(node) is None:
            is_product = scope.constant(node.inputs[1]) is not None and scope.constant(node.inputs[0]) is None
            if is_product and (axis := channel_axis(node)) is not None:
                found[node.inputs[0], axis] = ChannelValues(axis)
    if not found:
        return {}
    session = Session(model, [*dict.fromkeys(name for name, _ in found)], threads=options.threads or 1)
    names = session.float_outputs()
    found = {key: values for key, values in found.items() if key[0] in names}
    for values in observe(session, names, model, options, calibration, progress, "calibrate"):
        for (name, _), channels in found.items():
            channels.add(values[name])
    return found
