"""Typed reads of a GGUF file's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from lowbit.base.errors import Error, FormatError, UnsupportedError
from lowbit.base.quoting import quoted
from lowbit.hf.config import LEAST_FLOAT32, MOST_FLOAT32

_Error = TypeVar("_Error", bound=Error)


class Keys:
    """Typed reads of an architecture's GGUF keys. A key without a default is required."""

    def __init__(self, metadata: Mapping[str, Any], arch: str) -> None:
        self.metadata = metadata
        self.arch = arch

    def error(self, kind: type[_Error], key: str, what: str, **fields: Any) -> _Error:
        """An error about a key. what: the text after the key's name."""
        return kind(f"{self.arch}.{key} {what}", key=f"{self.arch}.{key}", **fields)

    def _wrong(self, key: str, value: Any, expected: str) -> FormatError:
        return self.error(FormatError, key, f"is {quoted(value, 40)}", expected=expected, found=value)

    def _get(self, key: str, default: Any) -> Any:
        value = self.metadata.get(f"{self.arch}.{key}", default)
        if value is None:
            raise FormatError(f"metadata has no {self.arch}.{key}", key=f"{self.arch}.{key}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def integer(self, key: str, default: int | None = None, minimum: int = 1, maximum: int = (1 << 31) - 1) -> int:
        """An integer from `minimum` to `maximum`, the same for all layers."""
        value = self._get(key, default)
        if isinstance(value, (list, np.ndarray)):
            raise self.error(UnsupportedError, key, "differs between layers")
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not minimum <= value <= maximum:
            raise self._wrong(key, value, f"an integer from {minimum} to {maximum}")
        return int(value)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, (bool, np.bool_)):
            raise self._wrong(key, value, "true or false")
        return bool(value)

    def number(self, key: str, default: float | None = None, minimum: float | None = None) -> float:
        """A number of at least `minimum` (by default any positive one) in float32's range."""
        value = self._get(key, default)
        is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        if not is_number or not (LEAST_FLOAT32 if minimum is None else minimum) <= value <= MOST_FLOAT32:
            expected = "a positive number" if minimum is None else f"a number of at least {minimum}"
            raise self._wrong(key, value, expected)
        return float(value)
