"""The weights of a language model's graph by the names of GGUF tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit.arch.base import Architecture
from lowbit.base.dtypes import FLOAT_NAMES, FLOATS
from lowbit.base.errors import FormatError, UnsupportedError
from lowbit.base.progress import ProgressLike, steps
from lowbit.base.quoting import quoted
from lowbit.export.onnx_names import GATE_UP, GATE_UP_PARTS, QKV, QKV_PARTS, GraphNames
from lowbit.export.weights import TABLE
from lowbit.hf.config import Config
from lowbit.onnx.block_matrix import MICROSOFT, BlockMatrix
from lowbit.onnx.block_reading import block_matrix
from lowbit.onnx.blocks_to_gguf import held_blocks
from lowbit.onnx.fidelity import EXACT, LABELS, Fidelity
from lowbit.onnx.graph import Model, Node
from lowbit.onnx.open_rows import OpenRows
from lowbit.onnx.tensor import Tensor
from lowbit.tensors.source import ArraySource, ChosenRows, Joined, Renamed, TensorSource, read

_BLOCKS = ("com.microsoft.MatMulNBits", "com.microsoft.GatherBlockQuantized", "DequantizeLinear")
_FLOAT_TYPES = tuple(np.dtype(dtype) for dtype in FLOATS.values())


@dataclass(frozen=True, eq=False)
class Weight:
    """A tensor of the GGUF file, which is read when it is written.

    source: rows of floats, or of packed bytes. shape: in weights. fidelity: how its values differ from the graph's.
    """

    name: str
    source: TensorSource
    shape: tuple[int, ...]
    format: str
    fidelity: Fidelity = EXACT

    @classmethod
    def of(cls, source: TensorSource) -> Weight:
        """Floats."""
        return cls(source.name, source, source.shape, FLOAT_NAMES[source.dtype])

    def rows(self, name: str, chosen: npt.NDArray[np.intp]) -> Weight:
        """Some of its rows as another tensor."""
        source = ChosenRows(name, self.source, chosen)
        return replace(self, name=name, source=source, shape=(len(chosen), *self.shape[1:]))


def graph_weights(
    model: Model, arch: Architecture, config: Config, *, exact: bool, threads: int, progress: ProgressLike
) -> dict[str, Weight]:
    """The weights with GGUF's values, by name, in the order of the architecture's table.

    Each matrix is read once, to find its format. exact: refuse blocks that no format holds exactly.

    Raises FormatError for missing and misshapen weights, UnsupportedError for weights that are not found, or not exact.
    """
    sizes = arch.sizes(config)
    names = GraphNames(arch, sizes.layers)
    found: dict[str, Weight] = {}
    matrices = dict(_matrices(model, names, sizes.hidden))
    with steps("read weights", "tensors", progress) as advance:
        for i, (name, matrix) in enumerate(matrices.items()):
            if isinstance(matrix, BlockMatrix):
                held = held_blocks(matrix, exact=exact, threads=threads)
                found[name] = Weight(name, Renamed(name, held), matrix.shape, held.format, held.fidelity)
            else:
                found[name] = Weight.of(Renamed(name, matrix))
            advance(i + 1, len(matrices))
    found |= _vectors(model, names, found)
    if names.splits_qkv:
        found = {part.name: part for weight in found.values() for part in _split(weight, sizes.named)}
    if names.joins_gate_up:
        found = _joined(found)
    if any(node.name.startswith("/model/") for node in model.nodes):
        found = {name: _in_gguf_order(weight, arch, config) for name, weight in found.items()}
    if "token_embd.weight" not in found and "output.weight" in found:
        found["token_embd.weight"] = replace(found.pop("output.weight"), name="token_embd.weight")
    return _checked(found, arch, sizes.layers, sizes.named)


class _Floats:
    """The rows of a matrix of floats in the graph. by_columns: it is stored as (inputs, outputs)."""

    def __init__(self, tensor: Tensor, by_columns: bool) -> None:
        self.name = tensor.name
        self.dtype = tensor.dtype
        self.shape = tensor.shape[::-1] if by_columns else tensor.shape
        self._tensor = tensor
        self._by_columns = by_columns

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows start..stop."""
        opened = OpenRows(self._tensor, self.shape[0], self._by_columns)
        rows = np.array(opened.part(start, stop), order="C")
        opened.release(start, stop)
        return rows


def _matrices(model: Model, names: GraphNames, hidden: int) -> Iterator[tuple[str, BlockMatrix | _Floats]]:
    """Constant matrices of products and embeddings. One in blocks counts more than one of floats with its name."""
    seen = set()
    for wants_blocks in (True, False):
        for node in model.nodes:
            name = _name(node, names)
            if name is None or name in seen:
                continue
            matrix = _block(node, model, hidden) if wants_blocks else _floats(node, model)
            if matrix is not None:
                seen.add(name)
                yield name, matrix


def _name(node: Node, names: GraphNames) -> str | None:
    """By the node in the builder's graphs, by the initializer in lowbit's."""
    if node.label.startswith("/"):
        return names.of(node.label)
    return next((name for name in map(names.of, node.inputs[:2]) if name is not None), None)


def _block(node: Node, model: Model, hidden: int) -> BlockMatrix | None:
    tensors = model.graph.tensors
    if node.op_type == "Gather":
        return _table(node, tensors, hidden)
    if node.operator not in _BLOCKS:
        return None
    data = tensors.get(node.inputs[1 if node.op_type == "MatMulNBits" else 0])
    if data is None or data.size < 2:
        return None
    matrix = block_matrix(node, tensors)
    base = data.name.removesuffix("_rows").removesuffix("_codes")
    return replace(matrix, offsets=_offsets(matrix, tensors.get(f"{base}_offsets")))


def _table(node: Node, tensors: Mapping[str, Tensor], hidden: int) -> BlockMatrix | None:
    """Rows of bytes, from which lowbit's graphs take codes by arithmetic: blocks as in GatherBlockQuantized."""
    name = node.inputs[0]
    base = name.removesuffix(TABLE)
    codes, scales, zeros = (tensors.get(each) for each in (name, f"{base}_scales", f"{base}_zeros"))
    if base == name or codes is None or scales is None or {len(codes.shape), len(scales.shape)} != {2}:
        return None
    bits, blocks = 8 * codes.shape[1] // hidden, scales.shape[1]
    gather = Node.of(
        "GatherBlockQuantized", [name, "ids", scales.name, zeros.name if zeros else ""], ["rows"], name=node.name,
        domain=MICROSOFT, bits=bits, block_size=hidden // blocks if blocks else 0, gather_axis=0, quantize_axis=1,
    )  # fmt: skip
    matrix = block_matrix(gather, tensors)
    return replace(matrix, offsets=_offsets(matrix, tensors.get(f"{base}_offsets")))


def _offsets(matrix: BlockMatrix, offsets: Tensor | None) -> Tensor | None:
    """What lowbit's graphs add to the values of each block."""
    if offsets is None:
        return None
    shape = (matrix.shape[0], matrix.num_blocks)
    shape = shape[::-1] if matrix.layout == "DequantizeLinear" else shape
    if offsets.dtype != np.float32 or offsets.shape != shape:
        raise FormatError(
            f"tensor {quoted(offsets.name)}:", tensor=offsets.name, expected=f"float32 of shape {list(shape)}",
            found=f"{offsets.dtype} of shape {list(offsets.shape)}",
        )  # fmt: skip
    return offsets


def _floats(node: Node, model: Model) -> _Floats | None:
    """The weight of a product (inputs, outputs), an embedding, or a weight that lowbit's graphs transpose or cast."""
    if node.op_type in ("Transpose", "Cast") and node.label.startswith("/"):
        return None
    index = {"MatMul": 1, "Gather": 0, "Transpose": 0, "Cast": 0}.get(node.op_type)
    tensor = None if index is None else model.graph.tensors.get(node.inputs[index])
    if tensor is None or len(tensor.shape) != 2 or tensor.dtype not in _FLOAT_TYPES:
        return None
    return _Floats(tensor, by_columns=node.op_type in ("MatMul", "Cast"))


def _vectors(model: Model, names: GraphNames, found: Mapping[str, Weight]) -> dict[str, Weight]:
    """Norms and biases, as float32."""
    vectors = {}
    for tensor in model.graph.tensors.values():
        name = names.of(tensor.name) if len(tensor.shape) == 1 else None
        if name is not None and name not in found:
            if tensor.dtype not in _FLOAT_TYPES:
                raise FormatError(
                    f"tensor {quoted(tensor.name)}:", tensor=tensor.name, expected="floats", found=tensor.dtype
                )
            vectors[name] = Weight.of(ArraySource(name, np.asarray(tensor.array).astype(np.float32)))
    return vectors


def _split(weight: Weight, sizes: Mapping[str, int]) -> Iterator[Weight]:
    """The parts of queries, keys and values in one matrix or bias."""
    prefix, is_fused, kind = weight.name.partition(f"{QKV}.")
    if not is_fused:
        yield weight
        return
    if (found := weight.shape[0]) != (rows := sizes["qkv"]):
        raise FormatError(f"tensor {quoted(weight.name)}:", tensor=weight.name, expected=f"{rows} rows", found=found)
    start = 0
    for part, size in zip(QKV_PARTS, ("heads", "kv_heads", "kv_heads"), strict=True):
        yield weight.rows(f"{prefix}{part}.{kind}", np.arange(start, start + sizes[size]))
        start += sizes[size]


def _joined(found: Mapping[str, Weight]) -> dict[str, Weight]:
    """Weights whose gate and up, the builder's two products, are one matrix or bias."""
    result = {}
    for name, weight in found.items():
        prefix, is_gate, kind = name.partition(f".{GATE_UP_PARTS[0]}.")
        up = found.get(f"{prefix}.{GATE_UP_PARTS[1]}.{kind}")
        if is_gate and up is not None:
            joined = f"{prefix}.{GATE_UP}.{kind}"
            if (weight.format, weight.shape[1:]) != (up.format, up.shape[1:]):
                raise UnsupportedError(
                    f"tensor {quoted(joined)}: gate and up as one matrix:", tensor=joined,
                    expected=f"{weight.format} {list(weight.shape)} for both", found=f"{up.format} {list(up.shape)}",
                )  # fmt: skip
            shape = (weight.shape[0] + up.shape[0], *weight.shape[1:])
            fidelity = max(weight.fidelity, up.fidelity, key=lambda each: LABELS.index(each.label))
            result[joined] = Weight(joined, Joined(joined, weight.source, up.source), shape, weight.format, fidelity)
        elif not name.endswith((f".{GATE_UP_PARTS[1]}.weight", f".{GATE_UP_PARTS[1]}.bias")):
            result[name] = weight
    return result


def _in_gguf_order(weight: Weight, arch: Architecture, config: Config) -> Weight:
    """Queries and keys whose rows have the checkpoint's order, in the order of GGUF's rotary pairs."""
    if not weight.name.endswith(("attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias")):
        return weight
    numbers = np.arange(weight.shape[0], dtype=np.float32)
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
        if name not in table:
            layers = f"{num_layers} layer{'s' if num_layers > 1 else ''}"
            expected = f"a weight of {arch.name} with {layers}, as config.json or genai_config.json says"
            raise FormatError(f"tensor {quoted(name)}:", tensor=name, expected=expected)
        shape = tuple(sizes[size] for size in table[name].shape)
        if weight.shape != shape:
            raise FormatError(
                f"tensor {quoted(name)}:", tensor=name, expected=f"shape {list(shape)}", found=list(weight.shape)
            )
    return {name: found[name] for name in table if name in found}
