"""The exceptions of lowbit, including those of the core (src/base/error.h): classes, fields and messages."""

from __future__ import annotations

import os
from typing import Any, TypeVar

from lowbit.base.quoting import MOST_MESSAGE, one_line, shown

_Error = TypeVar("_Error", bound="Error")
_FileError = TypeVar("_FileError", bound="FileError")

_FIELDS = ("path", "tensor", "key", "offset", "expected", "found")


class Error(Exception):
    """The base of all errors that lowbit raises on purpose. The message is one printable line of bounded length.

    Fields, None where they do not apply: path (of a file or folder), tensor (its name), key (of GGUF metadata or of a
    JSON file), offset (in bytes from the start of the file), expected and found (text, as in the message).

    The message is "PATH: TEXT, expected EXPECTED". If the text is empty or ends with a colon, it is
    "PATH: TEXT expected EXPECTED, found FOUND". The other fields are not added: the text mentions them.
    """

    _FOUND = "found"

    def __init__(
        self,
        text: str = "",
        *,
        path: str | bytes | os.PathLike[str] | None = None,
        tensor: str | None = None,
        key: str | None = None,
        offset: int | None = None,
        expected: object = None,
        found: object = None,
        rest: str = "",
    ) -> None:
        """rest: the end of the message, after the expected and found values; it starts with its own punctuation."""
        self.args = (one_line(text),)
        self.path = None if path is None else os.fsdecode(path)
        self.tensor = tensor
        self.key = key
        self.offset = offset
        self.expected = None if expected is None else shown(expected, MOST_MESSAGE)
        self.found = None if found is None else shown(found, MOST_MESSAGE)
        self._rest = rest

    @property
    def fields(self) -> dict[str, Any]:
        """The fields by name."""
        return {name: getattr(self, name) for name in _FIELDS}

    @property
    def text(self) -> str:
        """The message without the path, the expected and the found value."""
        return str(self.args[0])

    def __str__(self) -> str:
        message = self.text
        if self.expected is not None:
            if message and not message.endswith(":"):
                message += f", expected {self.expected}"
            else:
                found = "" if self.found is None else f", {self._FOUND} {self.found}"
                message += f"{' ' if message else ''}expected {self.expected}{found}"
        return one_line(f"{self.path}: {message}{self._rest}" if self.path else message + self._rest)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def about(
        self,
        text: str = "",
        *,
        path: str | os.PathLike[str] | None = None,
        tensor: str | None = None,
        key: str | None = None,
    ) -> None:
        """Prepends a text to the message, and sets the given fields that are still None."""
        self.args = (one_line(text + self.text if self.text else text.rstrip()),)
        if self.path is None and path is not None:
            self.path = os.fspath(path)
        self.tensor = self.tensor or tensor
        self.key = self.key or key

    def turned(self, kind: type[_Error], **fields: Any) -> _Error:
        """An error of another class with the same text and fields, except for the given fields."""
        return kind(self.text, rest=self._rest, **{**self.fields, **fields})

    # Copies do not call __init__: derived classes may give it other arguments.
    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args, {}), self.__dict__


def _restored(kind: type[Error], args: tuple[Any, ...], new: dict[str, Any]) -> Error:
    error = kind.__new__(kind, **new)
    error.args = args
    return error


class FormatError(Error):
    """A file's content is not what its format allows."""


class FileError(Error, OSError):
    """The operating system refused: missing file, no permission, disk full.

    Also an instance of Python's exception for its errno, for example FileNotFoundError. errno is None if the cause
    is not a failed system call.
    """

    errno: int | None = None
    strerror: str | None = None

    def __new__(cls, *args: Any, errno: int | None = None, **fields: Any) -> FileError:
        """An instance of this class and of Python's exception for errno."""
        return super().__new__(_of_kind(cls, OSError if errno is None else type(OSError(errno, ""))))

    def __init__(self, text: str = "", *, errno: int | None = None, **fields: Any) -> None:
        super().__init__(text, **fields)
        if errno is not None:
            self.errno, self.strerror = errno, os.strerror(errno)

    @classmethod
    def of(
        cls: type[_FileError], error: OSError, path: str | os.PathLike[str], text: str = "", **fields: Any
    ) -> _FileError:
        """The error for a failed system call; an error of this class is returned unchanged. text: the failed action."""
        if isinstance(error, cls):
            return error
        reason = error.strerror or str(error)
        return cls(f"{text}: {reason}" if text else reason, path=path, errno=error.errno, **fields)

    @property
    def filename(self) -> str | None:
        """The path."""
        return self.path

    @filename.setter
    def filename(self, path: str | None) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        plain = getattr(self, "_plain", type(self))
        return _restored, (plain, self.args, {"errno": self.errno}), self.__dict__


_KINDS: dict[tuple[type[FileError], type[OSError]], type[FileError]] = {}


def _of_kind(cls: type[FileError], kind: type[OSError]) -> type[FileError]:
    """The class, derived also from one of Python's, so that `except FileNotFoundError` catches it."""
    if issubclass(cls, kind):
        return cls
    if (cls, kind) not in _KINDS:
        names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__, "_plain": cls}
        _KINDS[cls, kind] = type(cls.__name__, (cls, kind), names)
    return _KINDS[cls, kind]


class UnsupportedError(Error):
    """A valid file with something that lowbit does not support: an unknown architecture or tensor type."""


class InputError(Error, ValueError):
    """An argument is wrong: shape, dtype, range, NaN in the weights."""

    _FOUND = "got"


class ContextFullError(Error):
    """The key-value cache has no room for the tokens of a call."""


for _class in (Error, FormatError, FileError, UnsupportedError, InputError, ContextFullError):
    _class.__module__ = "lowbit"  # where users find it
