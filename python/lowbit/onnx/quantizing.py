"""`quantize`: from an ONNX model to a quantized one. Each mode has a module of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial

import numpy as np
import numpy.typing as npt

from lowbit.base import arguments
from lowbit.base.errors import InputError
from lowbit.base.operation import operation, replacing
from lowbit.base.paths import AnyPath, checked
from lowbit.base.progress import ProgressLike
from lowbit.base.threads import num_threads
from lowbit.onnx.calibration import CalibrationData, repeatable
from lowbit.onnx.dynamic import dynamic
from lowbit.onnx.float16 import float16
from lowbit.onnx.graph import Model
from lowbit.onnx.measuring import Comparison
from lowbit.onnx.observing import observed_channels
from lowbit.onnx.options import OnnxOptions
from lowbit.onnx.reading import opened
from lowbit.onnx.report import NodeReport, QuantizeReport
from lowbit.onnx.sensitivities import Change, Changed, node_errors, within
from lowbit.onnx.static import Static
from lowbit.onnx.variants import closest, variants
from lowbit.onnx.weight_only import weight_only
from lowbit.onnx.writing import file_bytes, write


@operation()
def quantize(
    source: AnyPath | Model,
    target: AnyPath,
    *,
    mode: str,
    include_nodes: Sequence[str] = (),
    exclude_nodes: Sequence[str] = (),
    include_operators: Sequence[str] = (),
    exclude_operators: Sequence[str] = (),
    bits: int | Mapping[str, int] = 4,
    block_size: int = 32,
    symmetric: bool = True,
    method: str = "search",
    accuracy_level: int = 4,
    standard: bool = False,
    importances: Mapping[str, npt.NDArray[np.float32]] | None = None,
    search: bool = True,
    fused: bool = False,
    format: str = "QDQ",
    activations: str = "uint8",
    symmetric_activations: bool = False,
    per_channel: bool = True,
    calibration: CalibrationData | None = None,
    calibration_method: str = "minmax",
    percentile: float = 99.999,
    batch_size: int = 1,
    smooth: float | None = None,
    bias_correction: bool = True,
    keep_io: bool = True,
    out_of_range: str = "clamp",
    max_error: float | None = None,
    inputs: CalibrationData | None = None,
    external_data: bool | str | None = None,
    dry_run: bool = False,
    threads: int | None = None,
    progress: ProgressLike = None,
) -> QuantizeReport:
    """Quantizes an ONNX model.

    source: a file, or a model. target: the file to write; it is never the source.
    mode: "dynamic" (int8, activations quantized as the model runs), "static" (int8, activations calibrated),
        "weight-only", "float16" or "bfloat16".
    include_nodes ... out_of_range, threads: see `lowbit.onnx.OnnxOptions`.
    calibration: typical inputs: an .npz file, a folder or pattern ("data/*.npz") of those, or an iterable with a
        mapping for each run. Arrays are called as the model's inputs. In files, the first axis of an array counts
        samples if the model's first dimension is open; if that is a number, each run gets as many rows, and an array
        with just so many goes to all runs. Mode static needs it, mode weight-only can fit weights to it. Needs the
        extra `onnx`.
    max_error: the largest relative error of an output. The nodes that cost most (`sensitivity`) stay float until it
        holds. Needs the extra `onnx`.
    inputs: what to measure that error with, as for calibration. If None, the data of the calibration, else random
        values.
    external_data: as in `lowbit.onnx.write`.
    dry_run: writes nothing; the report says what would be written.
    progress: see `lowbit.ProgressLike`.

    The file appears complete or not at all. The report lists each node that the mode could quantize, with the reason if
    it stays float. Raises FileError, FormatError, UnsupportedError or InputError.
    """
    given = locals()
    options = OnnxOptions(**{option.name: given[option.name] for option in fields(OnnxOptions)})
    target, dry_run = checked(target), arguments.flag("dry_run", dry_run)
    if max_error is not None:
        max_error = arguments.number("max_error", max_error, 0)
    elif inputs is not None:
        raise InputError("inputs are compared with max_error: give both, or none")
    model = _opened(source, options)
    replacing([target])
    calibration = None if calibration is None else repeatable(calibration)
    options, change, made = _made(model, options, calibration, progress, is_beside=bool(external_data))
    error = None
    if max_error is not None:
        comparison = Comparison(model, inputs, num_threads(options.threads), calibration)
        made, error = within(max_error, options, change, made, comparison, progress)
    quantized, nodes = made
    sizes = file_bytes(model), file_bytes(quantized, target, external_data=external_data)
    if not dry_run:
        write(target, quantized, external_data=external_data, progress=progress)
    return QuantizeReport(target, options.mode, [node.measured() for node in nodes], *sizes, error=error)


@operation()
def sensitivity(
    source: AnyPath | Model,
    options: OnnxOptions,
    *,
    inputs: CalibrationData | None = None,
    calibration: CalibrationData | None = None,
    progress: ProgressLike = None,
) -> list[NodeReport]:
    """The nodes that `quantize` would quantize, the worst first: `error` is the output's if only this one is quantized.

    inputs: what to measure with; see `quantize`, also for calibration. Needs the extra `onnx`. Raises as `quantize`.
    """
    if not isinstance(options, OnnxOptions):
        raise arguments.wrong("options", "lowbit.onnx.OnnxOptions", options)
    model = _opened(source, options)
    calibration = None if calibration is None else repeatable(calibration)
    options, change, (_, reports) = _made(model, options, calibration, progress)
    comparison = Comparison(model, inputs, num_threads(options.threads), calibration)
    return node_errors(options, change, reports, comparison, progress)


def _opened(source: AnyPath | Model, options: OnnxOptions) -> Model:
    model = opened(source)
    options.check(model)
    return model


def _made(
    model: Model,
    options: OnnxOptions,
    calibration: CalibrationData | None,
    progress: ProgressLike,
    is_beside: bool = False,
) -> tuple[OnnxOptions, Change, Changed]:
    """The quantized model with its reports, and the options and the function that made it.

    is_beside: weights will be written beside the model, where initializers can share bytes. With calibration data, the
    options are those of the closest variant.
    """
    change = _change(model, options, calibration, progress, is_beside)
    tried = variants(options)
    if calibration is None or len(tried) == 1:
        return options, change, change(options)
    best, made = closest(tried, change, Comparison(model, None, num_threads(options.threads), calibration))
    return best, change, made


def _change(
    model: Model, options: OnnxOptions, calibration: CalibrationData | None, progress: ProgressLike, is_beside: bool
) -> Change:
    """What quantizes the model with options of this mode. Raises InputError for data that the mode does not use."""
    if options.mode == "static":
        if calibration is None:
            raise InputError("calibration:", expected="typical inputs", found="none")
        return Static(model, options, calibration, progress)
    if options.mode == "weight-only":
        channels = {} if calibration is None else observed_channels(model, options, calibration, progress)
        return partial(weight_only, model, channels=channels, is_beside=is_beside)
    if calibration is not None:
        raise InputError("calibration:", expected=f"none in mode {options.mode}", found="data")
    return partial(dynamic if options.mode == "dynamic" else float16, model)
