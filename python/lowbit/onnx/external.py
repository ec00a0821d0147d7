"""The files beside a model that hold bytes of its tensors.

A location is a relative path. It must stay in the model's folder, also after links are followed. In the Hugging Face
cache the model and its files are links into a folder of blobs: a file beside the blob of the model is accepted, too.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from lowbit.base.errors import FileError, FormatError
from lowbit.base.files import FileReader
from lowbit.base.quoting import quoted
from lowbit.onnx.dtypes import Bytes
from lowbit.onnx.tensor import External


class Files:
    """The opened files beside a model."""

    def __init__(self, model: str) -> None:
        self._folder = os.path.dirname(model) or "."
        self._roots = {os.path.realpath(self._folder), os.path.dirname(os.path.realpath(model))}
        self.opened: dict[str, FileReader] = {}  #: by location

    def __call__(self, place: External, nbytes: int) -> Bytes:
        """The bytes of a place: a view. Raises FileError or FormatError."""
        file = self.opened.get(place.location)
        if file is None:
            file = self.opened[place.location] = FileReader(Path(self._path(place.location)))
        length = nbytes if place.length is None else place.length
        if place.offset > file.size or length > file.size - place.offset:
            raise FormatError(
                f"bytes {place.offset} to {place.offset + length} of the file {quoted(place.location)}, which has "
                f"{file.size} bytes: it is cut off, or of another model",
                offset=place.offset,
            )
        return file.map(place.offset, length)

    def _path(self, location: str) -> str:
        check_location(location)
        path = os.path.join(self._folder, location)
        real = os.path.realpath(path)
        if not any(real.startswith(os.path.join(root, "")) for root in self._roots):
            raise FormatError(f"the file {quoted(location)} is a link that leaves the model's folder")
        if not os.path.exists(path):
            raise FileError(
                f"the file {quoted(location)} beside the model does not exist", path=path, errno=errno.ENOENT
            )
        return path


def check_location(location: str) -> None:
    """Raises FormatError unless it is a relative path that cannot leave a folder, on any system."""
    parts = PurePosixPath(location).parts
    windows = PureWindowsPath(location)
    if not parts or "\0" in location or "\\" in location or location.startswith("/") or windows.drive or ".." in parts:
        raise FormatError(f"the file {quoted(location)}:", expected="a relative path inside the model's folder")
