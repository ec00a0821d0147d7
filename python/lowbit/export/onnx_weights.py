"""The weights of a language model's graph by the names of GGUF tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit.arch.base import Architecture
from lowbit.base.errors import FormatError, UnsupportedError
from lowbit.base.progress import ProgressLike, steps
from lowbit.base.quoting import quoted
from lowbit.export.onnx_names import QKV, QKV_PARTS, GraphNames
from lowbit.hf.config import Config
from lowbit.onnx.block_matrix import BlockMatrix
from lowbit.onnx.block_reading import block_matrix
from lowbit.onnx.blocks_to_gguf import to_gguf
from lowbit.onnx.fidelity import EXACT, Fidelity
from lowbit.onnx.graph import Model, Node
from lowbit.tensors.qtensor import QTensor
from lowbit.tensors.source import ArraySource, Renamed, read

_BLOCKS = ("com.microsoft.MatMulNBits", "com.microsoft.GatherBlockQuantized", "DequantizeLinear")
_Float = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Weight:
    """A tensor of the GGUF file. fidelity: how its values differ from the graph's."""

    name: str
    data: QTensor | _Float
    fidelity: Fidelity = EXACT

    def rows(self, name: str, chosen: slice | npt.NDArray[np.intp]) -> Weight:
        """Some of its rows as another tensor."""
        data = (
            QTensor(self.data.data[chosen], self.data.format) if isinstance(self.data, QTensor) else self.data[chosen]
        )
        return replace(self, name=name, data=data)


def graph_weights(
    model: Model, arch: Architecture, config: Config, *, exact: bool, threads: int, progress: ProgressLike
) -> dict[str, Weight]:
    """The weights with GGUF's values, by name, in the order of the architecture's table.

    exact: refuse blocks that no format holds exactly. Raises FormatError for missing and misshapen weights,
    UnsupportedError for weights that are not found, or not exact.
    """
    sizes = arch.sizes(config)
    names = GraphNames(arch, sizes.layers)
    found: dict[str, Weight] = {}
    matrices = dict(_matrices(model, names))
    with steps("read weights", "tensors", progress) as advance:
        for i, (name, matrix) in enumerate(matrices.items()):
            if isinstance(matrix, BlockMatrix):
                packed = to_gguf(matrix, exact=exact, threads=threads)
                found[name] = Weight(name, packed.weights, packed.fidelity)
            else:
                found[name] = Weight(name, matrix)
            advance(i + 1, len(matrices))
    found |= _vectors(model, names, found)
    if names.splits_qkv:
        found = {part.name: part for weight in found.values() for part in _split(weight, sizes.named)}
    if any(node.name.startswith("/model/") for node in model.nodes):
        found = {name: _in_gguf_order(weight, arch, config) for name, weight in found.items()}
    if "token_embd.weight" not in found and "output.weight" in found:
        found["token_embd.weight"] = replace(found.pop("output.weight"), name="token_embd.weight")
    return _checked(found, arch, sizes.layers, sizes.named)


def _matrices(model: Model, names: GraphNames) -> Iterator[tuple[str, BlockMatrix | _Float]]:
    """Constant matrices of products and embeddings. One in blocks counts more than one of floats with its name."""
    seen = set()
    for wants_blocks in (True, False):
        for node in model.nodes:
            is_block = node.operator in _BLOCKS
            name = _name(node, names)
            if name is None or name in seen or is_block is not wants_blocks:
                continue
            matrix = _block(node, model) if is_block else _floats(node, model)
            if matrix is not None:
                seen.add(name)
                yield name, matrix


def _name(node: Node, names: GraphNames) -> str | None:
    """By the node in the builder's graphs, by the initializer in lowbit's."""
    if node.label.startswith("/"):
        return names.of(node.label)
    return next((name for name in map(names.of, node.inputs[:2]) if name is not None), None)


def _block(node: Node, model: Model) -> BlockMatrix | None:
    data = node.inputs[1 if node.op_type == "MatMulNBits" else 0]
    tensor = model.graph.tensors.get(data)
    return None if tensor is None or tensor.size < 2 else block_matrix(node, model.graph.tensors)


def _floats(node: Node, model: Model) -> _Float | None:
    """The weight of a product (inputs, outputs), an embedding, or a weight that lowbit's graphs transpose."""
    if node.op_type == "Transpose" and node.label.startswith("/"):
        return None
    index = {"MatMul": 1, "Gather": 0, "Transpose": 0}.get(node.op_type)
    tensor = None if index is None else model.graph.tensors.get(node.inputs[index])
    if tensor is None or len(tensor.shape) != 2 or tensor.dtype.name not in ("float32", "float16", "bfloat16"):
        return None
    return np.ascontiguousarray(tensor.array.T) if index else np.asarray(tensor.array)


def _vectors(model: Model, names: GraphNames, found: Mapping[str, Weight]) -> dict[str, Weight]:
    """Norms and biases, as float32."""
    vectors = {}
    for tensor in model.graph.tensors.values():
        name = names.of(tensor.name) if len(tensor.shape) == 1 else None
        if name is not None and name not in found:
            vectors[name] = Weight(name, np.asarray(tensor.array).astype(np.float32))
    return vectors


def _split(weight: Weight, sizes: Mapping[str, int]) -> Iterator[Weight]:
    """The parts of queries, keys and values in one matrix or bias."""
    prefix, is_fused, kind = weight.name.partition(f"{QKV}.")
    if not is_fused:
        yield weight
        return
    if (found := weight.data.shape[0]) != (rows := sizes["qkv"]):
        raise FormatError(f"tensor {quoted(weight.name)}:", tensor=weight.name, expected=f"{rows} rows", found=found)
    start = 0
    for part, size in zip(QKV_PARTS, ("heads", "kv_heads", "kv_heads"), strict=True):
        yield weight.rows(f"{prefix}{part}.{kind}", slice(start, start + sizes[size]))
        start += sizes[size]


def _in_gguf_order(weight: Weight, arch: Architecture, config: Config) -> Weight:
    """Queries and keys whose rows have the checkpoint's order, in the order of GGUF's rotary pairs."""
    if not weight.name.endswith(("attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias")):
        return weight
    numbers = np.arange(weight.data.shape[0], dtype=np.float32)
    numbers = numbers if weight.name.endswith("bias") else numbers[:, None]
    order = read(arch.fix_up(Renamed(weight.name, ArraySource(weight.name, numbers)), config))
    return weight.rows(weight.name, order.reshape(-1).astype(np.intp))


def _checked(
    found: Mapping[str, Weight], arch: Architecture, num_layers: int, sizes: Mapping[str, int]
) -> dict[str, Weight]:
    """The weights in the table's order. Raises FormatError or UnsupportedError."""
    table = {gguf: entry for entry, gguf in arch.table(num_layers).values()}
    missing = [name for name, entry in table.items() if entry.required and name not in found]
    if missing:
        raise UnsupportedError(
            f"the graph has no weight for {quoted(missing[0])} ({len(missing)} are missing):",
            tensor=missing[0],
            expected="a model of lowbit export onnx or onnxruntime-genai's builder",
        )
    for name, weight in found.items():
        shape = None if name not in table else tuple(sizes[size] for size in table[name].shape)
        if shape is not None and weight.data.shape != shape:
            raise FormatError(
                f"tensor {quoted(name)}:", tensor=name, expected=f"shape {list(shape)}", found=list(weight.data.shape)
            )
    return {name: found[name] for name in table if name in found} | {
        name: weight for name, weight in found.items() if name not in table
    }
