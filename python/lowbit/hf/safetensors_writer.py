"""Writes safetensors files: a JSON header, then the tensors' bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from lowbit.base.atomic import AtomicFile
from lowbit.base.errors import InputError
from lowbit.hf.checkpoint import ITEM_BYTES, MAX_HEADER_BYTES

#: The header ends at a multiple of this, so that elements of all types are aligned in a map of the file.
_ALIGNMENT = 8


class TensorInfo(NamedTuple):
    """A tensor to write. dtype: its name in safetensors files, for example "BF16"."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the elements."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class SafetensorsWriter:
    """Appends tensors after the header. The file gets its name when the `with` block ends without an exception."""

    def __init__(self, path: str, infos: Iterable[TensorInfo]) -> None:
        """Writes the header. Raises InputError if it is longer than readers allow, FileError if the system refuses."""
        header = _header(path, infos)
        self._file = AtomicFile(path)
        self._file.write(header)

    def write(self, rows: np.ndarray) -> None:
        """Appends rows or bytes of a tensor."""
        self._file.write(rows.reshape(-1).view(np.uint8))

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, value, where)


def _header(path: str, infos: Iterable[TensorInfo]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for info in infos:
        end = at + info.num_bytes
        header[info.name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise InputError(
            f"a header of {len(text)} bytes", path=path, expected=f"at most {MAX_HEADER_BYTES}", found=len(text)
        )
    return len(text).to_bytes(8, "little") + text
