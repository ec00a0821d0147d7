"""Typed reads of config.json. A key without a default is required. Errors name the file and the key."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from lowbit.base.errors import Error, FormatError, UnsupportedError
from lowbit.base.quoting import quoted, shown

#: Sizes in config.json must be below this before anything is computed from them.
MAX_SIZE = 1 << 31

#: The positive range of float32. (An integer of any length can be compared with it, but not converted to float.)
LEAST_FLOAT32, MOST_FLOAT32 = float(np.finfo(np.float32).smallest_subnormal), float(np.finfo(np.float32).max)

_REQUIRED = object()
_Error = TypeVar("_Error", bound=Error)


class Config:
    """A JSON object of settings. null counts as missing, as in transformers."""

    def __init__(self, values: dict[str, Any], path: str, part: str = "") -> None:
        """path: the file. part: the key of this object; "" for the whole file."""
        self.values = values
        self.path = path
        self.part = part

    def error(self, kind: type[_Error], key: str, what: str, **fields: Any) -> _Error:
        """An error about a key. what: the text after the key's name."""
        return kind(f"{self._prefix}{key} {what}", path=self.path, key=self._name(key), **fields)

    def wrong(self, key: str, value: Any, expected: str, most: int = 40) -> FormatError:
        """The error for an unexpected value."""
        text = f"{self._prefix}{key!r} is {quoted(value, most)}"
        return FormatError(text, path=self.path, key=self._name(key), expected=expected, found=value)

    @property
    def _prefix(self) -> str:
        return f"{self.part}: " if self.part else ""

    def _name(self, key: str) -> str:
        return f"{self.part}.{key}" if self.part else key

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            if default is _REQUIRED:
                raise FormatError(f"{self._prefix}no {key!r}", path=self.path, key=self._name(key))
            return default
        return value

    def is_null(self, key: str) -> bool:
        """Whether the key exists and is null: null disables some settings whose default is not off."""
        return key in self.values and self.values[key] is None

    def integer(self, key: str, default: Any = _REQUIRED, minimum: int = 1) -> int:
        """An integer in [minimum, 2^31)."""
        value = self._get(key, default)
        if type(value) is not int or not minimum <= value < MAX_SIZE:
            expected = "a positive integer" if minimum == 1 else f"an integer of at least {minimum}"
            raise self.wrong(key, value, expected)
        return value

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        """A positive number in float32's range, which is the range of GGUF."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not LEAST_FLOAT32 <= value <= MOST_FLOAT32:
            raise self.wrong(key, value, "a positive number")
        return float(value)

    def numbers(self, key: str, count: int) -> list[float]:
        """A list of `count` positive finite numbers."""
        value = self._get(key, _REQUIRED)
        if not isinstance(value, list) or len(value) != count:
            found = f"a list of {len(value)}" if isinstance(value, list) else shown(value, 40)
            raise self.wrong(key, found, f"a list of {count} numbers", 100)
        return [Config({key: number}, self.path, self.part).number(key) for number in value]

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        """A string."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, value, "a string")
        return value

    @property
    def hf_class(self) -> str:
        """The checkpoint's class: the first of "architectures"."""
        names = self.values.get("architectures")
        if not isinstance(names, list) or not names or not isinstance(names[0], str):
            raise self.wrong("architectures", names, "a list of names")
        return names[0]

    def rope(self) -> Config:
        """The rotary embedding's settings, with rope_theta and rope_type, from the form of either version.

        transformers 5 has rope_parameters. transformers 4 has rope_theta and an optional rope_scaling, whose type may
        be called "type". If both exist, all versions use rope_scaling. The default of
        rope_theta is 10000, as in the first llama checkpoints. original_max_position_embeddings is in config.json
        itself or in the object; the default is max_position_embeddings.
        """
        found = self.values.get("rope_scaling") or self.values.get("rope_parameters") or {}
        if not isinstance(found, dict):
            raise self.wrong("rope_parameters", found, "an object")
        if any(isinstance(value, dict) for value in found.values()):
            raise self.error(
                UnsupportedError, "rope_parameters", f"differs between layers: {shown(', '.join(found), 80)}"
            )
        rope = Config(dict(found), self.path, self._name("rope_parameters"))
        rope.values["rope_theta"] = rope.number("rope_theta", self.number("rope_theta", 10000.0))
        rope.values["rope_type"] = rope.text("rope_type", rope.text("type", "default")).lower()
        original = "original_max_position_embeddings"
        lengths = (self.values.get(original), rope.values.get(original), self.values.get("max_position_embeddings"))
        rope.values[original] = next((length for length in lengths if length is not None), None)
        if (partial := self.values.get("partial_rotary_factor")) is not None:
            rope.values.setdefault("partial_rotary_factor", partial)
        return rope
