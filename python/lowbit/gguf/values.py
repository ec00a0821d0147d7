"""Values of GGUF metadata: their types, and the conversion from Python values and text."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit.base.errors import InputError
from lowbit.base.quoting import quoted, shown

#: Number types by the names in `lowbit metadata`.
NUMBERS: dict[str, np.dtype[Any]] = {
    "u8": np.dtype(np.uint8),
    "i8": np.dtype(np.int8),
    "u16": np.dtype(np.uint16),
    "i16": np.dtype(np.int16),
    "u32": np.dtype(np.uint32),
    "i32": np.dtype(np.int32),
    "u64": np.dtype(np.uint64),
    "i64": np.dtype(np.int64),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "bool": np.dtype(np.bool_),
}
#: Keys that must have a string, whether or not the file has them.
STRING_KEYS = ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.chat_template")

# Limits of `described`.
_SHOWN_CHARACTERS, _SHOWN_ITEMS = 60, 4


def checked_name(kind: str, name: str) -> str:
    """The name of a key or tensor. Raises InputError if UTF-8 cannot encode it."""
    try:
        name.encode()
    except (AttributeError, UnicodeEncodeError):
        fields: dict[str, Any] = {kind: shown(name)}
        raise InputError(f"{kind} {shown(name)}:", expected="a name that UTF-8 can encode", **fields) from None
    return name


def _wrong(key: str, expected: str, found: object = None) -> InputError:
    return InputError(f"key {shown(key)}:", key=key, expected=expected, found=found)


def encoded(key: str, value: Any) -> str | list[str] | npt.NDArray[Any]:
    """The value for the core: str, list of str, or contiguous little-endian array, without axes for a scalar."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if array.ndim > 1:
            raise InputError(
                f"key {shown(key)}:", key=key, expected="an array of one axis", found=f"shape {array.shape}"
            )
        return np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    if isinstance(value, bool):
        return np.array(value)
    if isinstance(value, int):
        dtypes = (np.uint32, np.uint64) if value >= 0 else (np.int32, np.int64)
        for dtype in dtypes:
            if np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
                return np.array(value, dtype)
        raise _wrong(key, "an integer of at most 64 bits", value)
    if isinstance(value, float):
        with np.errstate(over="ignore"):
            number = np.array(value, np.float32)
        if math.isfinite(value) and not np.isfinite(number):
            raise InputError(
                f"key {shown(key)}: {value} exceeds float32, the type of Python floats in GGUF; use np.float64", key=key
            )
        return number
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return list(value)
    raise _wrong(key, "str, bool, int, float, list of str, NumPy scalar or array", type(value).__name__)


def kind_name(value: Any) -> str:
    """The kind of a metadata value, without its width: "an int", "an array of str"."""
    if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim):
        return "an array"
    for kinds, name in (
        ((bool, np.bool_), "a bool"),
        ((int, np.integer), "an int"),
        ((float, np.floating), "a float"),
        (str, "a str"),
    ):
        if isinstance(value, kinds):
            return name
    return type(value).__name__


def typed(key: str, value: Any, before: Any) -> Any:
    """`value` with its type in the file; `before`: the key's old value, or None."""
    kind, expected = _kind(value), "a str" if key in STRING_KEYS else None if before is None else _kind(before)
    if expected not in (None, kind) and (kind, expected) != ("an int", "a float"):
        raise _wrong(key, f"{expected}, as {'readers expect' if before is None else 'in the file'}", kind)
    if isinstance(value, (np.generic, np.ndarray)) or kind in ("a str", "an array of str"):
        return list(value) if isinstance(value, tuple) else value
    if kind != "an array of numbers":
        array = np.asarray(encoded(key, value) if before is None else value)
        return (array if before is None else _cast(key, array, before.dtype))[()]
    array = np.asarray(value)
    natural = {"b": np.bool_, "f": np.float32}.get(array.dtype.kind, np.int32)
    return _cast(key, array, natural if before is None else before.dtype)


def _kind(value: Any) -> str:
    kind = kind_name(value)
    if kind != "an array":
        return kind
    of_str = isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
    return "an array of str" if of_str else "an array of numbers"


def _cast(key: str, array: np.ndarray, dtype: Any) -> np.ndarray:
    """The numbers in another type. Raises InputError for numbers that do not fit, and for other values."""
    to = np.dtype(dtype)
    if array.dtype.kind in "biuf":
        with np.errstate(all="ignore"):
            cast = array.astype(to)
        if to.kind == "f":
            fits = bool(np.all(np.isfinite(cast) == np.isfinite(array)))
        else:
            whole = array.dtype.kind != "f" and (to.kind == "b") == (array.dtype.kind == "b")
            fits = whole and cast.tolist() == array.tolist()
        if fits:
            return cast
    raise _wrong(key, f"{'numbers' if array.ndim else 'a number'} that {to} holds", shown(array[()]))


def type_name(value: Any) -> str:
    """The name of a typed value's type: "u32", "str", or "f32[]" for an array."""
    if isinstance(value, (str, list)):
        return "str" if isinstance(value, str) else "str[]"
    name = next(name for name, dtype in NUMBERS.items() if dtype == value.dtype)
    return f"{name}[]" if value.ndim else name


def parsed(key: str, text: str, type: str | None, before: Any) -> Any:
    """Parses a user's text to a value for `edit`.

    type: a name as from type_name. None: the type of `before`, the key's old value; without an old value, the type of
    the text as JSON (bool, number or list), else str. Arrays are JSON lists. Raises InputError.
    """
    if type is None and before is not None:
        type = type_name(before)
    if type == "str":
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    if type is None:
        return value if isinstance(value, (bool, int, float, list)) else text
    name = type.removesuffix("[]")
    if name != "str" and name not in NUMBERS:
        raise InputError(f"type {quoted(type)}:", expected=f"{', '.join(NUMBERS)} or str, with [] for an array")
    if isinstance(value, list) != type.endswith("[]") or isinstance(value, str):
        raise _wrong(key, "a JSON list" if type.endswith("[]") else name, quoted(text))
    if name == "str":
        if not all(isinstance(item, str) for item in value):
            raise _wrong(key, "a JSON list of strings")
        return value
    return _cast(key, np.asarray(value), NUMBERS[name])[()]


def described(value: Any, other: Any = None) -> str:
    """A typed value (or None) in short form. A long one is shown from its first difference from `other` on."""
    if value is None:
        return ""
    if isinstance(value, np.generic):
        return str(value.item())
    items, others = (v.tolist() if isinstance(v, np.ndarray) else v for v in (value, other))
    if isinstance(items, str) and len(items) <= _SHOWN_CHARACTERS:
        return items
    if isinstance(items, str) and items.isspace():
        return f"{len(items)} blanks"
    first = 0
    if type(others) is type(items):
        pairs = enumerate(zip(items, others, strict=False))
        first = next((i for i, (x, y) in pairs if x != y), min(len(items), len(others)))
    if isinstance(items, str):
        return f"{len(items)} characters, from {first}: {items[first : first + _SHOWN_CHARACTERS]}"
    shown = ", ".join(str(item)[:_SHOWN_CHARACTERS] for item in items[first : first + _SHOWN_ITEMS])
    return f"{len(items)} elements, from {first}: {shown}"
