"""Checks arguments. Each function returns a plain value, or raises InputError that names the
argument, what was expected and what was given."""

from __future__ import annotations

import math
import operator
from collections.abc import Container, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit.base.errors import InputError
from lowbit.base.quoting import quoted, reason, shown


def integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """An integer in a range, NumPy's included; a bool is none."""
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
    """A finite number in a range, NumPy's included; a bool is none."""
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or not abs(value) < math.inf:
        raise wrong(name, "a finite number", value)
    if not least <= value <= most:
        raise wrong(name, f"{least:g} to {most:g}", value)
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


def flag(name: str, value: Any) -> bool:
    """A bool, NumPy's included, or 0 or 1."""
    if not isinstance(value, (int, np.integer, np.bool_)) or value not in (0, 1):
        raise wrong(name, "a bool", value)
    return bool(value)


def mapping(name: str, value: Any) -> Mapping[Any, Any]:
    """A mapping."""
    if not isinstance(value, Mapping):
        raise wrong(name, "a mapping", value)
    return value


def items(name: str, value: Any) -> list[Any]:
    """The items of a list or the like; a str is none."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise wrong(name, "a list", value)
    return list(value)


def array(name: str, value: Any, dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
    """What NumPy makes an array of, in a type if one is given."""
    expected = "an array" if dtype is None else f"an array of {np.dtype(dtype)}"
    why = ""
    try:
        if dtype is None or not np.iscomplexobj(value):
            return np.asarray(value, dtype)
    except (TypeError, ValueError, OverflowError, RuntimeError, AttributeError) as error:
        why = f": {reason(error)}"
    raise wrong(name, expected, value, why)


def floats(name: str, value: Any, kept: Container[np.dtype[Any]] = ()) -> npt.NDArray[Any]:
    """An array of float32 from what NumPy makes an array of real numbers of: rounded to nearest even, and what is too
    large becomes infinite. Arrays of the dtypes `kept` stay as they are."""
    found = array(name, value)
    if found.dtype == np.float32 or found.dtype in kept:
        return found
    if not np.can_cast(found.dtype, np.float32, "same_kind"):
        kind = f"{shown(found.dtype)} array of shape {found.shape}"
        raise InputError(f"{name}:", expected="an array of real numbers", found=kind)
    with np.errstate(over="ignore"):
        return found.astype(np.float32)


def wrong(name: str, expected: str, value: Any, rest: str = "") -> InputError:
    """What to raise for an argument: strings and numbers are shown, of all else the type is."""
    if isinstance(value, str):
        found = quoted(value)
    elif value is None or isinstance(value, (int, float, np.number)):
        found = shown(value)
    else:
        found = type(value).__name__
    return InputError(f"{name}:", expected=expected, found=found, rest=rest)
