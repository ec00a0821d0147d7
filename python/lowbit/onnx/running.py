"""Models run by ONNX Runtime (extra `onnx`), to calibrate and to measure."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit.base.errors import UnsupportedError
from lowbit.base.quoting import quoted, reason
from lowbit.onnx.graph import Model, Value
from lowbit.onnx.writing import write

Array = npt.NDArray[Any]
#: Values of a run, by name.
Feed = Mapping[str, Array]
#: The log level of ONNX Runtime: not even errors, which it also raises.
_ERRORS = 4


def runtime() -> Any:
    """The module onnxruntime. Raises UnsupportedError if it is missing."""
    try:
        return importlib.import_module("onnxruntime")
    except ImportError:
        raise UnsupportedError("running a model needs onnxruntime: pip install 'lowbit[onnx]'") from None


class Session:
    """A model that is ready to run. outputs: the values to return, also those between nodes; None: its outputs.

    A sequence of tensors becomes one array of all its elements. Maps are left out.
    """

    def __init__(self, model: Model, outputs: Sequence[str] | None = None, *, threads: int = 1) -> None:
        ort = runtime()
        if outputs is not None:
            known = {value.name: value for value in model.outputs}
            values = tuple(known.get(name) or Value(name) for name in outputs)
            model = replace(model, graph=replace(model.graph, outputs=values))
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = _ERRORS
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        with tempfile.TemporaryDirectory(prefix="lowbit-", ignore_cleanup_errors=True) as folder:
            path = os.path.join(folder, "model.onnx")
            write(path, model)
            try:
                self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            except Exception as error:
                raise UnsupportedError(f"onnxruntime does not load the model: {reason(error)}") from None
        arrays = ("tensor", "seq(tensor")
        self.outputs = [each.name for each in self._session.get_outputs() if each.type.startswith(arrays)]

    def float_outputs(self) -> set[str]:
        """The outputs whose elements are float32."""
        return {each.name for each in self._session.get_outputs() if each.type == "tensor(float)"}

    def matrices(self) -> set[str]:
        """The outputs that are known to have two dimensions."""
        return {each.name for each in self._session.get_outputs() if len(each.shape or ()) == 2}

    def run(self, feed: Feed, names: Sequence[str] | None = None) -> dict[str, Array]:
        """The outputs, or some of them, by name. Raises UnsupportedError if onnxruntime fails."""
        names = self.outputs if names is None else names
        if not names:
            return {}
        try:
            found = self._session.run(names, dict(feed))
        except Exception as error:
            raise UnsupportedError(f"onnxruntime does not run the model: {reason(error)}") from None
        return {name: _array(name, value) for name, value in zip(names, found, strict=True)}


def _array(name: str, value: Any) -> Array:
    if isinstance(value, list):
        return np.concatenate([np.ravel(each) for each in value]) if value else np.zeros(0, np.float32)
    if not isinstance(value, (np.ndarray, np.generic)):
        raise UnsupportedError(f"the value {quoted(name)} is no dense tensor: exclude the nodes that read it")
    return np.asarray(value)
