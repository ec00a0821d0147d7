"""The JSON schema of a Python function, from its type hints and its docstring in Google's style.

The schemas equal those of transformers for functions in `tools`, because chat models were trained with them.
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable
from enum import Enum
from typing import Any, Literal, Union

from lowbit.base.errors import InputError

_SIMPLE: dict[Any, dict[str, Any]] = {
    int: {"type": "integer"}, float: {"type": "number"}, str: {"type": "string"}, bool: {"type": "boolean"},
    type(None): {"type": "null"}, list: {"type": "array"}, tuple: {"type": "array"}, dict: {"type": "object"}, Any: {},
}  # fmt: skip
_SCALARS = (int, float, str, bool, type(None))
_SECTION = r"(?:Args|Returns|Raises):"
_CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)


def json_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """The tool schema of `function`. Raises InputError for a missing type hint or description, or one without a JSON
    form."""
    name = getattr(function, "__name__", "operation")
    doc = (inspect.getdoc(function) or "").strip()
    if not doc:
        raise InputError(f"tool {name}:", expected="a docstring with its purpose")
    described = _descriptions(doc)
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError) as cause:
        raise InputError(f"tool {name}: its type hints cannot be read: {cause}") from None
    parameters = dict(inspect.signature(function).parameters)
    first = next(iter(parameters.values()), None)
    if first is not None and first.name in ("self", "cls") and first.annotation is inspect.Parameter.empty:
        del parameters[first.name]
    properties = {}
    for argument in parameters:
        if argument not in hints or argument not in described:
            missing = "a type hint" if argument not in hints else "a description under Args:"
            raise InputError(f"tool {name}:", expected=f"{missing} of {argument}")
        properties[argument] = _described(_schema(hints[argument], f"tool {name}: {argument}"), described[argument])
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if required := [p.name for p in parameters.values() if p.default is inspect.Parameter.empty]:
        schema["required"] = required
    result = {
        "name": name,
        "description": re.split(rf"\s*{_SECTION}", doc, maxsplit=1)[0].strip(),
        "parameters": schema,
    }
    if (returned := _returned(hints, doc)) is not None:
        result["return"] = returned
    return {"type": "function", "function": result}


def _returned(hints: dict[str, Any], doc: str) -> dict[str, Any] | None:
    """A function's return type; None if it is missing or has no JSON form, because no template needs it."""
    try:
        schema = _schema(hints["return"], "")
    except (KeyError, InputError):
        return None
    found = re.search(r"\n\s*Returns:\n\s*(.*?)\s*(?:Raises:|\Z)", doc, re.DOTALL)
    return {**schema, "description": found[1]} if found else schema


def _descriptions(doc: str) -> dict[str, str]:
    """Argument -> description under "Args:". Lines with more indentation continue a description."""
    found = re.search(rf"\n\s*Args:\n(.*?)\s*(?:{_SECTION}|\Z)", doc, re.DOTALL)
    described: dict[str, str] = {}
    indent = name = None
    for line in found[1].split("\n") if found else []:
        start = re.match(r"([ \t]*)(\w+):\s*(.*)", line)
        if start and (indent is None or start[1] == indent):
            indent, name = start[1], start[2]
            described[name] = start[3].strip()
        elif name is not None and line.strip():
            described[name] = f"{described[name]} {line.strip()}".strip()
    return described


def _described(schema: dict[str, Any], text: str) -> dict[str, Any]:
    """The schema with its description, which may end with "(choices: [...])"."""
    if choices := _CHOICES.search(text):
        try:
            values = json.loads(choices[1])
        except ValueError:
            raise InputError("choices:", expected="a JSON list", found=f"{choices[1]:.80}") from None
        schema = {**schema, "enum": [v.strip() if isinstance(v, str) else v for v in values]}
        text = text[: choices.start()].strip()
    return {**schema, "description": text}


def _schema(hint: Any, where: str) -> dict[str, Any]:
    """The schema of a type hint."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is None and isinstance(hint, type) and issubclass(hint, Enum):
        return _values([member.value for member in hint], where)
    if origin is Literal:
        return _values(list(args), where)
    if origin in (Union, types.UnionType):
        return _union(args, where)
    if origin is list:
        return {"type": "array", "items": _schema(args[0], where)}
    if origin is dict and len(args) == 2:
        return {"type": "object", "additionalProperties": _schema(args[1], where)}
    if origin is tuple and len(args) > 1 and ... not in args:
        return {"type": "array", "prefixItems": [_schema(arg, where) for arg in args]}
    try:
        return dict(_SIMPLE[hint])
    except (KeyError, TypeError):
        raise InputError(f"{where}: the type {hint!r} has no JSON schema") from None


def _union(args: tuple[Any, ...], where: str) -> dict[str, Any]:
    parts = [_schema(arg, where) for arg in args if arg is not type(None)]
    if len(parts) == 1:
        schema = parts[0]
    elif all(part.keys() == {"type"} for part in parts):
        names = sorted({part["type"] for part in parts})
        schema = {"type": names[0] if len(names) == 1 else names}
    else:
        schema = {"anyOf": parts}
    return {**schema, "nullable": True} if type(None) in args else schema


def _values(values: list[Any], where: str) -> dict[str, Any]:
    if not values or any(type(value) not in _SCALARS for value in values):
        raise InputError(f"{where}:", expected="choices of int, float, str, bool or None", found=f"{values!r:.80}")
    kinds = list(dict.fromkeys(_SIMPLE[type(value)]["type"] for value in values))
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": values}
