"""Importance matrices: for each column of a weight matrix, the mean square of what it is multiplied with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lowbit import gguf
from lowbit._core import FormatError, InputError

#: What llama-quantize keeps of a text.
MAX_TEXT = 127


@dataclass
class Imatrix:
    """Importances by tensor name, float32 (columns,), and where they come from."""

    values: dict[str, np.ndarray]
    path: str | None = None
    datasets: list[str] = field(default_factory=list)
    chunks: int = 0

    def metadata(self) -> dict[str, Any]:
        """The keys that a file quantized with it has."""
        result: dict[str, Any] = {}
        if self.path is not None:
            result["quantize.imatrix.file"] = _cut(self.path)
        if self.datasets:
            result["quantize.imatrix.dataset"] = _cut(self.datasets[0])
        result["quantize.imatrix.entries_count"] = len(self.values)
        if self.chunks > 0:
            result["quantize.imatrix.chunks_count"] = self.chunks
        return result

    def importance(self, name: str, columns: int) -> np.ndarray | None:
        """Importances of a tensor's columns, None if there are none.

        Raises InputError where their number differs; the embedding is looked up, not multiplied, and has none then.
        """
        values = self.values.get(name)
        if values is not None and len(values) != columns:
            if name == "token_embd.weight":
                return None
            raise InputError(f"imatrix: {name} has {len(values)} values, expected {columns}")
        return values


def _cut(text: str) -> str:
    return text.encode()[:MAX_TEXT].decode("utf-8", errors="ignore")


def load_imatrix(source: str | os.PathLike[str] | Mapping[str, Any] | Imatrix) -> Imatrix:
    """From a GGUF file of llama-imatrix, or a mapping of tensor names to arrays.

    Raises InputError or FormatError for values that are negative or not finite.
    """
    if isinstance(source, Imatrix):
        return source
    if isinstance(source, Mapping):
        return Imatrix({name: _checked(InputError, name, np.asarray(v, np.float32)) for name, v in source.items()})
    path = os.fspath(source)
    with gguf.open(path) as file:
        sums = {name.removesuffix(".in_sum2") for name in file.infos if name.endswith(".in_sum2")}
        counts = {name.removesuffix(".counts") for name in file.infos if name.endswith(".counts")}
        if not sums or "imatrix.chunk_count" not in file.metadata:
            raise FormatError(f"{path}: not an importance matrix: no tensors .in_sum2 or no key imatrix.chunk_count")
        if sums != counts:
            raise FormatError(f"{path}: {min(sums ^ counts)} has only one of .in_sum2 and .counts")
        values = {}
        for name in sorted(sums):
            pair = (file.tensors[f"{name}.in_sum2"], file.tensors[f"{name}.counts"])
            values[name] = _checked(FormatError, f"{path}: {name}", _mean(f"{path}: {name}", *pair))
        datasets = file.metadata.get("imatrix.datasets", [])
        chunks = file.metadata["imatrix.chunk_count"]
    return Imatrix(values, path, datasets if isinstance(datasets, list) else [], chunks if type(chunks) is int else 0)


def _mean(where: str, sums: Any, counts: Any) -> np.ndarray:
    """Sums of squares over counts, 1 where nothing was counted. Each expert of a layer has its own count."""
    if not all(isinstance(array, np.ndarray) and array.dtype == np.float32 for array in (sums, counts)):
        raise FormatError(f"{where}: sums and counts are not F32")
    if counts.size == 0 or sums.size % counts.size:
        raise FormatError(f"{where}: {sums.size} sums for {counts.size} counts")
    rounded = np.rint(counts.reshape(-1, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = sums.reshape(len(rounded), -1) / rounded
    values: np.ndarray = np.where(rounded > 0, mean, np.float32(1)).reshape(-1).astype(np.float32)
    return values


def _checked(error: type[Exception], where: str, values: np.ndarray) -> np.ndarray:
    if values.ndim != 1 or not np.all(np.isfinite(values)) or np.any(values < 0):
        raise error(f"imatrix: {where}: expected one axis of finite numbers that are not negative")
    return values
