"""Files read at offsets into memory of one's own, so that resident memory is what is held, not what was touched; or
mapped; small ones whole."""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from pathlib import Path

from lowbit._core import FileError, FormatError


def read_bytes(path: Path, max_bytes: int | None = None) -> bytes:
    """A file's content. Raises FileError, and FormatError if it has more than so many bytes."""
    try:
        size = path.stat().st_size
        if max_bytes is not None and size > max_bytes:
            raise FormatError(f"{path}: {size} bytes, expected at most {max_bytes}")
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from None


def read_text(path: Path, max_bytes: int | None = None) -> str:
    """A file's text in UTF-8, whatever its line ends are with those of Unix: templates and lists. Raises as
    `read_bytes` does."""
    return decoded(read_bytes(path, max_bytes), str(path)).replace("\r\n", "\n").replace("\r", "\n")


def read_model_text(path: Path) -> str:
    """A text that a model reads: as the bytes are (line ends, marks), without one line feed at its end.

    llama.cpp's tools read files so. Raises as `read_bytes` does.
    """
    return decoded(read_bytes(path), str(path)).removesuffix("\n")


def decoded(data: bytes, where: str) -> str:
    """Bytes as text, unchanged. Raises FormatError for what is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: not UTF-8 at offset {error.start}") from None


class FileReader:
    """A file that several threads read at offsets. Closed when nothing refers to it any more."""

    def __init__(self, path: Path) -> None:
        """Raises FileError if the file cannot be opened."""
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
            weakref.finalize(self, os.close, self._descriptor)
            self.size = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise FileError(f"{path}: {error.strerror}") from None
        self._lock = threading.Lock()
        self._map: mmap.mmap | None = None

    def map(self, offset: int, size: int) -> memoryview:
        """`size` bytes (1 at least) from the offset, read-only, whose pages the system reads and drops as it likes."""
        try:
            with self._lock:
                self._map = self._map or mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise FileError(f"{self.path}: cannot be mapped: {error}") from None
        part = memoryview(self._map)[offset : offset + size]
        if len(part) != size:
            raise FileError(f"{self.path}: the file became shorter while it was read, at offset {offset + len(part)}")
        return part

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fills `out` (bytes) from the offset, or raises FileError."""
        done = 0
        while done < len(out):
            got = self._read_some(offset + done, out[done:])
            if got == 0:
                raise FileError(f"{self.path}: the file became shorter while it was read, at offset {offset + done}")
            done += got

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from the offset."""
        out = bytearray(size)
        self.read_into(offset, memoryview(out))
        return bytes(out)

    def _read_some(self, offset: int, out: memoryview) -> int:
        try:
            if hasattr(os, "preadv"):
                return os.preadv(self._descriptor, [out[: 1 << 30]], offset)
            with self._lock:  # Windows has no pread
                os.lseek(self._descriptor, offset, os.SEEK_SET)
                data = os.read(self._descriptor, min(len(out), 1 << 24))
                out[: len(data)] = data
                return len(data)
        except OSError as error:
            raise FileError(f"{self.path}: {error.strerror} at offset {offset}") from None
