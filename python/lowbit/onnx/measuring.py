"""How much a changed model's outputs differ from those of the model before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice, product
from typing import Any

import numpy as np

from lowbit.base.errors import Error, InputError, UnsupportedError
from lowbit.base.quoting import shown
from lowbit.onnx.calibration import CalibrationData, feeds
from lowbit.onnx.graph import Model, Node
from lowbit.onnx.running import Array, Feed, Session

#: Sizes of open dimensions, and the number of sizes that a model is run with: results may depend on them.
_SIZES = (2, 1, 5, 16, 64, 256, 1024)
#: The largest size that is tried however large the inputs are.
_ALWAYS = 2
_RUNS = 3
#: More elements of random inputs are not tried: values between nodes may be 100 times as many.
_MOST_ELEMENTS = 1 << 20
#: Random integers are below one of these: they may be indices, counts or flags.
_BELOW = (100, 2)
#: Runs of given inputs that are compared.
_MOST_RUNS = 16


def relative_error(expected: Sequence[Mapping[str, Array]], found: Sequence[Mapping[str, Array]]) -> float:
    """The error of the worst output: the 2-norm of the difference over all runs, relative to that of the values.

    Of outputs without float values: 0 if they are equal, else 1. Where a value is not finite, both must be alike.
    """
    return max(
        (_error([run[name] for run in expected], [run[name] for run in found]) for name in expected[0]), default=0
    )


def _error(expected: Sequence[Array], found: Sequence[Array]) -> float:
    lost = total = 0.0
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            return np.inf
        if a.dtype.kind not in "fV" or b.dtype.kind not in "fV":
            if not np.array_equal(a, b):
                return 1.0
            continue
        finite = np.isfinite(a)
        if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
            return np.inf
        x, y = a[finite].astype(np.float64), b[finite].astype(np.float64)
        lost += float(np.square(x - y).sum())
        total += float(np.square(x).sum())
    if np.isnan(lost):
        return np.inf
    return float(np.sqrt(lost / total)) if total else (np.inf if lost else 0.0)


def _has_numbers(array: Array) -> bool:
    return array.dtype.kind not in "fV" or not array.size or bool(np.isfinite(array).any())


def random_feed(model: Model, size: int, below: int, are_equal: bool) -> dict[str, Array] | None:
    """Random values for each input of a model, integers below a bound. None if they would be too many.

    Open dimensions get a size from `size` on: one for each name, or one for all.
    """
    sizes: dict[str | int, int] = {}
    shapes = []
    for value in model.inputs:
        if value.dtype is None or value.shape is None or value.dtype == object:
            raise InputError(f"input {shown(value.name)} has no type and shape to make values for: give inputs")
        shape = []
        for dim in value.shape:
            if not isinstance(dim, int):
                key = len(sizes) if dim is None else dim
                dim = size if are_equal else sizes.setdefault(key, size + len(sizes))
            shape.append(dim)
        shapes.append(shape)
    if size > _ALWAYS and sum(map(math.prod, shapes)) > _MOST_ELEMENTS:
        return None
    rng = np.random.default_rng(size)
    return {
        value.name: _random(value.dtype, shape, below, rng)
        for value, shape in zip(model.inputs, shapes, strict=True)
        if value.dtype is not None
    }


def _random(dtype: np.dtype[Any], shape: list[int], below: int, rng: np.random.Generator) -> Array:
    if dtype.kind in "iu":
        return rng.integers(0, below, shape).astype(dtype)
    if dtype.kind == "b":
        return np.asarray(rng.random(shape) < 0.5)  # without axes, NumPy's scalar
    return rng.standard_normal(shape).astype(dtype)


def random_runs(model: Model, session: Session) -> tuple[list[Feed], list[dict[str, Array]]]:
    """Random inputs with which a model runs, and its outputs. Raises InputError if it runs with none."""
    reason: Error | None = None
    feeds: list[Feed] = []
    results: list[dict[str, Array]] = []
    for below, are_equal, size in product(_BELOW, (False, True), _SIZES):
        feed = random_feed(model, size, below, are_equal)
        if feed is None:
            continue
        try:
            results.append(session.run(feed))
        except UnsupportedError as error:
            reason = error
            continue
        feeds.append(feed)
        if len(feeds) == _RUNS:
            break
    if not feeds:
        raise InputError(f"the model does not run with random inputs: give inputs. {reason}")
    return feeds, results


class Comparison:
    """The outputs of a model, to compare others with."""

    def __init__(
        self, model: Model, inputs: CalibrationData | None, threads: int = 1, calibration: CalibrationData | None = None
    ) -> None:
        """inputs: what to run the models with; None: the data of the calibration, or else random values."""
        about = "calibration" if inputs is None and calibration is not None else "inputs"
        inputs = calibration if inputs is None else inputs
        self._threads = threads
        self._feeds: Sequence[Feed]
        self._expected: Sequence[Mapping[str, Array]]
        session = Session(model, threads=threads)
        if inputs is None:
            self._feeds, self._expected = random_runs(model, session)
        else:
            self._feeds = [*islice(feeds(inputs, model, about=about), _MOST_RUNS)]
            self._expected = [session.run(feed) for feed in self._feeds]
        has_numbers = any(_has_numbers(array) for run in self._expected for array in run.values())
        if about == "inputs" and not has_numbers:  # a calibration tells so for each node
            raise InputError("no output of the model has a finite value: give other inputs")

    def error(self, model: Model) -> float:
        """The relative error of a model's worst output."""
        session = Session(model, threads=self._threads)
        types = {value.name: value.dtype for value in model.inputs}
        runs = [{name: _as(array, types.get(name)) for name, array in feed.items()} for feed in self._feeds]
        return relative_error(self._expected, [session.run(feed) for feed in runs])

    def first_difference(self, before: Model, after: Model, tolerance: float) -> Node | None:
        """The first node whose float results differ in another model, of those whose results both have.

        None if there is no such node, or if the results between the nodes cannot be had.
        """
        later = {name for node in after.nodes for name in node.outputs}
        names = [name for node in before.nodes for name in node.outputs if name and name in later]
        try:
            sessions = [Session(model, names, threads=self._threads) for model in (before, after)]
            floats = sessions[0].float_outputs() & sessions[1].float_outputs()
            expected, found = (session.run(self._feeds[0], [*floats]) for session in sessions)
        except Error:
            return None
        differing = {name for name in floats if _error([expected[name]], [found[name]]) > tolerance}
        return next((node for node in before.nodes if differing.intersection(node.outputs)), None)


def _as(array: Array, dtype: np.dtype[Any] | None) -> Array:
    """Floats in the type of a model's input, which may have fewer bits than it had before."""
    return array.astype(dtype) if dtype is not None and array.dtype.kind == dtype.kind == "f" else array
