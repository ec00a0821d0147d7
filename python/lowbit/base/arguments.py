"""Checks of arguments. Each function returns a plain value, or raises InputError with the argument's name, the expected
and the given value."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit.base.errors import InputError
from lowbit.base.quoting import quoted, reason, shown


def integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """An int or NumPy integer in a range. A bool is refused."""
    try:
        number = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise wrong(name, "an integer", value)
    if number < least or (most is not None and number > most):
        raise wrong(name, f"at least {least}" if most is None else f"{least} to {most}", number)
    return number


def number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """A finite number or NumPy scalar in a range. A bool is refused."""
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or not abs(value) < math.inf:
        raise wrong(name, "a finite number", value)
    if not least <= value <= most:
        raise wrong(name, f"at least {least:g}" if most == math.inf else f"{least:g} to {most:g}", value)
    return float(value)


def text(name: str, value: Any) -> str:
    """A str that UTF-8 can encode."""
    if not isinstance(value, str):
        raise wrong(name, "a str", value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise wrong(name, "a str that UTF-8 can encode", value) from None
    return value


def flag(name: str, value: Any, expected: str = "a bool") -> bool:
    """A bool, NumPy bool, 0 or 1. `expected`: for the error, if the parameter takes other values too."""
    if not isinstance(value, (int, np.integer, np.bool_)) or value not in (0, 1):
        raise wrong(name, expected, value)
    return bool(value)


def mapping(name: str, value: Any) -> Mapping[Any, Any]:
    """A mapping."""
    if not isinstance(value, Mapping):
        raise wrong(name, "a mapping", value)
    return value


def items(name: str, value: Any) -> list[Any]:
    """The items of a list or another iterable. A str or bytes is refused."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise wrong(name, "a list", value)
    return list(value)


def array(name: str, value: Any, dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
    """An array-like value as an array, converted to `dtype` if one is given."""
    expected = "an array" if dtype is None else f"an array of {np.dtype(dtype)}"
    why = ""
    try:
        if dtype is None or not np.iscomplexobj(value):
            return np.asarray(value, dtype)
    except (TypeError, ValueError, OverflowError, RuntimeError, AttributeError) as error:
        why = f": {reason(error)}"
    raise wrong(name, expected, value, why)


def floats(name: str, value: Any, kept: Container[np.dtype[Any]] = ()) -> npt.NDArray[Any]:
    """An array-like of real numbers as float32: rounded to nearest even; numbers beyond float32's range become
    infinite. Arrays of the dtypes `kept` are returned unchanged."""
    found = array(name, value)
    if found.dtype == np.float32 or found.dtype in kept:
        return found
    if not np.can_cast(found.dtype, np.float32, "same_kind"):
        kind = f"{shown(found.dtype)} array of shape {found.shape}"
        raise InputError(f"{name}:", expected="an array of real numbers", found=kind)
    with np.errstate(over="ignore"):
        return found.astype(np.float32)


def wrong(name: str, expected: str, value: Any, rest: str = "") -> InputError:
    """The error for an argument. The message shows a string or number, and the type of any other value."""
    if isinstance(value, str):
        found = quoted(value)
    elif value is None or isinstance(value, (int, float, np.number)):
        found = shown(value)
    else:
        found = type(value).__name__
    return InputError(f"{name}:", expected=expected, found=found, rest=rest)


def seed(value: int | None) -> int:
    """A seed for random numbers; a new one for None."""
    return int.from_bytes(os.urandom(8), "little") if value is None else integer("seed", value, 0, (1 << 64) - 1)


def refuse_checkpoint_options(path: str, lora: object, like: object) -> None:
    """Raises InputError for options of checkpoints that are given with a GGUF file."""
    if not isinstance(lora, Sequence) or lora:
        raise InputError("lora works only for checkpoints, not for GGUF files", path=path)
    if like is not None:
        raise InputError("like works only for checkpoints; a GGUF file names its architecture", path=path)
