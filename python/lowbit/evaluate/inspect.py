"""The content of a file or a checkpoint, without its weights."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowbit import gguf
from lowbit.base.foreign import is_onnx
from lowbit.base.paths import AnyPath, checked, is_dir
from lowbit.hf import checkpoint
from lowbit.onnx import reading
from lowbit.onnx.dtypes import dtype_name
from lowbit.onnx.graph import Graph, Model, Node, Value
from lowbit.onnx.tensor import Tensor

__all__ = ["InspectReport", "OnnxInspectReport", "TensorReport", "TensorTotal", "ValueReport", "inspect"]

# Of longer arrays (such as a tokenizer's tokens), only length and first elements are reported.
_MOST_ELEMENTS = 16


@dataclass(frozen=True)
class TensorReport:
    """A tensor: shape in NumPy order, and the bytes of its data."""

    name: str
    shape: tuple[int, ...]
    format: str
    num_bytes: int
    bits_per_weight: float


@dataclass(frozen=True)
class TensorTotal:
    """Number, weights and bytes of several tensors."""

    tensors: int
    weights: int
    num_bytes: int
    bits_per_weight: float


@dataclass(frozen=True)
class InspectReport:
    """The result of `inspect`.

    metadata: plain Python values; a long array is {"length": ..., "first": [...]}. formats: totals by format.
    """

    path: str
    kind: str
    file_bytes: int
    metadata: dict[str, Any]
    tensors: list[TensorReport]
    formats: dict[str, TensorTotal]
    total: TensorTotal


@dataclass(frozen=True)
class ValueReport:
    """An input or output of an ONNX model.

    dtype: None if it is no tensor. shape: None if it is unknown; a dimension is a number, a name, or None.
    """

    name: str
    dtype: str | None
    shape: list[int | str | None] | None


@dataclass(frozen=True)
class OnnxInspectReport(InspectReport):
    """The result of `inspect` for an ONNX model. `metadata`: its metadata_props.

    `tensors`: initializers and constants, also those of subgraphs and functions. `operators`: how many nodes have each
    operator, the most frequent first, in subgraphs and functions too. `functions`: the operators that the model
    defines. `files`: sizes of the files beside the model that hold tensors.
    """

    ir_version: int
    producer: str
    opsets: dict[str, int]
    inputs: list[ValueReport]
    outputs: list[ValueReport]
    operators: dict[str, int]
    functions: list[str]
    files: dict[str, int]


def inspect(path: AnyPath) -> InspectReport:
    """Reads metadata and tensor infos of a GGUF, safetensors or ONNX file or a checkpoint folder, but no weights.

    Returns an InspectReport, of an ONNX model an OnnxInspectReport. Raises FileError, FormatError or UnsupportedError
    if the file cannot be read.

        lowbit.inspect("model.gguf").total.bits_per_weight
    """
    path = Path(checked(path))
    if is_dir(path) or path.suffix == ".safetensors":
        return _inspect_safetensors(path)
    if is_onnx(path):
        return _inspect_onnx(path)
    with gguf.open(path) as file:
        tensors = [
            _tensor(info.name, info.shape, info.format, file.num_bytes(info.name)) for info in file.infos.values()
        ]
        metadata = {key: summary(value) for key, value in file.metadata.items()}
        file_bytes = sum(map(os.path.getsize, file.paths))
        return _report(path, f"GGUF version {file.version}", file_bytes, metadata, tensors)


def _inspect_safetensors(path: Path) -> InspectReport:
    if is_dir(path):
        opened = checkpoint.Checkpoint(path)
        stored, metadata, kind = opened.tensors, _flat(opened.config), "checkpoint"
    else:
        stored, metadata, kind = checkpoint.read_safetensors(path), {}, "safetensors"
    tensors = [
        _tensor(t.name, t.shape, t.dtype_name, math.prod(t.shape) * checkpoint.ITEM_BYTES[t.dtype_name])
        for t in stored.values()
    ]
    file_bytes = sum(file.stat().st_size for file in {t.file.path for t in stored.values()})
    return _report(path, kind, file_bytes, metadata, tensors)


def _inspect_onnx(path: Path) -> OnnxInspectReport:
    model = reading.open_model(path)
    nodes = list(_nodes(model))
    tensors = [
        _tensor(name, tensor.shape, dtype_name(tensor.dtype), tensor.nbytes) for name, tensor in _tensors(model, nodes)
    ]
    files = {location: file.size for location, file in model.files.items()}
    size = os.path.getsize(path) + sum(files.values())
    report = _report(path, f"ONNX IR version {model.ir_version}", size, dict(model.metadata), tensors)
    return OnnxInspectReport(
        **vars(report),
        ir_version=model.ir_version,
        producer=f"{model.producer} {model.rest.get('producer_version', '')}".strip(),
        opsets={domain or "ai.onnx": version for domain, version in model.opsets.items()},
        inputs=[_value(value) for value in model.inputs],
        outputs=[_value(value) for value in model.outputs],
        operators=dict(Counter(node.operator for node in nodes).most_common()),
        functions=[function.operator for function in model.functions],
        files=files,
    )


def _graphs(model: Model) -> Iterator[Graph]:
    yield from model.graph.graphs()
    for function in model.functions:
        for node in function.nodes:
            for graph in node.subgraphs:
                yield from graph.graphs()


def _nodes(model: Model) -> Iterator[Node]:
    for graph in _graphs(model):
        yield from graph.nodes
    for function in model.functions:
        yield from function.nodes


def _tensors(model: Model, nodes: Iterable[Node]) -> Iterator[tuple[str, Tensor]]:
    """Tensors with their names. One in an attribute is called as the first output of its node."""
    for graph in _graphs(model):
        yield from graph.tensors.items()
    for node in nodes:
        for attribute in node.attributes.values():
            for value in attribute.value if isinstance(attribute.value, tuple) else (attribute.value,):
                if isinstance(value, Tensor):
                    yield next(iter(node.outputs), node.name), value


def _value(value: Value) -> ValueReport:
    return ValueReport(
        value.name,
        None if value.dtype is None else dtype_name(value.dtype),
        None if value.shape is None else list(value.shape),
    )


def _report(
    path: Path, kind: str, file_bytes: int, metadata: dict[str, Any], tensors: list[TensorReport]
) -> InspectReport:
    formats: dict[str, list[TensorReport]] = {}
    for tensor in tensors:
        formats.setdefault(tensor.format, []).append(tensor)
    totals = {name: _total(of_format) for name, of_format in formats.items()}
    by_size = dict(sorted(totals.items(), key=lambda item: -item[1].num_bytes))
    return InspectReport(str(path), kind, file_bytes, metadata, tensors, by_size, _total(tensors))


def _tensor(name: str, shape: tuple[int, ...], format: str, num_bytes: int) -> TensorReport:
    return TensorReport(name, tuple(shape), format, num_bytes, _bits(num_bytes, math.prod(shape)))


def _total(tensors: list[TensorReport]) -> TensorTotal:
    weights = sum(math.prod(tensor.shape) for tensor in tensors)
    num_bytes = sum(tensor.num_bytes for tensor in tensors)
    return TensorTotal(len(tensors), weights, num_bytes, _bits(num_bytes, weights))


def _bits(num_bytes: int, weights: int) -> float:
    return 8 * num_bytes / weights if weights else 0.0


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = summary(value)
    return flat


def summary(value: Any) -> Any:
    """A metadata value as plain Python; a long array as {"length": ..., "first": [...]}."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        length, first = len(value), value[:_MOST_ELEMENTS].tolist()
    elif isinstance(value, list):
        length, first = len(value), value[:_MOST_ELEMENTS]
    else:
        return value
    return first if length <= _MOST_ELEMENTS else {"length": length, "first": first}
