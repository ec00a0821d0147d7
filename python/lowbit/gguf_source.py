"""Tensors of GGUF files as sources. They are read, not mapped: what is mapped and touched counts as memory."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from lowbit import gguf
from lowbit.file_reader import FileReader
from lowbit.recipes import FLOAT_FORMATS
from lowbit.tensor_source import Decoded, FileRows, TensorSource


class GgufTensor:
    """Opens a tensor as what a target format wants of it: bytes to copy, or rows of floats."""

    def __init__(self, info: gguf.TensorInfo, place: gguf.Place, reader: FileReader) -> None:
        self.info = info
        self.place = place
        self.reader = reader

    def __call__(self, format: str) -> TensorSource:
        """Rows for a target of this format; bytes of its own one have a row each, too."""
        name, shape, before = self.info
        num_rows = math.prod(shape[:-1])
        if before in FLOAT_FORMATS and format != before:
            dtype = gguf.DTYPES[before]
            return FileRows(name, (num_rows, shape[-1]), dtype, self.reader, self.place.offset)
        row_bytes = self.place.num_bytes // max(1, num_rows)
        source = FileRows(name, (num_rows, row_bytes), np.dtype(np.uint8), self.reader, self.place.offset)
        return source if format == before else Decoded(source, before)


def gguf_tensors(file: gguf.File) -> dict[str, GgufTensor]:
    """All tensors by name, in the file's order. They can be read when the file is closed."""
    readers = [FileReader(Path(path)) for path in file.paths]
    places = {name: file.place(name) for name in file.infos}
    return {name: GgufTensor(info, places[name], readers[places[name].path]) for name, info in file.infos.items()}
