"""GGUF files: `open` for reading, `write` and `Writer` for writing.

Reading maps the file: opening costs time and memory for the metadata alone, and tensors are read-only views of the
map, which lives as long as any of them. A file that somebody cuts short while it is mapped ends the process (SIGBUS)
when the lost bytes are touched; replacing it by rename, as `Writer` does, is safe.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

from lowbit import _core
from lowbit._core import InputError, UnsupportedError
from lowbit.qtensor import QTensor

__all__ = ["DTYPES", "SPLIT_KEYS", "File", "Place", "TensorInfo", "Writer", "file_size", "open", "write"]

Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Tensor: TypeAlias = QTensor | npt.NDArray[Any]

#: Tensor types that are plain arrays.
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype(np.float64),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
}
#: Keys that tell the files of a split model apart; a whole one has none.
SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
_TYPES = {dtype: name for name, dtype in DTYPES.items()}


class TensorInfo(NamedTuple):
    """What a file says of a tensor: name, shape in NumPy's order, and format ("Q4_K", "F32", "I32", ...)."""

    name: str
    shape: tuple[int, ...]
    format: str


class Place(NamedTuple):
    """Where a tensor's data lies: `num_bytes` from `offset` on in the file `File.paths[path]`."""

    num_bytes: int
    path: int
    offset: int


def open(path: Path) -> File:
    """Opens a GGUF file, or all files of a split model (NAME-00001-of-0000N.gguf) if `path` names one of them.

    Raises FileError if a file cannot be read, FormatError if it is not a valid GGUF file, UnsupportedError for version
    1, big-endian files, nested arrays in the metadata and unknown tensor types.
    """
    return File(path)


class File:
    """An open GGUF file. A context manager; views of tensors outlive it.

    `metadata`: key -> bool, int, float, str, list of str, or read-only array of numbers.
    `tensors`: name -> array view (F32, F16, BF16, F64, I8, I16, I32, I64) or QTensor on a view, made at each access;
    raises UnsupportedError for a format of ggml that lowbit cannot decode.
    `infos`: name -> TensorInfo, for every tensor.
    All three keep the file's order. `paths`: the files, several if the model is split.
    """

    def __init__(self, path: Path) -> None:
        self._core: _core.GgufFile | None = _core.GgufFile.open(os.fsencode(path))
        self.path = os.fsdecode(path)
        self.version = self._core.version
        self.alignment = self._core.alignment
        self._keys = {key: index for index, key in enumerate(self._core.keys())}
        self._typed: dict[str, Any] = {}
        self.paths = [os.fsdecode(path) for path in self._core.paths()]
        tensors = self._core.tensors()
        self._places = [Place(num_bytes, path, offset) for *_, num_bytes, path, offset in tensors]
        self._indices = {name: index for index, (name, *_) in enumerate(tensors)}
        self.infos: Mapping[str, TensorInfo] = {
            name: TensorInfo(name, shape, format) for name, format, shape, *_ in tensors
        }
        self.metadata: Mapping[str, Any] = _Metadata(self)
        self.tensors: Mapping[str, Tensor] = _Tensors(self)

    def typed(self, key: str) -> Any:
        """The value with its type in the file: NumPy scalar or read-only array, str, or list of str.

        Writing it again gives the same bytes. Raises KeyError if there is no such key.
        """
        if key not in self._typed:
            value = self._opened().value(self._keys[key])
            if isinstance(value, np.ndarray):
                value.flags.writeable = False
                value = value if value.ndim else value[()]
            self._typed[key] = value
        return self._typed[key]

    def num_bytes(self, name: str) -> int:
        """Bytes of a tensor's data. Raises KeyError if there is no such tensor."""
        return self._places[self._indices[name]].num_bytes

    def place(self, name: str) -> Place:
        """Where a tensor's data lies. Raises KeyError if there is no such tensor."""
        return self._places[self._indices[name]]

    def close(self) -> None:
        """Lets go of the map, which stays as long as views of it do."""
        self._core = None

    def _opened(self) -> _core.GgufFile:
        if self._core is None:
            raise InputError(f"{self.path}: the file is closed")
        return self._core

    def _tensor(self, name: str) -> Tensor:
        index = self._indices[name]
        _, shape, format = self.infos[name]
        data = self._opened().data(index)
        if dtype := DTYPES.get(format):
            return data.view(dtype).reshape(shape)
        known = next((known for known in _core.formats() if known.name == format), None)
        if known is None:
            raise UnsupportedError(f"{self.path}: tensor {name}: lowbit cannot decode {format}")
        row_bytes = shape[-1] // known.block_size * known.block_bytes
        return QTensor(data.reshape(*shape[:-1], row_bytes), format)

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<lowbit.gguf.File {self.path!r}: version {self.version}, "
            f"{len(self.metadata)} keys, {len(self.tensors)} tensors>"
        )


class _Metadata(Mapping[str, Any]):
    def __init__(self, file: File) -> None:
        self._file = file

    def __getitem__(self, key: str) -> Any:
        value = self._file.typed(key)
        return value.item() if isinstance(value, np.generic) else value

    def __contains__(self, key: object) -> bool:
        return key in self._file._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._file._keys)

    def __len__(self) -> int:
        return len(self._file._keys)


class _Tensors(Mapping[str, Tensor]):
    def __init__(self, file: File) -> None:
        self._file = file

    def __getitem__(self, name: str) -> Tensor:
        return self._file._tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._file._indices

    def __iter__(self) -> Iterator[str]:
        return iter(self._file._indices)

    def __len__(self) -> int:
        return len(self._file._indices)


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
    entries = [(_checked_name("key", key), _encoded(key, value)) for key, value in metadata.items()]
    return _core.GgufPlan(
        entries, [(_checked_name("tensor", n), format, _checked_shape(n, s)) for n, s, format in infos]
    )


def _checked_name(kind: str, name: str) -> str:
    try:
        name.encode()
    except (AttributeError, UnicodeEncodeError):
        raise InputError(f"{kind} {name!r}: expected a name that UTF-8 can encode") from None
    return name


def _checked_shape(name: str, shape: Iterable[int]) -> tuple[int, ...]:
    sizes = tuple(int(n) for n in shape)
    if any(not 0 <= n < 1 << 63 for n in sizes):
        raise InputError(f"tensor {name}: expected sizes from 0 to 2**63 - 1, got {sizes}")
    return sizes


def _encoded(key: str, value: Any) -> str | list[str] | npt.NDArray[Any]:
    """The value as the core takes it: str, list of str, or contiguous little-endian array, no axes for a scalar."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if array.ndim > 1:
            raise InputError(f"key {key}: GGUF metadata has no arrays of arrays, got shape {array.shape}")
        return np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    if isinstance(value, bool):
        return np.array(value)
    if isinstance(value, int):
        dtypes = (np.uint32, np.uint64) if value >= 0 else (np.int32, np.int64)
        for dtype in dtypes:
            if np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
                return np.array(value, dtype)
        raise InputError(f"key {key}: expected an integer of at most 64 bits, got {value}")
    if isinstance(value, float):
        with np.errstate(over="ignore"):
            number = np.array(value, np.float32)
        if math.isfinite(value) and not np.isfinite(number):
            raise InputError(f"key {key}: {value} exceeds float32, in which a Python float is stored; use np.float64")
        return number
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return list(value)
    raise InputError(
        f"key {key}: expected str, bool, int, float, list of str, NumPy scalar or array, got {type(value).__name__}"
    )


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
