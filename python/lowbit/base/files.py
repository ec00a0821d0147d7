"""Reading of files: at offsets into private memory, mapped, or whole if they are small.

Touched pages of a map count as resident memory. With reads at offsets only the data that is held counts.
"""

from __future__ import annotations

import os
import stat
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit import _core
from lowbit.base.errors import FileError, FormatError
from lowbit.base.operation import reading
from lowbit.base.paths import check_regular, checked, identity

if TYPE_CHECKING:
    import numpy as np

#: The most bytes of a text file.
MAX_TEXT_BYTES = 1 << 30
_PIECE = 1 << 20
_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
# With this flag a pipe without a writer opens at once, so it can be refused.
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)


def open_file(path: str | os.PathLike[str], *, pipes: bool = False) -> int:
    """A descriptor of a regular file or, with `pipes`, of a pipe. Opens every file that Python reads.

    Raises FileError for anything else, InputError if the operation will replace the file.
    """
    where = checked(path)
    try:
        descriptor = os.open(where, _FLAGS | _NONBLOCK)
    except OSError as error:
        raise FileError.of(error, where) from None
    try:
        found = os.fstat(descriptor)
        if not (pipes and stat.S_ISFIFO(found.st_mode)):
            check_regular(where, found)
        reading(where, found)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_bytes(path: str | os.PathLike[str], max_bytes: int, *, pipes: bool = False) -> bytes:
    """A file's content. Raises FileError, and FormatError if it has more bytes than allowed.

    pipes: also reads pipes until their writers close them; a pipe without a writer is empty.
    """
    descriptor = open_file(path, pipes=pipes)
    try:
        is_pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
        if is_pipe:
            os.set_blocking(descriptor, True)
        size = os.fstat(descriptor).st_size
        if size > max_bytes:
            raise FormatError(f"{size} bytes", path=path, expected=f"at most {max_bytes}", found=size)
        parts = [os.read(descriptor, size + 1)]
        total = len(parts[0])
        while parts[-1]:
            if total > max_bytes:
                raise FormatError(f"more than {max_bytes} bytes", path=path)
            parts.append(os.read(descriptor, min(_PIECE, max_bytes + 1 - total)))
            total += len(parts[-1])
        return b"".join(parts[:-1])
    except OSError as error:
        raise FileError.of(error, path) from None
    finally:
        os.close(descriptor)


def read_text(path: str | os.PathLike[str], max_bytes: int = MAX_TEXT_BYTES, *, pipes: bool = False) -> str:
    """A file's UTF-8 text with Unix line ends, for templates and lists. Raises as `read_bytes` does."""
    text = decoded(read_bytes(path, max_bytes, pipes=pipes), str(path))
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_model_text(path: str | os.PathLike[str]) -> str:
    """A text for a model, from a file or pipe. Line ends and byte order marks stay; one final line feed is removed.

    llama.cpp's tools read files this way. Raises as `read_bytes` does.
    """
    return decoded(read_bytes(path, MAX_TEXT_BYTES, pipes=True), str(path)).removesuffix("\n")


def decoded(data: bytes, where: str) -> str:
    """Bytes as text, unchanged. Raises FormatError if they are not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"not UTF-8 at offset {error.start}", path=where, offset=error.start) from None


class FileReader:
    """A file that several threads can read at offsets. It is closed when the last reference to it is gone."""

    def __init__(self, path: Path) -> None:
        """Raises as `open_file` does."""
        self.path = path
        self._descriptor = open_file(path)
        weakref.finalize(self, os.close, self._descriptor)
        found = os.fstat(self._descriptor)
        self.size = found.st_size
        #: Device and number of the file, to detect that its path now names another one.
        self.identity = identity(found)
        self._lock = threading.Lock()
        self._map: _core.MappedFile | None = None

    def map(self, offset: int, size: int) -> np.ndarray:
        """`size` bytes from the offset, read-only. The system reads and drops their pages on demand.

        `lowbit.gguf` describes what happens if the file is truncated.
        """
        self._map = self._map or _core.MappedFile.of_descriptor(self._descriptor, os.fsencode(self.path))
        return self._map.bytes(offset, size)

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fills `out` (bytes) from the offset, or raises FileError."""
        done = 0
        while done < len(out):
            got = self._read_some(offset + done, out[done:])
            if got == 0:
                raise FileError(
                    f"the file became shorter while it was read, at offset {offset + done}",
                    path=self.path,
                    offset=offset + done,
                )
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
            raise FileError.of(error, self.path, f"at offset {offset}", offset=offset) from None
