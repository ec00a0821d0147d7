"""A matrix as an operator holds it, in blocks, and the nodes that multiply with it or read its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from lowbit.base import arguments
from lowbit.base.errors import InputError
from lowbit.base.quoting import quoted
from lowbit.onnx.blocks import STANDARD
from lowbit.onnx.dtypes import element_type
from lowbit.onnx.graph import Node
from lowbit.onnx.tensor import Tensor

#: The operators that hold blocks: of com.microsoft, of ai.onnx for products, of ai.onnx for rows of an embedding.
LAYOUTS = ("MatMulNBits", "DequantizeLinear", "Gather")
MICROSOFT = "com.microsoft"
_FLOAT = element_type(np.float32).number


class Part(NamedTuple):
    """Nodes in order, and the initializers that they read. Tensors of one name are the same tensor."""

    nodes: list[Node]
    tensors: list[Tensor]


@dataclass(frozen=True, eq=False)
class BlockMatrix:
    """A matrix of `shape` (outputs, inputs): small integers with a scale for each block of inputs of an output.

    w[n, k] = scales[n, b] * (codes[n, k] - zero_points[n, b]) + offsets[n, b], b = k // block_size

    | layout | codes | zero points | scales, offsets |
    | --- | --- | --- | --- |
    | MatMulNBits | uint8 [outputs, blocks, block_size * bits / 8] | uint8 [outputs, ceil(blocks * bits / 8)] or \
float32 [outputs, blocks] | [outputs, blocks] |
    | DequantizeLinear | integers [inputs, outputs] | of the codes' type [blocks, outputs] | [blocks, outputs] |
    | Gather | integers [outputs, inputs] | of the codes' type [outputs, blocks] | [outputs, blocks] |

    MatMulNBits has codes and uint8 zero points packed from the lowest bits on. Without zero points, they are
    2^(bits - 1) in MatMulNBits, else 0. Integers are int2, int4, int8, uint2, uint4 or uint8. Scales and offsets are
    float32; offsets are None if all are 0. A matrix of floats has no scales, and codes of float32, float16 or bfloat16
    [outputs, inputs] in any layout.
    """

    name: str
    shape: tuple[int, int]
    layout: str
    bits: int
    block_size: int
    codes: Tensor
    scales: Tensor | None = None
    zero_points: Tensor | None = None
    offsets: Tensor | None = None

    @property
    def num_blocks(self) -> int:
        """Blocks of an output."""
        return -(-self.shape[1] // self.block_size)

    @property
    def tensors(self) -> list[Tensor]:
        """All initializers of a product."""
        return [tensor for tensor in (self.codes, self.scales, self.zero_points, self.offsets) if tensor is not None]

    @property
    def nbytes(self) -> int:
        """Bytes of the initializers."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def opsets(self) -> Mapping[str, int]:
        """The opsets that the nodes need at least, by domain."""
        if self.scales is None or self.layout == "Gather":
            return {"": 13}
        return {MICROSOFT: 1, "": 13} if self.layout == "MatMulNBits" else {"": STANDARD[self.bits][0]}

    @property
    def ir_version(self) -> int:
        """The IR version that the tensors need at least."""
        return STANDARD[self.bits][1] if self.layout == "DequantizeLinear" and self.scales is not None else 4

    def product(
        self, x: str, y: str, *, rank: int = 3, bias: str = "", accuracy_level: int = 4, name: str = ""
    ) -> Part:
        """Nodes for y = x @ W^T + bias. x: float32 (..., inputs) with `rank` dimensions. y: float32 (..., outputs).

        bias: the name of a float32 initializer (outputs,). accuracy_level: of MatMulNBits; with 4, ONNX Runtime rounds
        x to 8 bits, with 0 it does not. name: of the main node; others start with it, new values with `y`. Raises
        InputError for layout "Gather".
        """
        if self.layout == "Gather" and self.scales is not None:
            raise InputError(f"matrix {quoted(self.name)}:", expected="a layout for products", found=self.layout)
        rank = arguments.integer("rank", rank, 1)
        part = _Builder(y, name or y)
        add_offsets = self.offsets is not None
        result = f"{y}_product" if add_offsets or (bias and not self._takes_bias) else y
        if self.scales is None:
            weight = part.node("Transpose", [self._floats(part)], f"{y}_transposed", perm=[1, 0])
            part.node("MatMul", [x, weight], result, name=part.name)
        elif self.layout == "MatMulNBits":
            inputs = [x, *(part.tensor(each) for each in (self.codes, self.scales))]
            inputs.append(part.tensor(self.zero_points) if self.zero_points is not None else "")
            inputs += ["", bias]  # no g_idx
            while not inputs[-1]:
                inputs.pop()
            part.node(
                "MatMulNBits", inputs, result, name=part.name, domain=MICROSOFT, K=self.shape[1], N=self.shape[0],
                bits=self.bits, block_size=self.block_size, accuracy_level=accuracy_level,
            )  # fmt: skip
        else:
            inputs = [part.tensor(each) for each in (self.codes, self.scales, self.zero_points) if each is not None]
            weight = part.node("DequantizeLinear", inputs, f"{y}_weight", axis=0, block_size=self.block_size)
            part.node("MatMul", [x, weight], result, name=part.name)
        if add_offsets:
            last = f"{y}_sum" if bias and not self._takes_bias else y
            result = part.node("Add", [result, self._offset_product(part, x, rank)], last)
        if bias and not self._takes_bias:
            part.node("Add", [result, bias], y)
        return part.part

    def gather(self, ids: str, y: str, *, rank: int = 2, name: str = "") -> Part:
        """Nodes that read rows: y = W[ids]. ids: int32 or int64 with `rank` dimensions. y: float32 (*ids, inputs).

        Shares the bytes of all initializers with `product`. Raises InputError for layout "DequantizeLinear", and if
        the block size does not divide the inputs.
        """
        if self.layout == "DequantizeLinear" and self.scales is not None:
            raise InputError(f"matrix {quoted(self.name)}:", expected="a layout with rows", found=self.layout)
        if self.scales is not None and self.shape[1] % self.block_size:
            expected = f"rows of whole blocks of {self.block_size}"
            raise InputError(f"matrix {quoted(self.name)}:", expected=expected, found=f"{self.shape[1]} inputs")
        part = _Builder(y, name or y)
        in_blocks = self.scales is not None and (self.layout == "Gather" or self.offsets is not None)
        result = f"{y}_rows" if in_blocks else y
        if self.scales is None:
            rows = part.node("Gather", [part.tensor(self.codes), ids], y if self._is_float32 else f"{y}_rows", axis=0)
            if not self._is_float32:
                part.node("Cast", [rows], y, to=_FLOAT)
        elif self.layout == "MatMulNBits":
            outputs, blocks, block_bytes = self.codes.shape
            flat = replace(self.codes, name=f"{self.codes.name}_rows", shape=(outputs, blocks * block_bytes))
            inputs = [part.tensor(flat), ids, part.tensor(self.scales)]
            if self.zero_points is not None:
                inputs.append(part.tensor(self.zero_points))
            part.node(
                "GatherBlockQuantized", inputs, result, name=part.name, domain=MICROSOFT, bits=self.bits,
                block_size=self.block_size, gather_axis=0, quantize_axis=1,
            )  # fmt: skip
        else:
            codes = part.node("Gather", [part.tensor(self.codes), ids], f"{y}_codes", name=part.name, axis=0)
            part.node("Cast", [codes], result, to=_FLOAT)
        if in_blocks:
            value = self._in_blocks(part, result, rank + 1)
            steps = (("Sub", self.zero_points), ("Mul", self.scales)) if self.layout == "Gather" else ()
            for op_type, tensor in (*steps, ("Add", self.offsets)):
                if tensor is not None:
                    value = part.node(op_type, [value, self._block_rows(part, tensor, ids)], f"{y}_{op_type.lower()}")
            part.node("Reshape", [value, part.ints([*[0] * rank, self.shape[1]])], y)
        return part.part

    @property
    def _takes_bias(self) -> bool:
        return self.layout == "MatMulNBits" and self.scales is not None

    @property
    def _is_float32(self) -> bool:
        return bool(self.codes.dtype == np.float32)

    def _floats(self, part: _Builder) -> str:
        """The float32 weights of a matrix of floats, [outputs, inputs]. Runtimes fold what is constant."""
        weight = part.tensor(self.codes)
        return weight if self._is_float32 else part.node("Cast", [weight], f"{part.y}_weight", to=_FLOAT)

    def _in_blocks(self, part: _Builder, x: str, rank: int) -> str:
        """(..., inputs) as (..., blocks, block_size)."""
        shape = part.ints([*[0] * (rank - 1), self.num_blocks, self.block_size])
        return part.node("Reshape", [x, shape], f"{part.y}_blocks")

    def _offset_product(self, part: _Builder, x: str, rank: int) -> str:
        """The sum of each block of x times the offsets. Runtimes compute the sums of one x once for all its readers."""
        assert self.offsets is not None
        blocks = self._in_blocks(part, x, rank)
        sums = part.node("ReduceSum", [blocks, part.ints([-1])], f"{blocks}_sums", keepdims=0)
        offsets = part.tensor(self.offsets)
        if self.layout == "MatMulNBits":
            offsets = part.node("Transpose", [offsets], f"{part.y}_offsets", perm=[1, 0])
        return part.node("MatMul", [sums, offsets], f"{part.y}_offset_product")

    def _block_rows(self, part: _Builder, tensor: Tensor, ids: str) -> str:
        """Rows of a tensor [outputs, blocks] as (*ids, blocks, 1)."""
        rows = part.node("Gather", [part.tensor(tensor), ids], f"{part.y}_{tensor.name}", axis=0)
        if tensor.dtype != np.float32:
            rows = part.node("Cast", [rows], f"{rows}_float", to=_FLOAT)
        return part.node("Unsqueeze", [rows, part.ints([-1])], f"{rows}_1")


class _Builder:
    """Collects nodes and tensors."""

    def __init__(self, y: str, name: str) -> None:
        self.y = y
        self.name = name
        self.part = Part([], [])

    def tensor(self, tensor: Tensor) -> str:
        if all(tensor.name != other.name for other in self.part.tensors):
            self.part.tensors.append(tensor)
        return tensor.name

    def ints(self, values: list[int]) -> str:
        """A constant, named after its values, so that equal ones are one."""
        return self.tensor(Tensor.of("_".join(map(str, ["ints", *values])), np.array(values, np.int64)))

    def node(
        self, op_type: str, inputs: list[str], output: str, *, name: str = "", domain: str = "", **values: object
    ) -> str:
        name = name or f"{self.name}/{op_type}_{len(self.part.nodes)}"
        self.part.nodes.append(Node.of(op_type, inputs, [output], name=name, domain=domain, **values))
        return output
