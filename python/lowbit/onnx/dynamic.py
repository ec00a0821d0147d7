"""Mode "dynamic": int8 weights, and activations that are rounded to 8 bits while the model runs.

    MatMul, Gemm    DynamicQuantizeLinear, MatMulInteger, Cast, Mul by the scales, Add of the bias
                    or com.microsoft.DynamicQuantizeMatMul
    Conv            DynamicQuantizeLinear, ConvInteger, Cast, Mul by the scales, Add of the bias
    LSTM            com.microsoft.DynamicQuantizeLSTM
    Gather          Gather of codes, Cast, Mul by a Gather of scales

Weights are symmetric, with one scale for each output channel, or for each row of an embedding. MatMulInteger and
ConvInteger know no scales, so these are multiplied to their sums, and a channel's costs no more than a tensor's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lowbit.base.errors import UnsupportedError
from lowbit.onnx.channels import LARGEST, ChannelScales, quantize_channels
from lowbit.onnx.dtypes import Bytes, pack
from lowbit.onnx.graph import Model, Node
from lowbit.onnx.opsets import raised
from lowbit.onnx.options import OnnxOptions
from lowbit.onnx.report import NodeReport
from lowbit.onnx.rewriting import Scope, rewrite
from lowbit.onnx.tensor import Tensor

#: DynamicQuantizeLinear exists from this opset on.
_OPSET = 11
_FLOAT = 1  # TensorProto.FLOAT
#: Above so many products of a code and an 8-bit activation, their sum may overflow int32.
_MOST_PRODUCTS = (2**31 - 1) // (255 * LARGEST)
#: Operators with weights that have no kernel for 8-bit ones in ONNX Runtime.
_NO_KERNEL = ("ConvTranspose", "GRU", "RNN")
_MICROSOFT = "com.microsoft"
#: How many inputs the operators have at least, and the types of the attributes that are read here.
_INPUTS = {"MatMul": 2, "Gemm": 2, "Conv": 2, "LSTM": 3, "Gather": 2}
_ATTRIBUTES = {"alpha": "FLOAT", "beta": "FLOAT", "axis": "INT", "layout": "INT", "transA": "INT", "transB": "INT"}


def dynamic(model: Model, options: OnnxOptions) -> tuple[Model, list[NodeReport]]:
    """The model with int8 weights and dynamically quantized activations. options: `search`, `fused`."""
    needed = ""
    source = model
    try:
        model = raised(model, _OPSET)
    except UnsupportedError as error:
        needed = f"DynamicQuantizeLinear needs opset {_OPSET}: {error}"
    change = _Dynamic(options, needed)
    changed = rewrite(model, change)
    if changed is model:
        return source, change.reports
    if change.uses_microsoft:
        changed = replace(changed, opsets={_MICROSOFT: 1, **changed.opsets})
    return changed, change.reports


class _StaysFloatError(Exception):
    """Why a node stays float."""


class _Weight(NamedTuple):
    """A weight that was added: the initializer of its codes, and its scales with 1 along the axes that share them."""

    codes: str
    perm: tuple[int, ...] | None
    scales: npt.NDArray[np.float32]
    error: float
    node: str


class _Nodes(list[Node]):
    """The nodes that take the place of one."""

    def __init__(self, node: Node, scope: Scope) -> None:
        self._base = node.label
        self.scope = scope

    def add(
        self,
        op_type: str,
        inputs: list[str],
        outputs: int | tuple[str, ...] = 1,
        *,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Adds a node. Returns its first output. outputs: their number, or their names."""
        name = self.scope.fresh(f"{self._base}/{op_type}")
        if isinstance(outputs, int):
            outputs = tuple(self.scope.fresh(f"{name}_output") for _ in range(outputs))
        self.append(Node.of(op_type, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs[0]

    def constant(self, label: str, array: npt.NDArray[Any]) -> str:
        """Adds an initializer. Returns its name."""
        return self.scope.add(Tensor.of(f"{self._base}/{label}", array))


class _Dynamic:
    """The change of each node, and the reports."""

    def __init__(self, options: OnnxOptions, no_integers: str) -> None:
        """no_integers: why there are no operators for integer products, if so."""
        self.reports: list[NodeReport] = []
        self.uses_microsoft = False
        self._options = options
        self._no_integers = no_integers
        self._weights: dict[Any, _Weight] = {}

    def __call__(self, node: Node, scope: Scope) -> list[Node] | None:
        handler = _HANDLERS.get(node.operator)
        if handler is None and node.operator not in _NO_KERNEL:
            return None
        if handler is _Dynamic._gather and not _is_float(node, scope):
            return None  # not an embedding
        self._bytes = (0, 0)
        nodes = _Nodes(node, scope)
        try:
            if reason := self._options.selects(node):
                raise _StaysFloatError(reason)
            _check_form(node)
            if handler is None:
                raise _StaysFloatError("ONNX Runtime has no kernel for it with 8-bit weights")
            action, weight = handler(self, node, nodes)
        except _StaysFloatError as reason:
            self._report(node, "float", reason=str(reason))
            return None
        self._report(node, action, bytes_before=self._bytes[0], bytes_after=self._bytes[1], error=weight.error)
        return nodes

    def _report(self, node: Node, action: str, **fields: Any) -> None:
        self.reports.append(NodeReport(node.label, node.operator, action, **fields))

    def _check_opset(self) -> None:
        if self._no_integers:
            raise _StaysFloatError(self._no_integers)

    # --- weights and activations

    def _constant(self, name: str, scope: Scope) -> Tensor:
        tensor = scope.constant(name)
        if tensor is None:
            raise _StaysFloatError("dynamic weight")
        if tensor.dtype != np.float32:
            raise _StaysFloatError(f"the weight is {tensor.dtype}, the kernels need float32")
        if not tensor.size:
            raise _StaysFloatError("the weight is empty")
        return tensor

    def _weight(
        self, name: str, shared: tuple[int, ...], nodes: _Nodes, perm: tuple[int, ...] | None = None
    ) -> tuple[str, _Weight]:
        """Quantizes a constant once for all nodes. Returns the name of codes, whose axes are permuted, and the weight.

        A matrix that is used as it is and transposed, as an embedding that is the output matrix too, is stored once:
        the other use gets a Transpose, which runtimes fold.
        """
        scope = nodes.scope
        tensor = self._constant(name, scope)
        rank = len(tensor.shape)
        shared = tuple(axis % rank for axis in shared)
        if rank == 2 and (base := scope.transposed(name)) is not None:
            tensor, shared = self._constant(base, scope), tuple(1 - axis for axis in shared)
            perm = (1, 0) if perm is None else None
        key = (tensor.sharing, tensor.shape, shared, perm if rank != 2 else None)
        weight = self._weights.get(key)
        if weight is None:
            found = quantize_channels(tensor.array, shared, self._options.search)
            tensor.release()
            if found is None:
                raise _StaysFloatError("the weight has values that are not finite")
            codes = _codes(f"{tensor.name or name}_int8", tensor, found, perm)
            weight = self._weights[key] = _Weight(scope.add(codes), perm, found.scales, found.error, nodes._base)
            self._bytes = self._bytes[0] + tensor.nbytes, self._bytes[1] + codes.nbytes + found.scales.nbytes
        if weight.perm == perm:
            return weight.codes, weight
        noted = ("dynamic transposed", weight.codes)
        if noted not in scope.notes:
            scope.notes[noted] = nodes.add("Transpose", [weight.codes], perm=[1, 0])
        return scope.notes[noted], weight

    def _activation(self, name: str, nodes: _Nodes, transposed: bool = False) -> tuple[str, str, str]:
        """The names of an activation's codes, scale and zero point; made once for all nodes that read it."""
        notes = nodes.scope.notes
        if ("dynamic", name) not in notes:
            outputs = tuple(nodes.scope.fresh(f"{name}_{part}") for part in ("quantized", "scale", "zero_point"))
            nodes.add("DynamicQuantizeLinear", [name], outputs)
            notes["dynamic", name] = outputs
        codes, scale, zero = notes["dynamic", name]
        if transposed:
            if ("dynamic transposed", codes) not in notes:
                notes["dynamic transposed", codes] = nodes.add("Transpose", [codes], perm=[1, 0])
            codes = notes["dynamic transposed", codes]
        return codes, scale, zero

    def _scaled(self, sums: str, scales: list[str], nodes: _Nodes, bias: str | None, output: str) -> None:
        """The integer sums as floats: times both scales, and plus the bias."""
        factors = nodes.add("Mul", scales)
        product = [nodes.add("Cast", [sums], to=_FLOAT), factors]
        if bias is None:
            nodes.add("Mul", product, (output,))
        else:
            nodes.add("Add", [nodes.add("Mul", product), bias], (output,))

    # --- operators

    def _matmul(self, node: Node, nodes: _Nodes) -> tuple[str, _Weight]:
        return self._product(node, nodes)

    def _gemm(self, node: Node, nodes: _Nodes) -> tuple[str, _Weight]:
        return self._product(node, nodes, node.get("transA", 0), node.get("transB", 0), node.get("alpha", 1.0))

    def _product(
        self, node: Node, nodes: _Nodes, trans_a: int = 0, trans_b: int = 0, alpha: float = 1.0
    ) -> tuple[str, _Weight]:
        scope, (left, right) = nodes.scope, node.inputs[:2]
        if scope.constant(right) is None and scope.constant(left) is not None:
            # ONNX Runtime fuses MatMulInteger of int8 and uint8 to an operator that it has no kernel for.
            raise _StaysFloatError("the weight is the left operand")
        shape = self._constant(right, scope).shape
        if not shape or (len(shape) != 2 and node.operator == "Gemm"):
            raise _StaysFloatError(f"the weight has the shape {list(shape)}")
        summed = 0 if len(shape) == 1 else len(shape) - 1 if trans_b else len(shape) - 2
        self._check_sums(shape[summed])
        fused = self._options.fused and len(shape) == 2
        if not fused:
            self._check_opset()
        shared = tuple(range(len(shape) - 1)) if len(shape) != 2 and not trans_b else (summed,)
        codes, weight = self._weight(right, shared if len(shape) > 1 else (0,), nodes, (1, 0) if trans_b else None)
        scales = weight.scales.reshape(() if len(shape) == 1 else -1) * np.float32(alpha)
        bias = self._bias(node, nodes)
        if fused:
            if trans_a:
                left = nodes.add("Transpose", [left], perm=[1, 0])
            inputs = [left, codes, nodes.constant("scales", scales)]
            output = nodes.scope.fresh(f"{node.outputs[0]}_product") if bias else node.outputs[0]
            nodes.add("DynamicQuantizeMatMul", inputs, (output,), domain=_MICROSOFT)
            if bias:
                nodes.add("Add", [output, bias], node.outputs)
            self.uses_microsoft = True
        else:
            quantized, scale, zero = self._activation(left, nodes, bool(trans_a))
            sums = nodes.add("MatMulInteger", [quantized, codes, zero])
            self._scaled(sums, [scale, nodes.constant("scales", scales)], nodes, bias, node.outputs[0])
        return "int8 per channel", weight

    def _bias(self, node: Node, nodes: _Nodes) -> str | None:
        """Input C of Gemm times beta."""
        beta = node.get("beta", 1.0)
        if len(node.inputs) < 3 or not node.inputs[2] or beta == 0:
            return None
        if beta == 1:
            return node.inputs[2]
        constant = nodes.scope.constant(node.inputs[2])
        if constant is not None and constant.dtype == np.float32:
            return nodes.constant("bias", constant.array * np.float32(beta))
        return nodes.add("Mul", [node.inputs[2], nodes.constant("beta", np.array(beta, np.float32))])

    def _conv(self, node: Node, nodes: _Nodes) -> tuple[str, _Weight]:
        self._check_opset()
        shape = self._constant(node.inputs[1], nodes.scope).shape
        if len(shape) < 3:
            raise _StaysFloatError(f"the weight has the shape {list(shape)}")
        self._check_sums(math.prod(shape[1:]))
        codes, weight = self._weight(node.inputs[1], tuple(range(1, len(shape))), nodes)
        quantized, scale, zero = self._activation(node.inputs[0], nodes)
        sums = nodes.scope.fresh(f"{node.outputs[0]}_sums")
        name = nodes.scope.fresh(f"{nodes._base}/ConvInteger")
        nodes.append(Node("ConvInteger", (quantized, codes, zero), (sums,), node.attributes, name))
        column = (-1, *(1 for _ in shape[2:]))
        bias = None
        if len(node.inputs) > 2 and node.inputs[2]:
            constant = nodes.scope.constant(node.inputs[2])
            if constant is not None and constant.dtype == np.float32 and constant.shape == shape[:1]:
                bias = nodes.constant("bias", constant.array.reshape(column))
            else:
                bias = nodes.add("Reshape", [node.inputs[2], nodes.constant("shape", np.array(column, np.int64))])
        scales = nodes.constant("scales", weight.scales.reshape(column))
        self._scaled(sums, [scale, scales], nodes, bias, node.outputs[0])
        return "int8 per channel", weight

    def _check_sums(self, products: int) -> None:
        if products > _MOST_PRODUCTS:
            raise _StaysFloatError(f"a sum of {products} products can overflow int32: at most {_MOST_PRODUCTS}")

    def _lstm(self, node: Node, nodes: _Nodes) -> tuple[str, _Weight]:
        if node.get("layout", 0):
            raise _StaysFloatError("the kernel has no layout=1")
        added, weight = [], None
        for name in node.inputs[1:3]:
            if len(self._constant(name, nodes.scope).shape) != 3:
                raise _StaysFloatError("the weight has not three dimensions")
        for name in node.inputs[1:3]:
            codes, weight = self._weight(name, (2,), nodes, (0, 2, 1))
            scales = weight.scales[..., 0]
            zeros = nodes.constant("zero_points", np.zeros(scales.shape, np.int8))
            added.append((codes, nodes.constant("scales", scales), zeros))
        assert weight is not None
        (w, w_scales, w_zeros), (r, r_scales, r_zeros) = added
        others = [*node.inputs[3:], *[""] * (8 - len(node.inputs))]
        inputs = (node.inputs[0], w, r, *others, w_scales, w_zeros, r_scales, r_zeros)
        attributes = {name: value for name, value in node.attributes.items() if name != "layout"}
        nodes.append(Node("DynamicQuantizeLSTM", inputs, node.outputs, attributes, node.name, _MICROSOFT))
        self.uses_microsoft = True
        return "int8 per channel", weight

    def _gather(self, node: Node, nodes: _Nodes) -> tuple[str, _Weight]:
        tensor = self._constant(node.inputs[0], nodes.scope)
        rank = len(tensor.shape)
        axis = node.get("axis", 0) % max(rank, 1)
        shared = rank - 1 if axis != rank - 1 else 0
        if rank < 2 or tensor.shape[shared] < 4:
            raise _StaysFloatError("the rows are too short for a scale each")
        codes, weight = self._weight(node.inputs[0], (shared,), nodes)
        indices = node.inputs[1]
        rows = nodes.add("Cast", [nodes.add("Gather", [codes, indices], axis=axis)], to=_FLOAT)
        scales = nodes.add("Gather", [nodes.constant("scales", weight.scales), indices], axis=axis)
        nodes.add("Mul", [rows, scales], node.outputs)
        return "int8 per row", weight


def _codes(name: str, tensor: Tensor, found: ChannelScales, perm: tuple[int, ...] | None) -> Tensor:
    """The codes of a weight with permuted axes; made when they are written."""
    axes = perm or tuple(range(len(tensor.shape)))

    def source() -> Bytes:
        codes = pack(found.codes(tensor.array).transpose(axes))
        tensor.release()
        return codes

    return Tensor(name, np.dtype(np.int8), tuple(tensor.shape[axis] for axis in axes), source)


def _is_float(node: Node, scope: Scope) -> bool:
    tensor = scope.constant(node.inputs[0]) if node.inputs else None
    return tensor is not None and tensor.dtype.kind == "f"


def _check_form(node: Node) -> None:
    """Raises _StaysFloatError for a node without what its operator needs; other programs do not run it either."""
    if not node.outputs or len([*filter(None, node.inputs[: _INPUTS.get(node.operator, 0)])]) < _INPUTS.get(
        node.operator, 0
    ):
        raise _StaysFloatError("it lacks inputs or outputs")
    for name, kind in _ATTRIBUTES.items():
        if name in node.attributes and node.attributes[name].type != kind:
            raise _StaysFloatError(f"attribute {name} is {node.attributes[name].type}, expected {kind}")


_HANDLERS: Mapping[str, Callable[[_Dynamic, Node, _Nodes], tuple[str, _Weight]]] = {
    "MatMul": _Dynamic._matmul,
    "Gemm": _Dynamic._gemm,
    "Conv": _Dynamic._conv,
    "LSTM": _Dynamic._lstm,
    "Gather": _Dynamic._gather,
}
#: The operators that the mode quantizes.
OPERATORS = tuple(_HANDLERS)
