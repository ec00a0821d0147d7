"""Writing GGUF files: at once, or tensor data in pieces. A file gets its name when it is complete."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import numpy as np

from lowbit import _core
from lowbit.base import arguments
from lowbit.base.errors import InputError
from lowbit.base.paths import target
from lowbit.base.quoting import shown
from lowbit.gguf.reading import DTYPES, Path, Tensor, TensorInfo
from lowbit.gguf.rewriting import drop_undo
from lowbit.gguf.values import checked_name, encoded
from lowbit.tensors.qtensor import QTensor

_TYPES = {dtype: name for name, dtype in DTYPES.items()}


class Writer:
    """Writes a GGUF file of version 3, tensor data in pieces.

    `metadata`: key -> str, bool, int (uint32 if it fits, else uint64; int32 or int64 if negative), float (float32),
    list of str, or a NumPy scalar or one-dimensional array for any other type. The key "general.alignment" (uint32)
    replaces the alignment of 32. `infos`: the tensors, in the order of their data. The file has both orders.

    The file has a temporary name in the same folder until the `with` block ends without an exception. Then it replaces
    the file at `path`. After an exception, or if the process is killed, `path` is unchanged. Tensors may come from the
    file that is replaced: an open file keeps its old content (on Windows an open file cannot be replaced: FileError).

    Raises InputError for keys, values and infos that do not make a valid file, FileError if the system refuses.
    """

    def __init__(self, path: Path, metadata: Mapping[str, Any], infos: Iterable[TensorInfo]) -> None:
        where = target(path)
        self._core = _core.GgufWriter(where, _plan(metadata, infos))
        self._target = os.path.realpath(os.fsdecode(where))

    @property
    def temporary_path(self) -> str:
        """The file's path until it is finished; then empty. `edit_unfinished` changes its metadata there.

        The file has all that was written up to this call.
        """
        return os.fsdecode(self._core.temporary_path)

    def write(self, buffer: Any) -> None:
        """Appends tensor data from an array, QTensor or contiguous buffer, without a copy.

        Pieces may have any size; padding between tensors is added. Raises InputError if there are more bytes than
        `infos` announced, and FileError if the system refuses; the writer is then closed.
        """
        self._core.write(_as_bytes(buffer))

    def finish(self) -> None:
        """Gives the complete file its name; the `with` block calls it. Raises InputError if tensor data is missing."""
        self._core.finish()
        drop_undo(self._target)

    def abort(self) -> None:
        """Cancels and removes the temporary file. Has no effect after `finish`."""
        self._core.abort()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.abort()


def write(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes a whole GGUF file: `metadata` as for Writer, `tensors` name -> QTensor or array.

    Arrays are float32, float16, bfloat16, float64 or int8 to int64, with any strides. Raises as Writer does.
    """
    infos = [
        TensorInfo(name, format=_format_of(name, tensor), shape=tensor.shape)
        for name, tensor in arguments.mapping("tensors", tensors).items()
    ]
    with Writer(path, metadata, infos) as writer:
        for tensor in tensors.values():
            writer.write(tensor)


def file_size(metadata: Mapping[str, Any], infos: Iterable[TensorInfo]) -> int:
    """The exact size in bytes of the file of a Writer with these arguments. Raises InputError as Writer does."""
    return _plan(metadata, infos).file_size


def _plan(metadata: Mapping[str, Any], infos: Iterable[TensorInfo]) -> _core.GgufPlan:
    entries = [
        (checked_name("key", key), encoded(key, value))
        for key, value in arguments.mapping("metadata", metadata).items()
    ]
    return _core.GgufPlan(entries, [_checked_info(info) for info in arguments.items("infos", infos)])


def _checked_info(info: Any) -> tuple[str, str, tuple[int, ...]]:
    if not isinstance(info, (tuple, list)) or len(info) != 3:
        raise arguments.wrong("infos", "TensorInfo(name, shape, format)", info)
    name, shape, format = info
    checked_name("tensor", name)
    try:
        sizes = tuple(arguments.integer("size", n, 0, (1 << 63) - 1) for n in arguments.items("shape", shape))
        return name, arguments.text("format", format), sizes
    except InputError as error:
        error.about(f"tensor {shown(name)}: ", tensor=name)
        raise


def _format_of(name: str, tensor: Tensor) -> str:
    if isinstance(tensor, QTensor):
        return tensor.format
    if not isinstance(tensor, np.ndarray) or tensor.dtype.newbyteorder("=") not in _TYPES:
        found = tensor.dtype if isinstance(tensor, np.ndarray) else type(tensor).__name__
        expected = ", ".join(str(dtype) for dtype in _TYPES)
        raise InputError(
            f"tensor {shown(name)}:", tensor=name, expected=f"a QTensor or an array of {expected}", found=found
        )
    return _TYPES[tensor.dtype.newbyteorder("=")]


def _as_bytes(buffer: Any) -> Any:
    if isinstance(buffer, QTensor):
        buffer = buffer.data
    if isinstance(buffer, np.ndarray):
        # NumPy cannot export bfloat16 as a buffer, so arrays are passed as bytes.
        if buffer.dtype.hasobject:
            raise arguments.wrong("buffer", "numbers", buffer)
        return np.ascontiguousarray(buffer, buffer.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
    try:
        is_contiguous = memoryview(buffer).c_contiguous
    except TypeError:
        is_contiguous = False
    if not is_contiguous:
        raise arguments.wrong("buffer", "an array, a QTensor or a contiguous buffer", buffer)
    return buffer
