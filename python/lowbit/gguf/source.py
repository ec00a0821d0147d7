"""Tensors of GGUF files as sources. They are read, not mapped: touched pages of a map count as resident memory."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from lowbit import gguf
from lowbit.base.dtypes import FLOATS
from lowbit.base.errors import UnsupportedError
from lowbit.base.files import FileReader
from lowbit.tensors.source import Decoded, FileRows, TensorSource


class GgufTensor:
    """A tensor of a file. Calling it with a target format returns a source: bytes to copy, or rows of floats."""

    def __init__(self, info: gguf.TensorInfo, place: gguf.Place, reader: FileReader) -> None:
        self.info = info
        self.place = place
        self.reader = reader

    def __call__(self, format: str) -> TensorSource:
        """Rows for a target of this format; if the format is the same, rows of bytes."""
        _, shape, before = self.info
        if before in FLOATS and format != before:
            return self._rows((math.prod(shape[:-1]), shape[-1]), FLOATS[before])
        packed = self._packed()
        return packed if format == before else Decoded(packed, before)

    def weights(self) -> TensorSource:
        """The weights as floats, in the tensor's shape. Raises UnsupportedError for integers, and for blocks outside a
        matrix."""
        name, shape, format = self.info
        if format in FLOATS:
            return self._rows(shape, FLOATS[format])
        if format in gguf.DTYPES or len(shape) != 2:
            raise UnsupportedError(
                f"tensor {name}: {format} {list(shape)}", tensor=name, expected="floats, or a packed matrix"
            )
        return Decoded(self._packed(), format)

    def _packed(self) -> FileRows:
        num_rows = math.prod(self.info.shape[:-1])
        return self._rows((num_rows, self.place.num_bytes // max(1, num_rows)), np.dtype(np.uint8))

    def _rows(self, shape: tuple[int, ...], dtype: np.dtype) -> FileRows:
        return FileRows(self.info.name, shape, dtype, self.reader, self.place.offset)


def gguf_tensors(file: gguf.File) -> dict[str, GgufTensor]:
    """All tensors by name, in the file's order. They can be read after the file is closed."""
    readers = [FileReader(Path(path)) for path in file.paths]
    file.check_in_place()
    places = {name: file.place(name) for name in file.infos}
    return {name: GgufTensor(info, places[name], readers[places[name].path]) for name, info in file.infos.items()}
