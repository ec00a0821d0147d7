"""Chat templates of a Hugging Face folder, as used by transformers and by the reference converter.

| in the folder | transformers, and lowbit for a folder | the reference converter, and GGUF files |
| --- | --- | --- |
| chat_template.jinja, additional_chat_templates/NAME.jinja | first; hides all others | second |
| chat_template in tokenizer_config.json | second | first |
| chat_template.json | only in processors; lowbit uses it if there is no other | last |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lowbit.base.errors import FormatError
from lowbit.base.foreign import read_own_text
from lowbit.base.paths import is_file
from lowbit.hf.checkpoint import read_json

MAX_TEMPLATE_BYTES = 4 << 20
KEY = "tokenizer.chat_template"


def folder_templates(folder: Path, config: Mapping[str, Any], notes: list[str]) -> dict[str, str]:
    """Name -> template, as in transformers. config: tokenizer_config.json. Ignored templates are noted."""
    config_path = folder / "tokenizer_config.json"
    configured = _named(config.get("chat_template"), config_path)
    files = _files(folder)
    found = {name: _text(path) for name, path in files.items()}
    if found and configured and any(found.get(name) != template for name, template in configured.items()):
        names = ", ".join(str(path.relative_to(folder)) for path in files.values())
        notes.append(f"chat templates are those of {names}; those in {config_path.name} are ignored")
    if not found and not configured:
        path = folder / "chat_template.json"
        return _named(read_json(path).get("chat_template"), path) if is_file(path) else {}
    return found or configured


def template_names(keys: Iterable[str]) -> dict[str, str]:
    """GGUF key -> name of the templates in a file."""
    found = {key: key[len(KEY) + 1 :] for key in keys if key.startswith(f"{KEY}.")}
    return ({KEY: "default"} if KEY in keys else {}) | found


def template_keys(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer.chat_template, and further templates under their names, as written by the reference converter."""
    template = _reference(folder, config)
    if isinstance(template, str):
        return {KEY: template}
    result: dict[str, Any] = {}
    default = None
    names = []
    for entry in template if isinstance(template, list) else []:
        if not isinstance(entry, dict) or not isinstance(entry.get("template"), str):
            continue
        name = key_name(str(entry.get("name", "")))
        if name == "default":
            default = entry["template"]
        elif name:
            names.append(name)
            result[f"{KEY}.{name}"] = entry["template"]
    if names:
        result[f"{KEY}s"] = names
    if default is not None:
        result[KEY] = default
    return result


def key_name(name: str) -> str:
    """A template's name as a part of its key."""
    return re.sub(r"[^a-zA-Z0-9]", "_", name)


def _reference(folder: Path, config: Mapping[str, Any]) -> Any:
    """The template that the reference uses: one string, or a list of {"name", "template"}."""
    if (template := config.get("chat_template")) is not None:
        return template
    jinja = folder / "chat_template.jinja"
    if is_file(jinja):
        files = _files(folder)
        default, others = _text(jinja), {name: path for name, path in files.items() if path != jinja}
        if not others:
            return default
        entries = {name: _text(path) for name, path in others.items()}
        return [
            {"name": "default", "template": default},
            *({"name": name, "template": text} for name, text in entries.items()),
        ]
    path = folder / "chat_template.json"
    return read_json(path).get("chat_template") if is_file(path) else None


def _files(folder: Path) -> dict[str, Path]:
    """Name -> file of a template."""
    jinja = folder / "chat_template.jinja"
    others = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    return ({"default": jinja} if is_file(jinja) else {}) | {path.stem: path for path in others}


def _text(path: Path) -> str:
    return read_own_text(path, MAX_TEMPLATE_BYTES)


def _named(value: Any, path: Path) -> dict[str, str]:
    """Templates by name, from a string or a list of {"name", "template"}."""
    entries = [{"name": "default", "template": value}] if isinstance(value, str) else value or []
    try:
        templates = {entry["name"]: entry["template"] for entry in entries}
    except (TypeError, KeyError):
        raise FormatError(
            "chat_template:",
            path=path,
            key="chat_template",
            expected="a string, or a list of objects with name and template",
        ) from None
    if not all(isinstance(part, str) for entry in templates.items() for part in entry):
        raise FormatError("chat_template:", path=path, key="chat_template", expected="strings as names and templates")
    return templates
