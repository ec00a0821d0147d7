"""The content of a file or a checkpoint, without its weights."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowbit import gguf
from lowbit.base.paths import AnyPath, checked, is_dir
from lowbit.hf import checkpoint

__all__ = ["InspectReport", "TensorReport", "TensorTotal", "inspect"]

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


def inspect(path: AnyPath) -> InspectReport:
    """Reads metadata and tensor infos of a GGUF file, a safetensors file or a checkpoint folder, but no weights.

    Returns an InspectReport. Raises FileError or FormatError if the file cannot be read.

        lowbit.inspect("model.gguf").total.bits_per_weight
    """
    path = Path(checked(path))
    if is_dir(path) or path.suffix == ".safetensors":
        return _inspect_safetensors(path)
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
