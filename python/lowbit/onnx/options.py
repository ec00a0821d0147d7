"""What `lowbit.onnx.quantize` can be asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit.base import arguments
from lowbit.base.errors import InputError
from lowbit.base.quoting import quoted
from lowbit.base.suggest import did_you_mean
from lowbit.base.threads import num_threads
from lowbit.onnx.graph import Model, Node
from lowbit.onnx.ranges import METHODS

MODES = ("dynamic", "static", "weight-only", "float16", "bfloat16")
#: Lists of names or patterns: options that choose nodes.
_SELECTIONS = ("include_nodes", "exclude_nodes", "include_operators", "exclude_operators")


def _only(default: Any, *modes: str, choices: Sequence[Any] = ()) -> Any:
    """An option of some modes, with its values if those are few."""
    return field(default=default, metadata={"modes": modes, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class OnnxOptions:
    """Options of `lowbit.onnx.quantize`. Each is obeyed, or refused with an InputError that says why.

    include_nodes, exclude_nodes: patterns of names as a shell has them ("/layers.0/*"). Without include_nodes, all
        nodes are included. A node without a name is called by its first output.
    include_operators, exclude_operators: operators ("MatMul", "com.microsoft.Attention"). Without include_operators,
        those that the mode quantizes.
    bits: of weights: a number for all nodes, or pattern -> number, of which the first that matches counts; 4 for the
        rest.
    block_size: weights along the input axis that share a scale: 16, 32, 64, 128 or 256.
    symmetric: weights have no zero points.
    method: of finding scales: "search" tries up to 24 and fits the best to the weights; "round" takes the range of the
        weights, and gives onnxruntime's bytes; "hqq" (half-quadratic) lets outliers count less, and needs
        symmetric=False.
    accuracy_level: attribute of MatMulNBits with 4 bits: 4 lets ONNX Runtime round activations to 8 bits, which is
        fast; with 0 results are exact. With 2 and 8 bits it is always 4: the exact way is 100 times as slow there.
    standard: blocks in DequantizeLinear of ai.onnx (opset 21; 25 for 2 bits), which runtimes fuse with the product,
        instead of operators of com.microsoft.
    importances: name of a node -> importance of each input of its product, for method "search".
    search: int8 scales with the smallest squared error of the weights, instead of those that hold the largest value.
    fused: operators of com.microsoft instead of several of ai.onnx. Only ONNX Runtime and OpenVINO have them. An LSTM
        needs one in any case.
    format: "QDQ", the model's operators between QuantizeLinear and DequantizeLinear, or "QOperator", QLinearConv and
        the like.
    activations: the type of codes: "uint8", "int8", "uint16" or "int16".
    symmetric_activations: zero is the middle of an activation's range.
    per_channel: weights have a scale for each output channel, not one for all.
    calibration_method: from values to a range: "minmax", "average" (of the least and largest values of each run),
        "percentile", "entropy" or "mse".
    percentile: the share of values, in percent, that the method of that name covers.
    batch_size: samples in a run of the calibration, for inputs whose first dimension is open.
    smooth: SmoothQuant: how much of the range of activations moves into the weights, 0 to 1; None leaves it out.
    bias_correction: biases make up for what rounding the weights does to the mean of results. In mode static, `search`
        and this are left out where the outputs for the calibration data are closer without.
    keep_io: inputs and outputs of the model stay float32.
    out_of_range: for constants beyond the range of float16: "clamp" takes its largest value, "float" keeps nodes float.
    threads: LOWBIT_THREADS if None, else one for each processor.
    """

    mode: str
    include_nodes: Sequence[str] = ()
    exclude_nodes: Sequence[str] = ()
    include_operators: Sequence[str] = ()
    exclude_operators: Sequence[str] = ()
    bits: int | Mapping[str, int] = _only(4, "weight-only")
    block_size: int = _only(32, "weight-only", choices=(16, 32, 64, 128, 256))
    symmetric: bool = _only(True, "weight-only")
    method: str = _only("search", "weight-only", choices=("search", "round", "hqq"))
    accuracy_level: int = _only(4, "weight-only", choices=(0, 4))
    standard: bool = _only(False, "weight-only")
    importances: Mapping[str, npt.NDArray[np.float32]] | None = _only(None, "weight-only")
    search: bool = _only(True, "dynamic", "static")
    fused: bool = _only(False, "dynamic")
    format: str = _only("QDQ", "static", choices=("QDQ", "QOperator"))
    activations: str = _only("uint8", "static", choices=("uint8", "int8", "uint16", "int16"))
    symmetric_activations: bool = _only(False, "static")
    per_channel: bool = _only(True, "static")
    calibration_method: str = _only("minmax", "static", choices=METHODS)
    percentile: float = _only(99.999, "static")
    batch_size: int = _only(1, "static", "weight-only")
    smooth: float | None = _only(None, "static")
    bias_correction: bool = _only(True, "static")
    keep_io: bool = _only(True, "float16", "bfloat16")
    out_of_range: str = _only("clamp", "float16", "bfloat16", choices=("clamp", "float"))
    threads: int | None = None

    def __post_init__(self) -> None:
        """Raises InputError for values that do not exist, and for options of other modes."""
        _check_choice("mode", self.mode, MODES)
        for option in fields(self):
            value, modes = getattr(self, option.name), option.metadata.get("modes", MODES)
            if isinstance(option.default, bool):
                value = arguments.flag(option.name, value)
            if self.mode not in modes and value != option.default:
                raise InputError(f"{option.name} is an option of mode {' and '.join(modes)}, not of {self.mode}")
            if choices := option.metadata.get("choices"):
                _check_choice(option.name, value, choices)
            self._set(option.name, value)
        for name in _SELECTIONS:
            self._set(name, tuple(arguments.text(name, part) for part in arguments.items(name, getattr(self, name))))
        self._set("percentile", arguments.number("percentile", self.percentile, 50, 100))
        self._set("batch_size", arguments.integer("batch_size", self.batch_size, 1))
        if self.smooth is not None:
            self._set("smooth", arguments.number("smooth", self.smooth, 0, 1))
        if self.format == "QOperator" and self.activations.endswith("16"):
            raise InputError(f"format QOperator has no operators for {self.activations}: use format QDQ")
        self._set("threads", num_threads(self.threads))
        patterns = self.bits if isinstance(self.bits, Mapping) else {"*": self.bits}
        for pattern, bits in patterns.items():
            arguments.integer("bits", bits, 1, 8)
            arguments.text("bits", pattern)
        if self.method == "hqq" and self.symmetric:
            raise InputError("method hqq fits zero points: it needs symmetric=False")
        if self.importances is not None:
            self._set("importances", self._checked_importances())

    def _checked_importances(self) -> Mapping[str, npt.NDArray[np.float32]]:
        if self.method != "search":
            raise InputError(f"importances are for method search, not for {self.method}")
        given = arguments.mapping("importances", self.importances)
        arrays = {name: arguments.floats(f"importances of {name}", array) for name, array in given.items()}
        return {name: np.require(array, np.float32, ["C", "A"]) for name, array in arrays.items()}

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def selects(self, node: Node) -> str | None:
        """Why a node stays float although the mode quantizes its operator, or None."""
        if node.operator in self.exclude_operators:
            return f"operator {node.operator} is excluded"
        if self.include_operators and node.operator not in self.include_operators:
            return f"operator {node.operator} is not included"
        if any(fnmatchcase(node.label, pattern) for pattern in self.exclude_nodes):
            return "node is excluded"
        if self.include_nodes and not any(fnmatchcase(node.label, pattern) for pattern in self.include_nodes):
            return "node is not included"
        return None

    def bits_of(self, node: Node) -> int:
        """The bits of a node's weight."""
        if not isinstance(self.bits, Mapping):
            return self.bits
        return next((bits for pattern, bits in self.bits.items() if fnmatchcase(node.label, pattern)), 4)

    def check(self, model: Model) -> None:
        """Raises InputError if a pattern or an operator matches no node of the model."""
        nodes = [node for graph in model.graph.graphs() for node in graph.nodes]
        labels, operators = {node.label for node in nodes}, {node.operator for node in nodes}
        bits = self.bits if isinstance(self.bits, Mapping) else ()
        for name, patterns, known in (
            ("include_nodes", self.include_nodes, labels),
            ("exclude_nodes", self.exclude_nodes, labels),
            ("bits", bits, labels),
            ("importances", self.importances or (), labels),
            ("include_operators", self.include_operators, operators),
            ("exclude_operators", self.exclude_operators, operators),
        ):
            for pattern in patterns:
                is_pattern = known is labels and name != "importances"
                if not any(fnmatchcase(each, pattern) if is_pattern else each == pattern for each in known):
                    near = did_you_mean(pattern, known)
                    raise InputError(f"{name}: no node of the model matches {quoted(pattern)}{near}")


def _check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    if not isinstance(value, (str, int, np.integer)) or value not in choices:
        raise arguments.wrong(name, f"one of {', '.join(map(str, choices))}", value)
