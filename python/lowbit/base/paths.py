"""Paths: every one that comes in, to be read or written, passes `checked`; what lies there is told by `status`."""

from __future__ import annotations

import errno
import os
import stat

from lowbit.base.errors import FileError, InputError
from lowbit.base.quoting import quoted

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Identity = tuple[int, int]


def checked(path: object) -> str:
    """The path as text. Raises InputError for what no system can have as a path."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise InputError(expected="a path", found=type(path).__name__)
    try:
        text = os.fsdecode(path)
        encoded = os.fsencode(text)
    except TypeError:
        raise InputError(expected="a path", found=f"{type(path).__name__}, which gives none") from None
    except UnicodeError:
        raise InputError(f"path {quoted(path)}:", expected="text that the file system can encode") from None
    if not encoded:
        raise InputError(expected="a path", found="an empty text")
    if b"\0" in encoded:
        raise InputError(f"path {quoted(text)}:", expected="one without NUL")
    return text


def status(path: str | os.PathLike[str]) -> os.stat_result | None:
    """What the system says of a file or folder, links followed; None if there is none.

    Raises FileError if the system refuses: a name that is too long, links that lead in a circle, no permission.
    `Path.is_file` lets some of these errors through and takes others for "no".
    """
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise FileError.of(error, path) from None
    except ValueError as error:  # of a name that a file gave: NUL, or text that cannot be encoded
        raise FileError(str(error), path=path) from None


def identity(found: os.stat_result) -> Identity:
    """Device and number, by which links to one file are the same."""
    return found.st_dev, found.st_ino


def target(path: object) -> bytes:
    """A path to write to, as C++ takes it. Raises as `checked` and `status` do."""
    text = checked(path)
    status(text)
    return os.fsencode(text)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether a regular file is there. Raises FileError as `status` does."""
    found = status(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_dir(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is there. Raises FileError as `status` does."""
    found = status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def check_regular(path: str | os.PathLike[str], found: os.stat_result, text: str = "") -> None:
    """Raises FileError for what is no regular file: reading a pipe can wait, and a device can give, for ever."""
    if not stat.S_ISREG(found.st_mode):
        is_folder = stat.S_ISDIR(found.st_mode)
        raise FileError(
            text,
            path=path,
            errno=errno.EISDIR if is_folder else errno.EINVAL,
            expected="a regular file",
            found="a folder" if is_folder else "a device or pipe",
        )
