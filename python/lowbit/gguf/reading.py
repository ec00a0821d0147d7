"""Reading GGUF files: files are memory-mapped, tensors are views of the map."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lowbit import _core
from lowbit.base.dtypes import FLOATS
from lowbit.base.errors import FileError, InputError, UnsupportedError
from lowbit.base.foreign import GGUF_MAGIC, named
from lowbit.base.operation import reading
from lowbit.base.paths import AnyPath, Identity, checked, identity, status
from lowbit.tensors.qtensor import QTensor

Path: TypeAlias = AnyPath
Tensor: TypeAlias = QTensor | npt.NDArray[Any]

#: Tensor types that are plain arrays.
DTYPES: dict[str, np.dtype[Any]] = {
    **FLOATS,
    "F64": np.dtype(np.float64),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
}
#: Keys that identify the files of a split model; a model in one file has none.
SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")


class TensorInfo(NamedTuple):
    """A tensor's description in a file: name, shape in NumPy's order, and format ("Q4_K", "F32", "I32", ...)."""

    name: str
    shape: tuple[int, ...]
    format: str


class Place(NamedTuple):
    """The place of a tensor's data: `num_bytes` bytes at `offset` in the file `File.paths[path]`."""

    num_bytes: int
    path: int
    offset: int


def strings(metadata: Mapping[str, Any], key: str) -> list[str] | _core.GgufStrings | None:
    """An array of strings, of an open file without a Python object for each string; None for other values."""
    if isinstance(metadata, _Metadata):
        return metadata.strings(key)
    value = metadata.get(key)
    is_texts = isinstance(value, list) and all(issubclass(kind, str) for kind in set(map(type, value)))
    return value if is_texts else None


def _identity(path: str) -> Identity | None:
    """The identity of the file that now has this path, or None."""
    found = status(path)
    return found and identity(found)


def open(path: Path) -> File:
    """Opens a GGUF file, or all files of a split model (NAME-00001-of-0000N.gguf) if `path` names one of them.

    Raises FileError if a file cannot be read, FormatError if it is not a valid GGUF file, UnsupportedError for version
    1, big-endian files, nested arrays in the metadata and unknown tensor types.
    """
    return File(path)


class File:
    """An open GGUF file. A context manager; views of tensors outlive it.

    `metadata`: key -> bool, int, float, str, list of str, or read-only array of numbers.
    `tensors`: name -> array view (F32, F16, BF16, F64, I8, I16, I32, I64) or QTensor on a view. Access raises
    UnsupportedError for a format of ggml that lowbit cannot decode.
    `infos`: name -> TensorInfo, for every tensor.
    All three have the file's order. `paths`: the files, more than one if the model is split.
    """

    def __init__(self, path: Path) -> None:
        self.path = checked(path)
        files = _files(self.path)
        self._identities = {each: _identity(each) for each in files[:2]}
        if self._identities[self.path] is None and (others := sum(map(os.path.exists, files[1:]))):
            raise FileError(
                f"no such file, but {others} others of the split model: the model is incomplete, its writing may have "
                "been interrupted",
                path=self.path,
                errno=errno.ENOENT,
            )
        with named(*files, expected=GGUF_MAGIC):
            self._core: _core.GgufFile | None = _core.GgufFile.open(os.fsencode(self.path))
        self.version = self._core.version
        self.alignment = self._core.alignment
        self._keys = {key: index for index, key in enumerate(self._core.keys())}
        self._typed: dict[str, Any] = {}
        self.paths = [os.fsdecode(path) for path in self._core.paths()]
        if len(self.paths) > 1:
            self.check_in_place()
        for each in self.paths:
            reading(each)
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

        Writing it again gives the same bytes. Raises KeyError for an unknown key.
        """
        if key not in self._typed:
            value = self._opened().value(self._keys[key])
            if isinstance(value, np.ndarray):
                value.flags.writeable = False
                value = value if value.ndim else value[()]
            self._typed[key] = value
        return self._typed[key]

    def check_in_place(self) -> None:
        """Raises FileError if the files in `paths` are no longer those that were opened.

        For a split model the first file is checked. A writer removes it before the others and writes it last
        (`file_sets.replacing_set`), so if it is unchanged, all files belong to one model.
        """
        if _identity(self.paths[0]) != self._identities[self.paths[0]]:
            raise FileError("the file was replaced while it was opened: open it again", path=self.paths[0])

    def num_bytes(self, name: str) -> int:
        """Bytes of a tensor's data. Raises KeyError for an unknown tensor."""
        return self._places[self._indices[name]].num_bytes

    def place(self, name: str) -> Place:
        """The place of a tensor's data. Raises KeyError for an unknown tensor."""
        return self._places[self._indices[name]]

    def close(self) -> None:
        """Releases the map. It stays mapped as long as views of it exist."""
        self._core = None

    def _opened(self) -> _core.GgufFile:
        if self._core is None:
            raise InputError("the file is closed", path=self.path)
        return self._core

    def _tensor(self, name: str) -> Tensor:
        index = self._indices[name]
        _, shape, format = self.infos[name]
        data = self._opened().data(index)
        if dtype := DTYPES.get(format):
            return data.view(dtype).reshape(shape)
        known = next((known for known in _core.formats() if known.name == format), None)
        if known is None:
            raise UnsupportedError(f"tensor {name}: lowbit cannot decode {format}", path=self.path, tensor=name)
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


def _files(path: str) -> list[str]:
    """The path, followed by all paths of its split model if it has the name of such a file."""
    if split := re.fullmatch(r"(.*-)\d{5}(-of-(\d{5})\.gguf)", path, re.ASCII | re.DOTALL):
        return [path, *(f"{split[1]}{number:05}{split[2]}" for number in range(1, int(split[3]) + 1))]
    return [path]


class _Metadata(Mapping[str, Any]):
    def __init__(self, file: File) -> None:
        self._file = file

    def __getitem__(self, key: str) -> Any:
        value = self._file.typed(key)
        return value.item() if isinstance(value, np.generic) else value

    def strings(self, key: str) -> _core.GgufStrings | None:
        """See the function `strings`."""
        return self._file._opened().strings(self._file._keys[key]) if key in self else None

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
