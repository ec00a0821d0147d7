"""Paths: `checked` validates every path that is read or written; `status` looks it up."""

from __future__ import annotations

import errno
import os
import stat

from lowbit.base.errors import FileError, InputError
from lowbit.base.quoting import quoted

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Identity = tuple[int, int]


def checked(path: object) -> str:
    """The path as text, with a leading `~` or `~user` expanded. Raises InputError for a path that no system allows.

    For a file with the name `~user` use `./~user`.
    """
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise InputError(expected="a path", found=type(path).__name__)
    try:
        text = os.fsdecode(path)
        encoded = os.fsencode(text)
    except TypeError:
        raise InputError(expected="a path", found=f"{type(path).__name__} without a usable __fspath__") from None
    except UnicodeError:
        raise InputError(f"path {quoted(path)}:", expected="text that the file system can encode") from None
    if not encoded:
        raise InputError(expected="a path", found="an empty text")
    if b"\0" in encoded:
        raise InputError(f"path {quoted(text)}:", expected="a path without NUL")
    if text.startswith("~"):
        return os.path.expanduser(text)
    # pathlib removes the "./", and paths are checked more than once.
    return os.path.abspath(text) if os.path.normpath(text).startswith("~") else text


def status(path: str | os.PathLike[str]) -> os.stat_result | None:
    """The status of a file or folder, links followed; None if it does not exist.

    Raises FileError if the system refuses: a name that is too long, circular links, no permission. `Path.is_file`
    raises some of these errors and returns False for others.
    """
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise FileError.of(error, path) from None
    except ValueError as error:  # NUL, or text that cannot be encoded, in a path that was read from a file
        raise FileError(str(error), path=path) from None


def identity(found: os.stat_result) -> Identity:
    """Device and number, which are equal for links to one file."""
    return found.st_dev, found.st_ino


def target(path: object) -> bytes:
    """A path to write to, in C++'s form. Raises as `checked` and `status` do."""
    text = checked(path)
    status(text)
    return os.fsencode(text)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether a regular file exists. Raises FileError as `status` does."""
    found = status(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_dir(path: str | os.PathLike[str]) -> bool:
    """Whether a folder exists. Raises FileError as `status` does."""
    found = status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def check_regular(path: str | os.PathLike[str], found: os.stat_result, text: str = "") -> None:
    """Raises FileError unless the file is regular: reading a pipe or a device may never end."""
    if not stat.S_ISREG(found.st_mode):
        is_folder = stat.S_ISDIR(found.st_mode)
        raise FileError(
            text,
            path=path,
            errno=errno.EISDIR if is_folder else errno.EINVAL,
            expected="a regular file",
            found="a folder" if is_folder else "a device or pipe",
        )
