"""tokenizer.json and tokenizer_config.json, with checked JSON types.

Missing and null values are unchanged. A value of another type raises FormatError with the file and the key. Ids are
checked where they are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowbit.base.errors import FormatError
from lowbit.base.foreign import of_file
from lowbit.base.paths import is_file
from lowbit.base.quoting import listed, quoted
from lowbit.hf.checkpoint import read_json

_NAMES = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}


def read_optional(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is none."""
    return read_json(path) if is_file(path) else {}


def tokenizer_json(folder: Path) -> dict[str, Any]:
    """A folder's tokenizer.json; {} if there is none."""
    path = folder / "tokenizer.json"
    tokenizer = read_optional(path)
    with of_file(path):
        for i, token in enumerate(_part(tokenizer, "added_tokens", list)):
            _check_token(_typed(token, dict, f"added_tokens[{i}]"), f"added_tokens[{i}]")
        model = _part(tokenizer, "model", dict)
        _part(model, "merges", list, "model")
        _check_step(_part(tokenizer, "post_processor", dict), "post_processor")
    return tokenizer


def tokenizer_config(folder: Path) -> dict[str, Any]:
    """A folder's tokenizer_config.json; {} if there is none."""
    path = folder / "tokenizer_config.json"
    config = read_optional(path)
    with of_file(path):
        for token_id, token in _part(config, "added_tokens_decoder", dict).items():
            where = f"added_tokens_decoder[{quoted(token_id)}]"
            _check_token(_typed(token, dict, where), where)
        for name in ("additional_special_tokens", "extra_special_tokens"):
            if (value := config.get(name)) is not None and not isinstance(value, dict):
                _typed(value, list, name)
    return config


def named_text(value: Any) -> str | None:
    """The text of a token in a configuration: the value itself, or its content."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def merged_config(folder: Path, notes: list[str]) -> dict[str, Any]:
    """tokenizer_config.json updated from special_tokens_map.json, as in transformers: unless the former lists added
    tokens (added_tokens_decoder). Ignored differences are appended to notes."""
    config, legacy = tokenizer_config(folder), read_optional(folder / "special_tokens_map.json")
    is_old = "added_tokens_decoder" not in config
    differing = []
    for name in legacy:
        ours, theirs = named_text(config.get(name)), named_text(legacy[name])
        if None not in (ours, theirs) and ours != theirs:
            taken, left = (theirs, ours) if is_old else (ours, theirs)
            differing.append(f"{name} {quoted(taken)}, not {quoted(left)}")
    if differing:
        files = ("special_tokens_map.json", "tokenizer_config.json")
        taken_of, left_of = files if is_old else files[::-1]
        notes.append(f"{taken_of} is used, not {left_of}: {listed(differing)}")
    return {**config, **legacy} if is_old else config


def _typed(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        raise FormatError(
            f"{where}:", key=where, expected=_NAMES[kind], found=f"{type(value).__name__} {quoted(value)}"
        )
    return value


def _part(values: Mapping[str, Any], name: str, kind: type, where: str = "") -> Any:
    """The part with this name; an empty one for null or a missing key."""
    value = values.get(name)
    return kind() if value is None else _typed(value, kind, f"{where}: {name}" if where else name)


def _check_token(token: Mapping[str, Any], where: str) -> None:
    _typed(token.get("content"), str, f"{where}: content")
    for flag in ("special", "normalized"):
        _part(token, flag, bool, where)


def _check_step(step: Mapping[str, Any], where: str) -> None:
    """Checks a post_processor, or one of its steps."""
    for name in ("processors", "single", "pair"):
        for i, part in enumerate(_part(step, name, list, where)):
            _typed(part, dict, f"{where}: {name}[{i}]")
            if name == "processors":
                _check_step(part, f"{where}: {name}[{i}]")
    for role in ("cls", "sep"):
        _part(step, role, list, where)
