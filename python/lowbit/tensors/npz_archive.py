"""Packed tensors in NumPy's .npz files, without pickle.

A tensor NAME is two arrays: NAME.data, its bytes (uint8), and NAME.format, the format's name; a tensor without a name
is `data` and `format`. `numpy.load` reads them, too. Other arrays in a file are ignored.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from lowbit.base import arguments
from lowbit.base.atomic import AtomicFile
from lowbit.base.errors import Error, FileError, FormatError, InputError, UnsupportedError
from lowbit.base.files import open_file
from lowbit.base.foreign import ZIP_MAGIC, named
from lowbit.base.paths import AnyPath, checked
from lowbit.base.quoting import quoted, shown
from lowbit.tensors.formats import find_format
from lowbit.tensors.rows import check_packed

#: A tensor: its bytes and the name of its format.
Packed: TypeAlias = tuple[npt.NDArray[np.uint8], str]


#: Bytes of the longest array that can hold a format's name.
_MOST_NAME_BYTES = 1024
#: Bytes of the longest name of an array.
_MOST_ENTRY_BYTES = 65535
_PIECE = 16 << 20


def write(path: AnyPath, tensors: Mapping[str, Packed]) -> None:
    """Writes tensors by name, uncompressed, complete or not at all.

    Raises InputError for a name that an archive cannot have, FileError if the system refuses.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, (data, format) in tensors.items():
        if "\0" in arguments.text("name of a tensor", name):
            raise InputError(f"tensor {quoted(name)}:", tensor=name, expected="a name without NUL")
        if len(f"{_key(name, 'format')}.npy".encode()) > _MOST_ENTRY_BYTES:
            raise InputError(f"tensor {quoted(name)}: the name is too long for an .npz file", tensor=name)
        arrays |= {_key(name, "data"): data, _key(name, "format"): np.array(format)}
    with AtomicFile(path) as file, zipfile.ZipFile(cast(IO[bytes], file), "w") as archive:
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def read(path: AnyPath) -> dict[str, Packed]:
    """Every packed tensor of a file.

    Raises FileError if the file cannot be read, FormatError if it is damaged or has no packed tensor, UnsupportedError
    for compressed arrays and unknown formats.
    """
    with _opened(path) as (where, archive, size):
        members = archive.namelist()
        if len(set(members)) != len(members):
            raise FormatError("two arrays have the same name", path=where)
        found: dict[str, set[str]] = {}
        for member in members:
            name, _, kind = member.removesuffix(".npy").rpartition(".")
            if member.endswith(".npy") and kind in ("data", "format"):
                found.setdefault(name, set()).add(kind)
        if not found:
            raise FormatError("no packed tensors", path=where, expected="arrays NAME.data and NAME.format")
        for name, kinds in found.items():
            if len(kinds) == 1:
                raise FormatError(f"tensor {name!r} has only one of data and format", path=where, tensor=name)
        return {name: _Member(where, archive, name, size).tensor() for name in found}


def read_one(path: AnyPath, name: str) -> Packed:
    """The tensor with this name. Raises InputError if there is none, otherwise as `read` does."""
    with _opened(path) as (where, archive, size):
        if not {f"{_key(name, kind)}.npy" for kind in ("data", "format")} <= set(archive.namelist()):
            raise InputError(f"no packed tensor {name!r}", path=where, tensor=name)
        return _Member(where, archive, name, size).tensor()


def _key(name: str, kind: str) -> str:
    return f"{name}.{kind}" if name else kind


@contextmanager
def _opened(path: AnyPath) -> Iterator[tuple[str, zipfile.ZipFile, int]]:
    """The path as text, the archive, and the file's size."""
    where = checked(path)
    try:
        with os.fdopen(open_file(where), "rb") as file, zipfile.ZipFile(file) as archive:
            yield where, archive, os.fstat(file.fileno()).st_size
    except Error:
        raise
    except OSError as error:
        raise FileError.of(error, where) from None
    except (zipfile.BadZipFile, ValueError, EOFError, RuntimeError, OverflowError, struct.error) as error:
        with named(where, expected=ZIP_MAGIC):
            raise FormatError(f"not an .npz file: {shown(error, 200)}", path=where) from None


class _Member:
    """The two arrays of a tensor. Sizes that the archive states are checked against the file's size."""

    def __init__(self, path: str, archive: zipfile.ZipFile, name: str, file_size: int) -> None:
        self.path = path
        self.archive = archive
        self.name = name
        self.file_size = file_size

    def tensor(self) -> Packed:
        try:
            return self._tensor()
        except (FormatError, UnsupportedError) as error:
            error.about(f"tensor {self.name}: " if self.name else "", path=self.path, tensor=self.name)
            raise

    def _tensor(self) -> Packed:
        with self._open("format") as (file, size):
            if size > _MOST_NAME_BYTES:
                raise FormatError(f"format name of {size} bytes", expected=f"at most {_MOST_NAME_BYTES}", found=size)
            text = np.lib.format.read_array(file, allow_pickle=False)
        if text.dtype.kind != "U" or text.ndim:
            raise FormatError(expected="the name of a format", found=f"{text.dtype} {text.shape}")
        try:
            known = find_format(str(text))
        except InputError as error:
            raise error.turned(UnsupportedError) from None
        data = self._bytes()
        try:
            check_packed(data, known)
        except InputError as error:
            raise error.turned(FormatError) from None
        return data, known.name

    @contextmanager
    def _open(self, kind: str) -> Iterator[tuple[IO[bytes], int]]:
        info = self.archive.getinfo(f"{_key(self.name, kind)}.npy")
        if info.compress_type != zipfile.ZIP_STORED:
            raise UnsupportedError("the array is compressed: write the file with numpy.savez")
        if not info.file_size == info.compress_size <= self.file_size:
            raise FormatError(f"array of {info.file_size} bytes in a file of {self.file_size}")
        with self.archive.open(info) as file:
            yield file, info.file_size

    def _bytes(self) -> npt.NDArray[np.uint8]:
        with self._open("data") as (file, size):
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise FormatError(
                    f"version {version} of NumPy's array format", expected="(1, 0) or (2, 0)", found=version
                )
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            num_bytes = math.prod(shape)
            if dtype != np.uint8 or fortran or min(shape, default=-1) < 0 or num_bytes != size - file.tell():
                raise FormatError(expected=f"{size - file.tell()} bytes in C order", found=f"{dtype} {shape}")
            # zipfile checks the CRC when the last bytes are read.
            out = np.empty(num_bytes, np.uint8)
            for start in range(0, num_bytes, _PIECE):
                piece = file.read(min(_PIECE, num_bytes - start))
                out[start : start + _PIECE] = np.frombuffer(piece, np.uint8)
        return out.reshape(shape)
