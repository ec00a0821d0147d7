"""GraphBuilder: the nodes and initializers of a new graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit.onnx.block_matrix import Part
from lowbit.onnx.dtypes import element_type
from lowbit.onnx.graph import Graph, Model, Node, Value
from lowbit.onnx.tensor import Tensor

#: The first IR version that has each opset.
_IR_VERSIONS = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13}
OPSETS = tuple(_IR_VERSIONS)
#: The first opset in which axes of reductions are inputs; ReduceSum has them in all.
_AXES_ARE_INPUTS = 18


class GraphBuilder:
    """Collects nodes and initializers. A node's first output has its name, so names of nodes are names of values.

    opset: of ai.onnx, one of OPSETS. dtype: of the values between nodes, float32 or float16.
    """

    def __init__(self, opset: int, dtype: npt.DTypeLike) -> None:
        self.opset = opset
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.nodes: list[Node] = []
        self.tensors: dict[str, Tensor] = {}
        self._constants: dict[tuple[Any, ...], str] = {}

    def node(
        self,
        op_type: str,
        inputs: Sequence[str],
        name: str,
        *,
        more: Sequence[str] = (),
        domain: str = "",
        **values: Any,
    ) -> str:
        """Adds a node and returns its first output, which has its name. more: names of further outputs."""
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        self.nodes.append(Node.of(op_type, inputs, [name, *more], name=name, domain=domain, **values))
        return name

    def tensor(self, tensor: Tensor) -> str:
        """Adds an initializer, once for a name. Returns the name."""
        self.tensors.setdefault(tensor.name, tensor)
        return tensor.name

    def add(self, part: Part) -> None:
        """Adds nodes and initializers that were made elsewhere."""
        self.nodes += part.nodes
        for tensor in part.tensors:
            self.tensor(tensor)

    def integers(self, *values: int) -> str:
        """A list of int64: shapes, axes, starts."""
        return self._constant(np.array(values, np.int64), "_".join(map(str, values)))

    def integer(self, value: int) -> str:
        """One int64 without an axis."""
        return self._constant(np.array(value, np.int64), str(value))

    def number(self, value: float, dtype: npt.DTypeLike | None = None) -> str:
        """One float without an axis, of the graph's dtype or another one."""
        return self._constant(np.array(value, dtype or self.dtype), f"{value:g}")

    def _constant(self, array: npt.NDArray[Any], text: str) -> str:
        key = (array.dtype, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"{array.dtype}_{'list' if array.ndim else 'value'}_{text}"
            while name in self.tensors:  # two floats that are written alike
                name += "_"
            self._constants[key] = self.tensor(Tensor.of(name, array))
        return self._constants[key]

    def reduced(self, op_type: str, value: str, name: str) -> str:
        """The result of ReduceMax, ReduceMean, ... along the last axis, which stays."""
        if self.opset < _AXES_ARE_INPUTS:
            return self.node(op_type, [value], name, axes=[-1], keepdims=1)
        return self.node(op_type, [value, self.integers(-1)], name, keepdims=1)

    def capped(self, value: str, cap: float, name: str) -> str:
        """cap * tanh(value / cap)."""
        ratio = self.node("Mul", [value, self.number(1 / cap)], f"{name}/ratio")
        bounded = self.node("Tanh", [ratio], f"{name}/tanh")
        return self.node("Mul", [bounded, self.number(cap)], f"{name}/capped")

    def cast(self, value: str, dtype: npt.DTypeLike, name: str) -> str:
        """The value in another dtype."""
        return self.node("Cast", [value], name, to=element_type(dtype).number)

    def model(self, inputs: Sequence[Value], outputs: Sequence[Value], producer: str) -> Model:
        """The model of all nodes. It imports the domains that they use."""
        domains = {node.domain for node in self.nodes}
        opsets = {"": self.opset} | dict.fromkeys(sorted(domains - {""}), 1)
        graph = Graph("main", tuple(self.nodes), self.tensors, tuple(inputs), tuple(outputs))
        return Model(graph, opsets, _IR_VERSIONS[self.opset], producer=producer)


def renamed(tensor: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
    """The same bytes under another name and shape: files hold them once."""
    return replace(tensor, name=name, shape=shape)
