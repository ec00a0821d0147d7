"""Writing GGUF files: whole, or tensor data in pieces; a file has its name once it is complete."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import numpy as np

from lowbit import _core
from lowbit._core import InputError
from lowbit.gguf.reading import DTYPES, Path, Tensor, TensorInfo
from lowbit.gguf.values import checked_name, encoded
from lowbit.qtensor import QTensor

_TYPES = {dtype: name for name, dtype in DTYPES.items()}


class Writer:
    """Writes a GGUF file of version 3, tensor data in pieces.

    `metadata`: key -> str, bool, int (uint32 if it fits, else uint64; int32 or int64 if negative), float (float32),
    NumPy scalar or one-dimensional array for any other type, list of str. Key "general.alignment" (uint32) replaces
    the alignment of 32. `infos`: the tensors, in the order of their data. Orders are kept.

    The file lies under a temporary name in the same folder until the `with` block ends without an exception, so that
    nothing incomplete is ever found under `path`; what was there before is replaced then. With an exception, or if the
    process is killed, it stays as it was.

    Raises InputError for keys, values and infos that make no valid file, FileError if the system refuses.
    """

    def __init__(self, path: Path, metadata: Mapping[str, Any], infos: Iterable[TensorInfo]) -> None:
        self._core = _core.GgufWriter(os.fsencode(path), _plan(metadata, infos))

    @property
    def temporary_path(self) -> str:
        """Where the file lies until it is finished; empty afterwards. `edit_unfinished` changes its metadata there."""
        return os.fsdecode(self._core.temporary_path)

    def write(self, buffer: Any) -> None:
        """Appends the next bytes of tensor data from an array, QTensor or contiguous buffer, without a copy.

        Pieces may have any size; padding between tensors is added. Raises InputError if they are more than `infos`
        announced and FileError if the system refuses, after which the writer is closed.
        """
        self._core.write(_as_bytes(buffer))

    def finish(self) -> None:
        """Gives the complete file its name; the `with` block does. Raises InputError if tensor data is missing."""
        self._core.finish()

    def abort(self) -> None:
        """Gives up and removes the temporary file; nothing happens after `finish`."""
        self._core.abort()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.abort()


def write(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes a whole GGUF file: `metadata` as for Writer, `tensors` name -> QTensor or array.

    Arrays are float32, float16, bfloat16, float64 or int8 to int64, with any strides. Raises as Writer does.
    """
    infos = [TensorInfo(name, tensor.shape, _format_of(name, tensor)) for name, tensor in tensors.items()]
    with Writer(path, metadata, infos) as writer:
        for tensor in tensors.values():
            writer.write(tensor)


def file_size(metadata: Mapping[str, Any], infos: Iterable[TensorInfo]) -> int:
    """The exact size in bytes of the file that Writer would make. Raises InputError as Writer does."""
    return _plan(metadata, infos).file_size


def _plan(metadata: Mapping[str, Any], infos: Iterable[TensorInfo]) -> _core.GgufPlan:
    entries = [(checked_name("key", key), encoded(key, value)) for key, value in metadata.items()]
    return _core.GgufPlan(
        entries, [(checked_name("tensor", n), format, _checked_shape(n, s)) for n, s, format in infos]
    )


def _checked_shape(name: str, shape: Iterable[int]) -> tuple[int, ...]:
    sizes = tuple(int(n) for n in shape)
    if any(not 0 <= n < 1 << 63 for n in sizes):
        raise InputError(f"tensor {name}: expected sizes from 0 to 2**63 - 1, got {sizes}")
    return sizes


def _format_of(name: str, tensor: Tensor) -> str:
    if isinstance(tensor, QTensor):
        return tensor.format
    if not isinstance(tensor, np.ndarray) or tensor.dtype.newbyteorder("=") not in _TYPES:
        found = tensor.dtype if isinstance(tensor, np.ndarray) else type(tensor).__name__
        expected = ", ".join(str(dtype) for dtype in _TYPES)
        raise InputError(f"tensor {name}: expected a QTensor or an array of {expected}, got {found}")
    return _TYPES[tensor.dtype.newbyteorder("=")]


def _as_bytes(buffer: Any) -> Any:
    if isinstance(buffer, QTensor):
        buffer = buffer.data
    if isinstance(buffer, np.ndarray):
        # NumPy does not export bfloat16 as a buffer, so arrays go as bytes.
        buffer = np.ascontiguousarray(buffer, buffer.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
    return buffer
