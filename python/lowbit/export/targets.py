"""What execution providers other than the CPU's document: settings for an export, and a static check of its graph.

Nothing is executed here. The check finds nodes for which a provider has no kernel, and shapes that it refuses; it does
not know a device's limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lowbit.base import arguments
from lowbit.base.errors import InputError
from lowbit.base.quoting import listed, quoted
from lowbit.base.suggest import did_you_mean
from lowbit.onnx.graph import Model, Node, Value
from lowbit.onnx.tensor import Tensor

_Rule = Callable[[Node, Mapping[str, Any]], str | None]


@dataclass(frozen=True)
class Finding:
    """A fact about nodes, inputs or outputs that a provider does not run. nodes: their labels."""

    what: str
    nodes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.what}: {listed(self.nodes)}"


@dataclass(frozen=True)
class Target:
    """An execution provider.

    source: what the check follows. provider: its name and options in genai_config.json, and for a session of ONNX
    Runtime. choices: option of `lowbit.export_onnx` -> the values that the provider takes; the first is the default.
    format: the default; None: that of `lowbit.export_onnx`. is_static: it needs all shapes. lacks: operators without a
    kernel, and what that means.
    rules: on single nodes, given the dtypes of initializers and inputs by name; each returns what is wrong.
    """

    name: str
    source: str
    provider: Mapping[str, Mapping[str, str]]
    choices: Mapping[str, tuple[Any, ...]]
    format: str | None = None
    is_static: bool = False
    lacks: Mapping[str, str] = field(default_factory=dict)
    rules: tuple[_Rule, ...] = ()

    @property
    def note(self) -> str:
        """A sentence for a report."""
        return f"target {self.name}: checked against {self.source}; not executed here"

    def check(self, model: Model) -> list[Finding]:
        """What the provider does not run. Each finding is about nodes with one fault."""
        found: dict[str, list[str]] = {}
        types: dict[str, Any] = {name: tensor.dtype for name, tensor in model.graph.tensors.items()}
        types |= {value.name: value.dtype for value in model.inputs}
        for node in model.nodes:
            for what in self._faults(node, types):
                found.setdefault(what, []).append(node.label)
        findings = [Finding(what, tuple(nodes)) for what, nodes in found.items()]
        open_values = [value.name for value in (*model.inputs, *model.outputs) if not _is_static(value)]
        if self.is_static and open_values:
            findings.append(Finding("has open dimensions, and the provider refuses them", tuple(open_values)))
        return findings

    def _faults(self, node: Node, types: Mapping[str, Any]) -> Iterator[str]:
        if node.operator in self.lacks:
            yield f"{node.operator} has no kernel ({self.lacks[node.operator]})"
        for rule in self.rules:
            if (what := rule(node, types)) is not None:
                yield f"{node.operator} {what}"


def _is_static(value: Value) -> bool:
    return value.shape is not None and all(isinstance(size, int) for size in value.shape)


def with_static_shapes(model: Model, tokens: int, past: int) -> Model:
    """The model with one text of `tokens` tokens after `past` others as the only shapes of inputs and outputs.

    Shapes of inputs that nodes ask for become initializers.

    Raises InputError for a model with other open dimensions than those of `lowbit.export_onnx`.
    """
    sizes = {
        "batch_size": 1,
        "sequence_length": arguments.integer("tokens", tokens, 1),
        "past_sequence_length": arguments.integer("past", past, 0),
        "total_sequence_length": tokens + past,
    }

    def fixed(value: Value) -> Value:
        if value.shape is None or value.dtype is None:
            raise InputError(f"{quoted(value.name)} has no shape", tensor=value.name)
        if unknown := [size for size in value.shape if size is None or (isinstance(size, str) and size not in sizes)]:
            raise InputError(
                f"{quoted(value.name)} has the open dimension {quoted(unknown[0])}",
                tensor=value.name,
                expected=f"one of {', '.join(sizes)}",
            )
        shape = [sizes[size] if isinstance(size, str) else size for size in value.shape]
        return Value.of(value.name, value.dtype, shape)

    graph = model.graph
    inputs, outputs = (tuple(map(fixed, values)) for values in (graph.inputs, graph.outputs))
    known = {value.name: np.array(value.shape, np.int64) for value in inputs}
    nodes, tensors = [], dict(graph.tensors)
    for node in graph.nodes:
        shape = known.get(node.inputs[0]) if node.operator == "Shape" else None
        if shape is None:
            nodes.append(node)
        else:
            name = node.outputs[0]
            tensors[name] = Tensor.of(name, shape[node.get("start", 0) : node.get("end")])
    return model.with_graph(
        replace(graph, nodes=tuple(nodes), tensors=tensors, inputs=inputs, outputs=outputs, values=())
    )


def find_target(name: str) -> Target:
    """The target with a name. Raises InputError."""
    if arguments.text("provider", name) not in TARGETS:
        near = did_you_mean(name, [*TARGETS])
        raise InputError(
            f"unknown target {quoted(name)}{near}",
            expected=None if near else f"one of {', '.join(TARGETS)}",
            found=name,
        )
    return TARGETS[name]


# --- rules


def _half_caches(node: Node, types: Mapping[str, Any]) -> str | None:
    """The kernel of CUDA has float16 and bfloat16 only."""
    if node.operator != _ATTENTION or types.get(node.inputs[3]) != np.float32:
        return None
    return "has no kernel for float32: use float16 activations"


def _no_norms(node: Node, types: Mapping[str, Any]) -> str | None:
    """GroupQueryAttention's inputs 12 and 13 are the norms of queries and keys."""
    if node.operator == _ATTENTION and any(node.inputs[12:14]):
        return "has no kernel with norms of queries and keys"
    return None


def _bits(bits: tuple[int, ...], sizes: tuple[int, ...] = ()) -> _Rule:
    def rule(node: Node, types: Mapping[str, Any]) -> str | None:
        if node.operator != _PRODUCT:
            return None
        if (found := node.get("bits", 4)) not in bits:
            return f"has no kernel for {found} bits, only for {' and '.join(map(str, bits))}"
        if sizes and (found := node.get("block_size")) not in sizes:
            return f"has no kernel for blocks of {found}, only for {', '.join(map(str, sizes))}"
        return None

    return rule


def _uint8_zero_points(node: Node, types: Mapping[str, Any]) -> str | None:
    is_float = len(node.inputs) > 3 and node.inputs[3] and types.get(node.inputs[3]) not in (None, np.uint8)
    return "has no kernel for float zero points" if node.operator == _PRODUCT and is_float else None


def _no_softcap(node: Node, types: Mapping[str, Any]) -> str | None:
    return "is refused with softcap" if node.operator == _ATTENTION and node.get("softcap", 0.0) else None


def _no_two_bits(node: Node, types: Mapping[str, Any]) -> str | None:
    dtype = types.get(node.inputs[0]) if node.inputs else None
    is_two = str(dtype) in ("int2", "uint2")
    return f"is refused with {dtype}" if node.op_type == "DequantizeLinear" and is_two else None


def _scales_in_rows(node: Node, types: Mapping[str, Any]) -> str | None:
    return (
        "with blocks is not documented: use a scale for each row"
        if node.get("block_size") and node.op_type == "DequantizeLinear"
        else None
    )


_ATTENTION, _PRODUCT = "com.microsoft.GroupQueryAttention", "com.microsoft.MatMulNBits"
_LAYOUTS, _FLOATS = ("genai", "standard"), ("float32", "float16")
_CUDA_BLOCKS = (32, 16, 64, 128)
_ON_CPU = "its nodes run on the CPU, with copies"
_FOLDED = "it must be folded before"
_REFUSED = "the graph is cut here"

TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        # docs/OperatorKernels.md of ONNX Runtime: all operators of both layouts have kernels, GroupQueryAttention for
        # float16 and bfloat16.
        Target(
            "cuda",
            "the table of CUDA kernels of ONNX Runtime",
            {"cuda": {"enable_cuda_graph": "0"}},
            {"layout": _LAYOUTS, "activations": ("float16",), "block_size": _CUDA_BLOCKS},
            rules=(_half_caches, _bits((2, 4, 8), _CUDA_BLOCKS)),
        ),
        # webgpu_execution_provider.cc and webgpu_contrib_kernels.cc of ONNX Runtime: kernels are for float32, float16,
        # int32 and uint32; MatMulNBits has 4 and 8 bits.
        Target(
            "webgpu",
            "the kernels that ONNX Runtime's WebGPU provider registers",
            {"webgpu": {}},
            {"layout": _LAYOUTS, "activations": ("float16", "float32")},
            lacks=dict.fromkeys(("Max", "RMSNormalization", "Range", "Round", "Size"), _ON_CPU),
            rules=(_bits((4, 8)), _uint8_zero_points, _no_norms),
        ),
        # Seen with OpenVINO 2026.4.1: see docs/onnx.md.
        Target(
            "openvino",
            "what OpenVINO 2026.4 was seen to refuse",
            {"OpenVINO": {"device_type": "CPU"}},
            {"layout": ("standard", "genai"), "activations": _FLOATS},
            lacks={"TensorScatter": _REFUSED},
            rules=(_no_softcap, _no_two_bits),
        ),
        # op_builder_factory.cc and qnn_model.cc of the QNN provider: no open dimension; these operators have no
        # builder; MatMulNBits only on the GPU. The table of QuantizeLinear has scales for tensors and channels.
        Target(
            "qnn",
            "the operators that ONNX Runtime's QNN provider builds",
            {"QNN": {"backend_path": "QnnHtp.dll", "htp_performance_mode": "burst"}},
            {"layout": ("standard",), "activations": _FLOATS, "opset": (21, 17, 18, 19, 20, 22)},
            format="f32",
            is_static=True,
            lacks={
                **dict.fromkeys(("Range", "Shape", "Size"), _FOLDED),
                **dict.fromkeys(
                    ("Attention", "RotaryEmbedding", _ATTENTION, _PRODUCT, "com.microsoft.GatherBlockQuantized",
                     "com.microsoft.RotaryEmbedding", "com.microsoft.SkipSimplifiedLayerNormalization"), _REFUSED),
            },
            rules=(_scales_in_rows,),
        ),
    )
}  # fmt: skip
