"""general.* keys: author and name of a model, determined as in the reference converter.

Sources, in order of precedence: the front matter of README.md (the model card), _name_or_path in
config.json, the folder's name. generation_config.json has the recommended sampling.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.base.files import read_bytes
from lowbit.base.paths import is_file
from lowbit.base.quoting import quoted, reason
from lowbit.hf.checkpoint import read_json

MAX_CARD_BYTES = 16 << 20
MAX_FRONT_MATTER = 1 << 20  # benchmark results can take 300 KB
MAX_DEPTH = 64

#: Keys in generation_config.json (the first that exists counts), key under general.sampling, conversion.
SAMPLING: tuple[tuple[tuple[str, ...], str, Callable[[Any], Any]], ...] = (
    (("sequence",), "sequence", str),
    (("top_k",), "top_k", np.int32),
    (("top_p",), "top_p", np.float32),
    (("min_p",), "min_p", np.float32),
    (("xtc_probability",), "xtc_probability", np.float32),
    (("xtc_threshold",), "xtc_threshold", np.float32),
    (("temperature",), "temp", np.float32),
    (("penalty_last_n",), "penalty_last_n", np.int32),
    (("penalty_repeat", "repetition_penalty"), "penalty_repeat", np.float32),
    (("mirostat",), "mirostat", np.int32),
    (("mirostat_tau",), "mirostat_tau", np.float32),
    (("mirostat_eta",), "mirostat_eta", np.float32),
)
#: Key under general -> keys of the model card, in order of preference.
CARD_TEXT = {
    "name": ("name", "model_name"),
    "author": ("author", "model_author", "model_creator"),
    "version": ("version", "model_version"),
    "organization": ("organization", "model_organization"),
    "finetune": ("finetune", "model_finetune"),
    "basename": ("basename", "model_basename", "model_type"),
    "description": ("description", "model_description"),
    "size_label": ("size_label", "model_size_label"),
    "license": ("license",),
    "license.name": ("license_name",),
    "license.link": ("license_link",),
    "source.url": ("url", "model_url"),
    "source.doi": ("doi", "model_doi"),
    "source.uuid": ("uuid", "model_uuid"),
    "source.repo_url": ("repo_url", "model_repo_url"),
}
CARD_LISTS = {"tags": ("tags", "pipeline_tag"), "languages": ("languages", "language")}
ORIGIN_FIELDS = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")


@dataclass
class NameParts:
    """The parts of a model's id: "org/Base-7B-chat-v0.1"."""

    name: str | None = None
    organization: str | None = None
    basename: str | None = None
    finetune: str | None = None
    version: str | None = None
    size_label: str | None = None


def _size_part(part: str, num_params: int) -> tuple[str, str]:
    """A part of a name in the form of a size: (kind, normalized). If it is far from the true size: a context length."""
    part = part.replace("_", ".")
    if part[-1].isdecimal():  # bloom-7b1 means 7.1B
        part = f"{part[:-2]}.{part[-1]}{part[-2]}"
    if len(part) > 1 and part[-2].isdecimal() and part[-1] in "kmbt":
        part = part[:-1] + part[-1].upper()
    if num_params:
        try:
            labelled = float(part[:-1]) * 1000.0 ** " KMBT".find(part[-1])
        except ValueError:
            return "size_label", part
        if abs(labelled - num_params) > 7 * num_params // 8:
            return "finetune", part[:-1] + part[-1].lower()
    return "size_label", part


def _kind(index: int, part: str, num_params: int) -> tuple[str | None, str]:
    """The kind of a name's part, judged by its form, and the part as stored."""
    if re.fullmatch(r"(v|iter)?\d+([.]\d+)*", part, re.IGNORECASE):
        return "version", part
    if re.fullmatch(r"i?q\d(_\w)*|b?fp?(16|32)", part, re.IGNORECASE):
        return "type", part.upper()
    if index == 0:
        return None, part
    if re.fullmatch(r"(([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?|small|mini|medium|large|x?xl)", part, re.IGNORECASE):
        return _size_part(part, num_params)
    if re.fullmatch(r"chat|instruct|vision|lora", part, re.IGNORECASE):
        return "finetune", part
    return None, part


def name_parts(model_id: str | None, num_params: int) -> NameParts:
    """Splits a model id or folder name by the conventions of the hub."""
    if model_id is None:
        return NameParts()
    if " " in model_id:  # a sentence, not an id
        return NameParts(name=model_id)
    organization, slash, name = model_id.partition("/")
    if not slash:
        organization, name = "", model_id
    parsed = [_kind(i, part, num_params) for i, part in enumerate(filter(None, name.split("-")))]
    parts = [part for _, part in parsed]
    kinds: list[set[str]] = [{kind} if kind else set() for kind, _ in parsed]
    sizes = [part for part, kind in zip(parts, kinds, strict=True) if "size_label" in kind]
    if any(c.isdecimal() for size in sizes for c in size):  # numbers beat words like "small"
        for part, kind in zip(parts, kinds, strict=True):
            if part.isalpha():
                kind.discard("size_label")
    at_start = True
    for part, kind in zip(parts, kinds, strict=True):
        if at_start and ((not kind and part[0].isalpha()) or "version" in kind):
            kind.add("basename")
        else:
            at_start = False
            if not kind:
                kind.add("finetune")
    for kind in reversed(kinds):  # a version at the end is not part of the base name
        if "basename" not in kind or len(kind) == 1:
            break
        kind.remove("basename")

    def joined(wanted: str, unless: str = "") -> str | None:
        found = [part for part, kind in zip(parts, kinds, strict=True) if wanted in kind and unless not in kind]
        return "-".join(dict.fromkeys(found) if wanted == "size_label" else found) or None

    result = NameParts(
        name=name,
        organization=organization if organization and organization[0] != "." else None,
        basename=joined("basename"),
        finetune=joined("finetune"),
        version=joined("version", unless="basename"),
        size_label=joined("size_label"),
    )
    if result.size_label is None and result.finetune is None and result.version is None:
        result.basename = None  # too ambiguous
    return result


def title(name: str) -> str:
    """An id as a title: lower-case words are capitalised unless they are numbers or versions."""
    words = name.strip().replace("-", " ").split()
    return " ".join(
        word.title() if word.islower() and not re.match(r"^(v\d+(?:\.\d+)*|\d.*)$", word) else word for word in words
    )


def size_label(num_params: int) -> str:
    """The number of parameters with at least two digits: 596M, 1.2B; 0.7M would have one, so 700K."""
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (0, "K")):
        if num_params > limit or not limit:
            scaled = num_params * {"T": 1e-12, "B": 1e-9, "M": 1e-6, "K": 1e-3}[suffix]
            break
    digits = max(2 - len(str(round(scaled)).lstrip("0")), 0)
    return f"{scaled:.{digits}f}{suffix}"


def read_card(folder: Path, notes: list[str]) -> dict[str, Any]:
    """The front matter of README.md. If it is not YAML, it is omitted with a note."""
    path = folder / "README.md"
    if not is_file(path) or path.stat().st_size > MAX_CARD_BYTES:
        return {}
    lines = read_bytes(path, MAX_CARD_BYTES).decode("utf-8", errors="replace").splitlines()
    if not lines or lines[0] != "---":
        return {}
    end = lines.index("---", 1) if "---" in lines[1:] else len(lines)
    text = "\n".join(lines[1:end]) + "\n"
    text = text.replace("- no\n", '- "no"\n').replace(
        "\t", "  "
    )  # the language code "no" is false in YAML, and tabs are invalid
    try:
        card = _parsed(text)
    except Exception as error:  # PyYAML raises many types, for example AttributeError for an invalid date
        notes.append(f"README.md: the front matter is not valid YAML and was left out ({reason(error)})")
        return {}
    return card if isinstance(card, dict) else {}


def _parsed(text: str) -> Any:
    """Parses YAML. Aliases are refused: with them, 400 bytes can take hours to parse."""
    import yaml  # type: ignore[import-untyped]

    if len(text) > MAX_FRONT_MATTER:
        raise ValueError(f"{len(text)} characters, expected at most {MAX_FRONT_MATTER}")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH or isinstance(event, yaml.AliasEvent):
            raise ValueError(f"an alias, or more than {MAX_DEPTH} levels")
    return yaml.load(text, Loader=loader)


def _as_list(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else list(value) if isinstance(value, list) else []


def _origins(entries: list[Any], num_params: int) -> list[dict[str, Any]]:
    """Base models or datasets of a card: ids, addresses or objects."""
    result = []
    for entry in entries:
        if isinstance(entry, dict):
            result.append(entry)
            continue
        origin: dict[str, Any] = {}
        model_id: str | None = str(entry)
        if str(entry).startswith(("http://", "https://", "ssh://")):
            origin["repo_url"] = entry
            match = re.match(r"https?://huggingface.co/([^/]+/[^/]+)$", str(entry))
            model_id = match[1] if match else None
        parts = name_parts(model_id, num_params)
        if parts.name is not None:
            origin["name"] = title(parts.name)
        if parts.organization is not None:
            origin["organization"] = title(parts.organization)
        if parts.version is not None:
            origin["version"] = parts.version
        if "repo_url" not in origin and parts.organization is not None and parts.name is not None:
            origin["repo_url"] = f"https://huggingface.co/{parts.organization}/{parts.name}"
        result.append(origin)
    return result


def _first(card: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((card[key] for key in keys if card.get(key) is not None), None)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _sampling(folder: Path, notes: list[str]) -> dict[str, Any]:
    path = folder / "generation_config.json"
    if not is_file(path):
        return {}
    config = read_json(path)
    result = {}
    for keys, name, convert in SAMPLING:
        value = _first(config, keys)
        if value is None:
            continue
        try:
            with np.errstate(over="raise"):
                result[f"general.sampling.{name}"] = convert(value)
        except (TypeError, ValueError, ArithmeticError):
            notes.append(f"generation_config.json: {keys[0]} is {quoted(value, 40)} and was left out")
    return result


def general_metadata(
    folder: Path, config: dict[str, Any], num_params: int, hub_id: str | None, notes: list[str]
) -> dict[str, Any]:
    """The general.* keys between general.type and the architecture's, in the reference's order.

    num_params: elements of all tensors. hub_id: the model's id, if the folder is a downloaded snapshot: its folder's
    name is a hash. Omissions are appended to notes.
    """
    card = read_card(folder, notes)
    found = {key: _first(card, keys) for key, keys in CARD_TEXT.items()}
    path_name = config.get("_name_or_path")
    ids = [path_name] if isinstance(path_name, str) and path_name.count("/") <= 1 else []
    for model_id in [*ids, hub_id or Path(os.path.abspath(folder)).name]:
        parts = name_parts(model_id, num_params)
        guesses = {
            "name": None if parts.name is None else title(parts.name),
            "organization": None if parts.organization is None else title(parts.organization),
            "basename": parts.basename,
            "finetune": parts.finetune,
            "version": parts.version,
            "size_label": parts.size_label,
        }
        for key, guess in guesses.items():
            if found[key] is None:
                found[key] = guess
    if found["size_label"] is None:
        found["size_label"] = size_label(num_params)
    result = _sampling(folder, notes)
    result |= {f"general.{key}": _text(value) for key, value in found.items() if value is not None}
    for key, card_keys in (
        ("base_model", ("base_model", "base_models", "base_model_sources")),
        ("dataset", ("datasets", "dataset", "dataset_sources")),
    ):
        if any(name in card for name in card_keys):
            origins = _origins(_as_list(_first(card, card_keys)), num_params)
            result[f"general.{key}.count"] = len(origins)
            for i, origin in enumerate(origins):
                result |= {f"general.{key}.{i}.{k}": _text(origin[k]) for k in ORIGIN_FIELDS if k in origin}
    for key, list_keys in CARD_LISTS.items():
        values = [str(value) for name in list_keys for value in _as_list(card.get(name))]
        if values:
            result[f"general.{key}"] = values
    return result


def card_text(metadata: Mapping[str, Any]) -> str:
    """README.md with the general.* keys in its front matter. `general_metadata` reads the same keys from it."""
    import yaml

    card: dict[str, Any] = {}
    for key, names in {**CARD_TEXT, **CARD_LISTS}.items():
        value = metadata.get(f"general.{key}")
        if isinstance(value, (str, list)):
            card[names[-1] if key == "languages" else names[0]] = value
    for key, name in (("base_model", "base_model"), ("dataset", "datasets")):
        count = metadata.get(f"general.{key}.count")
        if isinstance(count, int) and count <= len(metadata):
            fields = ({f: metadata.get(f"general.{key}.{i}.{f}") for f in ORIGIN_FIELDS} for i in range(count))
            card[name] = [_origin_entry({f: v for f, v in origin.items() if v is not None}) for origin in fields]
    return f"---\n{yaml.safe_dump(card, sort_keys=False, allow_unicode=True)}---\n" if card else ""


def _origin_entry(origin: dict[str, Any]) -> Any:
    """A base model or dataset in the hub's form: its id, if nothing else is needed."""
    model_id = str(origin.get("repo_url", "")).removeprefix("https://huggingface.co/")
    return model_id if _origins([model_id], 0) == [origin] else origin
