"""`save_npz`, `load_npz`: packed tensors in NumPy's .npz files (npz_archive.py)."""

from __future__ import annotations

from collections.abc import Mapping

from lowbit.base import arguments
from lowbit.base.errors import InputError
from lowbit.base.paths import AnyPath
from lowbit.tensors import npz_archive
from lowbit.tensors.qtensor import QTensor

__all__ = ["load_npz", "save_npz"]


def save_npz(path: AnyPath, tensors: Mapping[str, QTensor]) -> None:
    """Writes tensors by name, uncompressed, complete or not at all.

    Raises InputError for a value that is not a QTensor or an invalid name, FileError if the system refuses.
    """
    for name, tensor in arguments.mapping("tensors", tensors).items():
        if not isinstance(tensor, QTensor):
            raise InputError(f"tensor {name!r}:", tensor=name, expected="a QTensor", found=type(tensor).__name__)
    npz_archive.write(path, {name: (tensor.data, tensor.format) for name, tensor in tensors.items()})


def load_npz(path: AnyPath) -> dict[str, QTensor]:
    """Reads every packed tensor of a file.

    Raises FileError if the file cannot be read, FormatError if it is damaged or has no packed tensor, UnsupportedError
    for compressed arrays and unknown formats.
    """
    return {name: QTensor(data, format) for name, (data, format) in npz_archive.read(path).items()}
