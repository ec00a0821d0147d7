"""`block_matrix`: the weight of a MatMulNBits, GatherBlockQuantized or DequantizeLinear node."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np

from lowbit.base import arguments
from lowbit.base.errors import InputError, UnsupportedError
from lowbit.base.quoting import shown
from lowbit.onnx.block_matrix import BlockMatrix
from lowbit.onnx.blocks import BITS
from lowbit.onnx.graph import Node
from lowbit.onnx.tensor import Tensor

_INTEGERS = {
    np.dtype(kind): bits
    for kinds, bits in (
        ((np.int8, np.uint8), 8),
        ((ml_dtypes.int4, ml_dtypes.uint4), 4),
        ((ml_dtypes.int2, ml_dtypes.uint2), 2),
    )
    for kind in kinds
}


def block_matrix(node: Node, tensors: Mapping[str, Tensor], *, outputs_axis: int = 1) -> BlockMatrix:
    """The constant weight of a node (outputs, inputs).

    node: com.microsoft.MatMulNBits or GatherBlockQuantized, or DequantizeLinear of a matrix in blocks, with a scale for
    each channel, or with one scale. tensors: initializers by name. outputs_axis: of the weight of a DequantizeLinear
    with one scale; otherwise it follows from the axis of the scales.

    Scales of float16 count as they are: products with them are not rounded to float16.

    Raises InputError for other nodes and for weights that are no initializers, UnsupportedError for weights that are no
    integers of 2, 4 or 8 bits or have more dimensions, and for scales of other types than float32 and float16.
    """
    if not isinstance(node, Node):
        raise arguments.wrong("node", "a Node", node)
    reader = _Reader(node, tensors)
    if node.operator == "com.microsoft.MatMulNBits":
        return reader.product()
    if node.operator == "com.microsoft.GatherBlockQuantized":
        return reader.gather()
    if node.operator in ("DequantizeLinear", "com.microsoft.DequantizeLinear"):
        return reader.dequantized(outputs_axis)
    expected = "MatMulNBits, GatherBlockQuantized or DequantizeLinear"
    raise InputError(f"node {shown(node.label)}:", expected=expected, found=node.operator)


class _Reader:
    def __init__(self, node: Node, tensors: Mapping[str, Tensor]) -> None:
        self._node = node
        self._tensors = tensors

    def product(self) -> BlockMatrix:
        """MatMulNBits."""
        outputs, inputs = self._int("N"), self._int("K")
        bits, size, blocks = self._sizes(inputs)
        if len(self._node.inputs) > 4 and self._node.inputs[4]:
            raise UnsupportedError(f"node {shown(self._node.label)}: g_idx reorders its inputs")
        codes = self._tensor(1, "codes", outputs * blocks * (size * bits // 8), (np.uint8,))
        zeros = None
        if self._has(3):
            zeros = self._zero_points(3, outputs, blocks, bits)
        return self._matrix((outputs, inputs), bits, size, codes, self._scales(2, outputs * blocks), zeros)

    def gather(self) -> BlockMatrix:
        """GatherBlockQuantized of bytes or of 4-bit integers, of rows in blocks."""
        data = self._tensor(0, "codes")
        bits = self._int("bits", 4)
        kind = data.dtype
        rank = len(data.shape)
        if rank != 2 or self._int("gather_axis", 0) not in (0, -2) or self._int("quantize_axis", 1) not in (1, -1):
            found = f"shape {list(data.shape)}"
            self._fail("rows of a matrix, with blocks along them", found)
        outputs = data.shape[0]
        if kind != np.uint8:
            return self._rows_in_blocks(data, outputs)
        if bits not in BITS:
            self._fail("2, 4 or 8 bits", bits)
        inputs = data.shape[1] * 8 // bits
        bits, size, blocks = self._sizes(inputs)
        if inputs % size:
            self._fail(f"rows of whole blocks of {size}", f"{inputs} inputs")
        zeros = self._zero_points(3, outputs, blocks, bits) if self._has(3) else None
        return self._matrix((outputs, inputs), bits, size, data, self._scales(2, outputs * blocks), zeros)

    def _rows_in_blocks(self, data: Tensor, outputs: int) -> BlockMatrix:
        inputs = data.shape[1]
        bits = self._bits(data)
        _, size, blocks = self._sizes(inputs, bits)
        zeros = self._tensor(3, "zero points", outputs * blocks, (data.dtype,)) if self._has(3) else None
        scales = self._scales(2, outputs * blocks)
        return BlockMatrix(data.name, (outputs, inputs), "Gather", bits, size, data, scales, zeros)

    def dequantized(self, outputs_axis: int) -> BlockMatrix:
        """DequantizeLinear."""
        data = self._tensor(0, "codes")
        bits = self._bits(data)
        if len(data.shape) != 2:
            self._fail("a matrix", f"shape {list(data.shape)}")
        scales = self._scales(1)
        size = self._int("block_size", 0)
        axis = self._int("axis", 1)
        if axis not in (0, 1, -1, -2):
            self._fail("an axis of a matrix", axis)
        if outputs_axis not in (0, 1):
            raise InputError("outputs_axis:", expected="0 or 1", found=outputs_axis)
        axis %= 2
        channels = -1 if scales.size == 1 and len(scales.shape) < 2 else axis
        inputs_axis = axis if size else 1 - (outputs_axis if channels < 0 else channels)
        inputs, outputs = data.shape[inputs_axis], data.shape[1 - inputs_axis]
        if size < 0 or (not size and len(scales.shape) > 1):
            self._fail("scales for blocks, channels or all", f"block_size {size}, scales {list(scales.shape)}")
        size = min(size, inputs) if size else inputs
        if not data.size:
            self._fail("weights", f"shape {list(data.shape)}")
        blocks = -(-inputs // size)
        layout = "DequantizeLinear" if inputs_axis == 0 else "Gather"
        shape = (blocks, outputs) if inputs_axis == 0 else (outputs, blocks)
        zeros = self._tensor(2, "zero points", kinds=(data.dtype,)) if self._has(2) else None
        if channels < 0:
            scales = _repeated(scales, shape)
            zeros = None if zeros is None else _repeated(zeros, shape)
        for tensor in (scales, zeros):
            if tensor is not None and tensor.size != blocks * outputs:
                self._fail(f"{blocks * outputs} scales and zero points", tensor.size)
        return BlockMatrix(
            data.name,
            (outputs, inputs),
            layout,
            bits,
            size,
            data,
            _shaped(scales, shape),
            zeros and _shaped(zeros, shape),
        )

    # --- parts of a node

    def _fail(self, expected: object, found: object) -> None:
        raise InputError(f"node {shown(self._node.label)}:", expected=expected, found=found)

    def _has(self, index: int) -> bool:
        return len(self._node.inputs) > index and bool(self._node.inputs[index])

    def _int(self, name: str, default: int | None = None) -> int:
        value = self._node.get(name, default)
        if not isinstance(value, int) or not -(2**40) < value < 2**40:
            self._fail(f"an integer {name}", value)
        return int(value)

    def _sizes(self, inputs: int, default: int = 4) -> tuple[int, int, int]:
        """Bits, block size and number of blocks."""
        bits, size = self._int("bits", default), self._int("block_size", 128)
        if bits not in BITS or size < 16 or size & (size - 1) or inputs < 1:
            found = f"{bits} bits, block_size {size}, {inputs} inputs"
            self._fail("2, 4 or 8 bits and a block size of 16, 32, 64, ...", found)
        return bits, size, -(-inputs // size)

    def _tensor(
        self, index: int, what: str, size: int | None = None, kinds: tuple[object, ...] | None = None
    ) -> Tensor:
        name = self._node.inputs[index] if self._has(index) else ""
        tensor = self._tensors.get(name)
        if tensor is None:
            self._fail(f"an initializer with the {what}", shown(name) or "none")
        assert tensor is not None
        if kinds is not None and tensor.dtype not in kinds:
            found = tensor.dtype
            raise UnsupportedError(f"node {shown(self._node.label)}: {what} of type {found}", tensor=name)
        if size is not None and tensor.size != size:
            self._fail(f"{size} {what}", tensor.size)
        return tensor

    def _scales(self, index: int, size: int | None = None) -> Tensor:
        return self._tensor(index, "scales", size, (np.float32, np.float16))

    def _zero_points(self, index: int, outputs: int, blocks: int, bits: int) -> Tensor:
        zeros = self._tensor(index, "zero points", None, (np.uint8, np.float32, np.float16))
        size = -(-blocks * bits // 8) if zeros.dtype == np.uint8 else blocks
        return self._tensor(index, "zero points", outputs * size)

    def _bits(self, data: Tensor) -> int:
        if data.dtype not in _INTEGERS:
            text = f"node {shown(self._node.label)}: codes of type {data.dtype}"
            raise UnsupportedError(text, tensor=data.name, expected="integers of 2, 4 or 8 bits")
        return _INTEGERS[data.dtype]

    def _matrix(
        self, shape: tuple[int, int], bits: int, size: int, codes: Tensor, scales: Tensor, zeros: Tensor | None
    ) -> BlockMatrix:
        return BlockMatrix(codes.name, shape, "MatMulNBits", bits, size, codes, scales, zeros)


def _shaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    return Tensor(tensor.name, tensor.dtype, shape, tensor.source)


def _repeated(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """One number for all blocks."""
    return Tensor.of(tensor.name, np.full(shape, tensor.array.reshape(-1)[0]))
