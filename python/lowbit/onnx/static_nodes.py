"""The nodes of mode "static".

    format QDQ        the operators stay, between DequantizeLinear of codes and QuantizeLinear of results
    format QOperator  QLinearConv and the like, codes in and out

Runtimes fuse the former to the latter's kernels. A MatMul or Gemm whose result is read as float is not rounded again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lowbit.base.errors import InputError
from lowbit.onnx.channel_values import Channels, Vector, channels_of, mean_shift, weight_importance
from lowbit.onnx.channels import quantize_channels
from lowbit.onnx.graph import Model, Node
from lowbit.onnx.options import OnnxOptions
from lowbit.onnx.ranges import Affine, affine
from lowbit.onnx.report import FLOAT, NodeReport
from lowbit.onnx.rewriting import Scope, without_unused
from lowbit.onnx.static_plan import BETWEEN, MOVING, PRODUCTS, TABLES, WITHOUT, Plan, Step
from lowbit.onnx.tensor import Tensor

_MICROSOFT = "com.microsoft"
_FLOAT = 1  # TensorProto.FLOAT
#: The least opsets of QuantizeLinear: at all, with a scale for each channel, with 16 bits.
LEAST_OPSET, _OPSET_AXIS, _OPSET_16 = 10, 13, 21
#: ONNX Runtime 1.32 has no kernels for QuantizeLinear and DequantizeLinear of later opsets.
_OPSET_LAST = 27
#: The opset from which Gemm needs no bias.
_OPSET_GEMM = 11
#: The opset from which MaxPool takes 8 bits.
_OPSET_POOL = 12
#: The IR version from which initializers need not be inputs.
_INITIALIZERS_ALONE = 4
_MOST_BIAS = 2**31 - 1


class Calibrated(NamedTuple):
    """What calibration found: scales and zero points, and statistics of the channels of products' inputs."""

    plan: Plan
    scope: Scope
    ranges: dict[str, Affine]
    channels: Channels


class _Weight(NamedTuple):
    """Initializers of a quantized constant. scales: one, or one for each channel along `axis`."""

    codes: str
    scale: str
    zero_point: str
    scales: npt.NDArray[np.float32]
    axis: int | None


class Rewriting:
    """The new nodes. A value has up to three forms: float, codes, and the float values of the codes."""

    def __init__(self, model: Model, options: OnnxOptions, calibrated: Calibrated) -> None:
        self.model, self.options = model, options
        self.plan, self.scope, self._channels = calibrated.plan, calibrated.scope, calibrated.channels
        self.is_qdq = options.format == "QDQ"
        self.nodes: list[Node] = []
        self.reports: list[NodeReport] = []
        self._ranges = dict(calibrated.ranges)
        self._codes: dict[str, str] = {}
        self._parameters: dict[Any, tuple[str, str]] = {}
        self._weights: dict[Any, _Weight] = {}
        self._bytes = (0, 0)
        self._error: float | None = None

    def run(self) -> tuple[Model, list[NodeReport]]:
        """The model with all steps done."""
        dropped = self.plan.followers()
        for node in self.model.graph.nodes:
            step = self.plan.steps.get(id(node))
            if step is not None:
                self._bytes, self._error = (0, 0), None
                action = _emitter(step)(self, step)
                if node.op_type not in MOVING:
                    before, after = self._bytes
                    self.reports.append(NodeReport(node.label, node.operator, action, "", before, after, self._error))
            elif id(node) not in dropped:
                self.nodes.append(node)
                if reason := self.plan.reasons.get(id(node)):
                    self.reports.append(NodeReport(node.label, node.operator, FLOAT, reason))
        for inner in [*self.model.graph.graphs()][1:]:
            for node in inner.nodes:
                if node.operator in (*PRODUCTS, *WITHOUT):
                    reason = "values in a subgraph cannot be observed"
                    self.reports.append(NodeReport(node.label, node.operator, FLOAT, reason))
        graph = replace(
            self.model.graph, nodes=tuple(self.nodes), tensors={**self.model.graph.tensors, **self.scope.added}
        )
        graph = without_unused(graph)
        domains = {node.domain for node in graph.nodes} & {_MICROSOFT}
        opsets = {**dict.fromkeys(domains, 1), **self.model.opsets}
        if self.model.ir_version < _INITIALIZERS_ALONE:  # before, initializers had to be inputs as well
            graph = replace(graph, inputs=tuple(value for value in graph.inputs if value.name not in graph.tensors))
        version = max(self.model.ir_version, _INITIALIZERS_ALONE)
        return replace(self.model, graph=graph, opsets=opsets, ir_version=version), self.reports

    # --- names and constants

    def add(self, op_type: str, inputs: list[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        """Adds a node. Returns its output."""
        name = self.scope.fresh(f"{output}_{op_type}")
        self.nodes.append(Node.of(op_type, inputs, [output], name=name, domain=domain, **attributes))
        return output

    def constant(self, name: str, array: npt.NDArray[Any]) -> str:
        """Adds an initializer. Returns its name."""
        return self.scope.add(Tensor.of(name, array))

    def parameters(self, value: str, to: Affine) -> tuple[str, str]:
        """The names of an activation's scale and zero point; equal ones are stored once."""
        key = (float(to.scale), to.zero_point, to.dtype)
        if key not in self._parameters:
            zero = np.array(to.zero_point, to.dtype)
            self._parameters[key] = (
                self.constant(f"{value}_scale", np.array(to.scale, np.float32)),
                self.constant(f"{value}_zero_point", zero),
            )
        return self._parameters[key]

    def domain(self, dtype: np.dtype[Any], axis: int | None = None) -> str:
        """The domain of QuantizeLinear and DequantizeLinear: com.microsoft's exist for all opsets."""
        needed = _OPSET_16 if dtype.name in ("int16", "uint16") else LEAST_OPSET if axis is None else _OPSET_AXIS
        return "" if needed <= self.model.opset <= _OPSET_LAST else _MICROSOFT

    # --- the forms of a value

    def range(self, name: str) -> Affine:
        """The scale and zero point of a value; those of a constant are made here."""
        if name not in self._ranges:
            tensor = self.scope.constant(name)
            assert tensor is not None, name
            values = tensor.array
            symmetric = self.options.symmetric_activations
            self._ranges[name] = affine(float(values.min()), float(values.max()), self.options.activations, symmetric)
        return self._ranges[name]

    def codes(self, name: str) -> str:
        """The codes of a value."""
        if name not in self._codes:
            to, tensor = self.range(name), self.scope.constant(name)
            if tensor is not None:
                self._codes[name] = self.constant(f"{name}_quantized", to.quantized(tensor.array))
                self._bytes = self._bytes[0] + tensor.nbytes, self._bytes[1] + tensor.size * to.dtype.itemsize
            else:
                self._codes[name] = self.quantize(name, name, to)
        return self._codes[name]

    def quantize(self, value: str, name: str, to: Affine) -> str:
        """Adds QuantizeLinear of the float value `value`, whose codes are called after `name`."""
        output = self.scope.fresh(f"{name}_quantized")
        inputs = [value, *self.parameters(name, to)]
        return self.add("QuantizeLinear", inputs, output, domain=self.domain(to.dtype))

    def decoded(self, name: str) -> str:
        """The float values of the codes: each reader gets its own, the form that runtimes fuse."""
        return self._dequantize(name, self.codes(name), self.scope.fresh(f"{name}_dequantized"))

    def _dequantize(self, name: str, codes: str, output: str) -> str:
        to = self.range(name)
        inputs = [codes, *self.parameters(name, to)]
        return self.add("DequantizeLinear", inputs, output, domain=self.domain(to.dtype))

    def operand(self, name: str) -> list[str]:
        """An input of a quantized operator: the float values of codes, or codes, scale and zero point."""
        if self.is_qdq:
            return [self.decoded(name)]
        codes = self.codes(name)
        return [codes, *self.parameters(name, self.range(name))]

    def result(self, step: Step, codes: str) -> None:
        """Registers the codes of a step's output. Float readers get their values under the output's own name."""
        self._codes[step.output] = codes
        if self.plan.is_read_float(step.output):
            self._dequantize(step.output, codes, step.output)

    # --- weights

    def weight(self, node: Node, axis: int | None, factor: float, least: npt.NDArray[Any] | None) -> _Weight:
        """Quantizes a weight to int8, with a scale for each channel along an axis; None: one scale.

        least: scales that the weight's may not be below.
        """
        name = node.inputs[1]
        tensor = self.scope.constant(name)
        assert tensor is not None
        if not self.options.per_channel:
            axis = None
        key = (tensor.sharing, tensor.shape, axis, factor, None if least is None else least.tobytes())
        if key not in self._weights:
            array = tensor.array.astype(np.float32) * np.float32(factor)
            shared = tuple(each for each in range(array.ndim) if each != axis)
            channels = channels_of(node, self._channels)
            counts = weight_importance(node, array.shape, channels, self.options.bias_correction)
            found = quantize_channels(array, shared, self.options.search, counts)
            if found is None:
                raise InputError(f"weight {name}: values that are not finite", tensor=name)
            scales = found.scales.reshape(-1 if axis is not None else ())
            codes = found.codes(array)
            if least is not None and np.any(least > scales):
                scales = np.maximum(scales, least.max() if axis is None else least).astype(np.float32)
                wide = scales.reshape([-1 if each == axis else 1 for each in range(array.ndim)])
                codes = np.clip(np.rint(array / wide), -127, 127).astype(np.int8)
            self._weights[key] = _Weight(
                self.constant(f"{name}_quantized", codes),
                self.constant(f"{name}_scale", scales),
                self.constant(f"{name}_zero_point", np.zeros(scales.shape, np.int8)),
                scales,
                axis,
            )
            self._bytes = self._bytes[0] + tensor.nbytes, self._bytes[1] + codes.nbytes + scales.nbytes
            self._error = found.error
        return self._weights[key]

    def weight_operand(self, weight: _Weight, name: str) -> list[str]:
        """A weight as an input, as `operand`."""
        inputs = [weight.codes, weight.scale, weight.zero_point]
        if not self.is_qdq:
            return inputs
        output = self.scope.fresh(f"{name}_dequantized")
        domain = self.domain(np.dtype(np.int8), weight.axis)
        return [self.add("DequantizeLinear", inputs, output, domain=domain, axis=weight.axis)]

    def bias(self, name: str, values: npt.NDArray[Any], scales: npt.NDArray[Any]) -> str:
        """Adds a bias of int32: as codes, or as the float values of codes."""
        codes = np.clip(np.rint(values.astype(np.float64) / scales), -_MOST_BIAS, _MOST_BIAS).astype(np.int32)
        added = self.constant(f"{name}_quantized", codes)
        if not self.is_qdq:
            return added
        axis = 0 if scales.ndim else None
        inputs = [added, self.constant(f"{name}_scale", scales.astype(np.float32))]
        output = self.scope.fresh(f"{name}_dequantized")
        domain = self.domain(np.dtype(np.int32), axis)
        if domain:
            inputs.append(self.constant(f"{name}_zero_point", np.zeros(scales.shape, np.int32)))
        return self.add("DequantizeLinear", inputs, output, domain=domain, axis=axis)

    def product(self, step: Step) -> tuple[_Weight | None, str | None]:
        """The weight and the bias of a product: of int32, but a float for MatMul. Factors of Gemm are in them."""
        node = step.node
        tensor = self.scope.constant(node.inputs[1])
        if tensor is None:
            return None, None
        axis, alpha, beta = _channel_axis(node, len(tensor.shape)), 1.0, 1.0
        if node.op_type == "Gemm":
            alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
        values, least = None, None
        input_scale = self.range(node.inputs[0]).scale
        if node.op_type != "MatMul" and len(node.inputs) > 2 and node.inputs[2]:
            bias = self.scope.constant(node.inputs[2])
            assert bias is not None
            values = bias.array.reshape(-1).astype(np.float64) * beta
            least = self._least(node, np.abs(values) / (float(input_scale) * _MOST_BIAS / 2))
        weight = self.weight(node, axis, alpha, least)
        if (shift := self._shift(node, weight, alpha)) is not None:
            values = -shift if values is None else values - shift
        if values is None and node.op_type == "Gemm" and self.model.opset < _OPSET_GEMM:
            values = np.zeros(tensor.shape[0 if node.get("transB", 0) else 1])
        if values is None:
            return weight, None
        if node.op_type == "MatMul":
            return weight, self.constant(f"{node.label}_correction", values.astype(np.float32))
        scales = weight.scales.astype(np.float64) * float(input_scale)
        if node.op_type == "ConvTranspose" and weight.axis is not None:
            scales = np.tile(scales, node.get("group", 1))
        return weight, self.bias(f"{node.label}_bias", values, scales)

    def _shift(self, node: Node, weight: _Weight, factor: float) -> Vector | None:
        """What rounding the weight adds to the mean of each channel, if that is to be corrected."""
        channels = channels_of(node, self._channels)
        if not self.options.bias_correction or channels is None or (means := channels.means) is None:
            return None
        tensor = self.scope.constant(node.inputs[1])
        assert tensor is not None
        wide = weight.scales.reshape([-1 if axis == weight.axis else 1 for axis in range(len(tensor.shape))])
        return mean_shift(node, self.scope.added[weight.codes].array * wide - tensor.array * np.float32(factor), means)

    def _least(self, node: Node, scales: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Scales by channel of the weight: ConvTranspose's weights have the channels of one group."""
        if node.op_type == "ConvTranspose":
            scales = scales.reshape(node.get("group", 1), -1).max(axis=0)
        return scales

    # --- operators

    def emit_product(self, step: Step) -> str:
        """Conv, ConvTranspose, MatMul, Gemm."""
        node = step.node
        left = self.operand(node.inputs[0])
        weight, bias = self.product(step)
        right = self.operand(node.inputs[1]) if weight is None else self.weight_operand(weight, node.inputs[1])
        attributes = {name: each for name, each in node.attributes.items() if name not in ("alpha", "beta")}
        added = [bias] if bias is not None else []
        if self.is_qdq:
            correction = added if node.op_type == "MatMul" else []
            inputs = (*left, *right, *(added if not correction else []))
            self._wrapped(step, replace(node, inputs=inputs, attributes=attributes), correction)
        else:
            self._qoperator_product(step, left, right, added, attributes)
        kind = "per channel" if weight is not None and weight.axis is not None else "per tensor"
        return f"int8 {kind}, {self.options.activations}" if weight is not None else str(self.options.activations)

    def _qoperator_product(
        self, step: Step, left: list[str], right: list[str], bias: list[str], attributes: Mapping[str, Any]
    ) -> None:
        node, name = step.node, self.scope.fresh(f"{step.node.label}_quantized")
        is_corrected = node.op_type == "MatMul" and bool(bias)
        if is_corrected or not step.is_integer:
            output = self.scope.fresh(f"{step.output}_raw") if step.is_integer else node.outputs[0]
            if node.op_type == "Gemm":
                made = Node("QGemm", (*left, *right, *(bias or [""])), (output,), attributes, name, _MICROSOFT)
            else:
                inputs = (left[0], right[0], left[1], right[1], left[2], right[2], *bias)
                made = Node("MatMulIntegerToFloat", inputs, (output,), {}, name, _MICROSOFT)
            self.nodes.append(made)
            if step.is_integer:
                self._clamped(step, self.quantize(output, step.output, self.range(step.output)))
            return
        output = self.scope.fresh(f"{step.output}_quantized")
        to = self.parameters(step.output, self.range(step.output))
        if node.op_type == "Gemm":
            inputs = (*left, *right, *(bias or [""]), *to)
            self.nodes.append(Node("QGemm", inputs, (output,), attributes, name, _MICROSOFT))
        else:
            inputs = (*left, *right, *to, *bias)
            self.nodes.append(Node(f"QLinear{node.op_type}", inputs, (output,), attributes, name))
        self._clamped(step, output)

    def _wrapped(self, step: Step, node: Node, correction: Sequence[str] = ()) -> None:
        """Adds the float operator, a correction of its mean, and QuantizeLinear of the result if that is wanted."""
        output = self.scope.fresh(f"{step.output}_raw") if step.is_integer else node.outputs[0]
        if correction:
            product = self.scope.fresh(f"{step.output}_product")
            self.nodes.append(replace(node, outputs=(product,)))
            self.add("Add", [product, *correction], output)
        else:
            self.nodes.append(replace(node, outputs=(output,)))
        if not step.is_integer:
            return
        self._clamped(step, self.quantize(output, step.output, self.range(step.output)))

    def _clamped(self, step: Step, codes: str) -> None:
        """Registers the result behind the Relu or Clip, which is left out if the codes' range is within its limits."""
        if step.clamp is None or self._is_within(step.clamp, self.range(step.output)):
            self.result(step, codes)
            return
        decoded = self.scope.fresh(f"{step.output}_unclamped")
        self._dequantize(step.output, codes, decoded)
        clamped = self.scope.fresh(f"{step.output}_clamped")
        self.nodes.append(replace(step.clamp, inputs=(decoded, *step.clamp.inputs[1:]), outputs=(clamped,)))
        self.result(step, self.quantize(clamped, step.output, self.range(step.output)))

    def _is_within(self, clamp: Node, to: Affine) -> bool:
        low, high = to.limits
        if clamp.op_type == "Relu":
            return low >= 0
        bounds = [self.scope.constant(name) if name else None for name in (*clamp.inputs[1:3], "", "")[:2]]
        least = clamp.get("min", -np.inf) if bounds[0] is None else float(bounds[0].array)
        most = clamp.get("max", np.inf) if bounds[1] is None else float(bounds[1].array)
        half = float(to.scale) / 2
        return bool(low >= least - half and high <= most + half)

    def emit_between(self, step: Step) -> str:
        """Operators whose result has a range of its own."""
        node = step.node
        names = node.inputs if node.op_type in ("Add", "Mul", "Concat") else node.inputs[:1]
        operands = [part for name in names for part in self.operand(name)]
        if self.is_qdq:
            self._wrapped(step, replace(node, inputs=(*operands, *node.inputs[len(names) :])))
            return str(self.options.activations)
        to = self.parameters(step.output, self.range(step.output))
        inputs = (*to, *operands) if node.op_type == "Concat" else (*operands, *to)
        output = self.scope.fresh(f"{step.output}_quantized")
        name = self.scope.fresh(f"{node.label}_quantized")
        self.nodes.append(Node(f"QLinear{node.op_type}", inputs, (output,), node.attributes, name, _MICROSOFT))
        self._clamped(step, output)
        return str(self.options.activations)

    def emit_moving(self, step: Step) -> str:
        """Operators that keep scale and zero point."""
        node, source = step.node, step.node.inputs[0]
        to = self._ranges[step.output] = self.range(source)
        takes_codes = node.op_type != "MaxPool" or self.model.opset >= _OPSET_POOL
        if not self.is_qdq and takes_codes:
            output = self.scope.fresh(f"{step.output}_quantized")
            self.nodes.append(replace(node, inputs=(self.codes(source), *node.inputs[1:]), outputs=(output,)))
            self.result(step, output)
        else:
            output = self.scope.fresh(f"{step.output}_raw")
            self.nodes.append(replace(node, inputs=(self.decoded(source), *node.inputs[1:]), outputs=(output,)))
            self.result(step, self.quantize(output, step.output, to))
        return ""

    def emit_table(self, step: Step) -> str:
        """Gather of an embedding."""
        node, (table, indices) = step.node, step.node.inputs
        tensor = self.scope.constant(table)
        assert tensor is not None
        found = quantize_channels(tensor.array, (1,), self.options.search)
        if found is None:
            raise InputError(f"weight {table}: values that are not finite", tensor=table)
        base = node.label
        array = found.codes(tensor.array)
        codes = self.constant(f"{table}_quantized", array)
        rows = self.add("Gather", [codes, indices], self.fresh(base, "rows"))
        floats = self.add("Cast", [rows], self.fresh(base, "floats"), to=_FLOAT)
        scale = self.constant(f"{table}_scale", found.scales)
        scales = self.add("Gather", [scale, indices], self.fresh(base, "scales"))
        self.add("Mul", [floats, scales], node.outputs[0])
        self._bytes, self._error = (tensor.nbytes, array.nbytes + found.scales.nbytes), found.error
        return "int8 per row"

    def fresh(self, base: str, part: str) -> str:
        """A name for a value between nodes."""
        return self.scope.fresh(f"{base}_{part}")


def _emitter(step: Step) -> Callable[[Rewriting, Step], str]:
    for operators, emitter in (
        (PRODUCTS, Rewriting.emit_product),
        (BETWEEN, Rewriting.emit_between),
        (MOVING, Rewriting.emit_moving),
        (TABLES, Rewriting.emit_table),
    ):
        if step.node.op_type in operators:
            return emitter
    raise AssertionError(step.node.op_type)


def _channel_axis(node: Node, rank: int) -> int | None:
    """The axis of a weight that has the output channels."""
    if node.op_type == "MatMul":
        return 1 if rank == 2 else None
    if node.op_type == "Gemm":
        return 0 if node.get("transB", 0) else 1
    return int(node.op_type == "ConvTranspose")
