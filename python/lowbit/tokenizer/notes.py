"""Notes on the tokenizer of a conversion: ids without a token, and parts of a folder that GGUF's keys cannot keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.base.paths import is_file
from lowbit.base.quoting import listed, quoted, shown
from lowbit.tokenizer.chat_files import folder_templates, key_name, template_names
from lowbit.tokenizer.sentencepiece import CONTROL, SPACE, UNKNOWN, USER_DEFINED
from lowbit.tokenizer.special import ROLES, UNKEPT_ROLES, id_key, known_ends, listed_ends
from lowbit.tokenizer.tokenizer_json import merged_config, named_text, tokenizer_config

__all__ = ["tokenizer_notes"]


def tokenizer_notes(
    folder: Path, config: Mapping[str, Any], tokenizer: Mapping[str, Any], metadata: Mapping[str, Any]
) -> list[str]:
    """Notes, one sentence each. config, tokenizer: config.json and tokenizer.json. metadata: the resulting keys."""
    notes = _ids_without_tokens(config, metadata)
    notes += _lost_ends(folder, metadata)
    merged = merged_config(folder, [])
    notes += _other_roles(folder, merged, metadata)
    notes += _other_templates(folder, merged, metadata)
    if metadata["tokenizer.ggml.model"] == "llama" and is_file(folder / "tokenizer.model"):
        notes += _other_vocabulary(tokenizer, metadata["tokenizer.ggml.tokens"])
    return notes


def _other_roles(folder: Path, merged: Mapping[str, Any], metadata: Mapping[str, Any]) -> list[str]:
    """Special tokens in special_tokens_map.json, which the reference converter does not read."""
    config, tokens = tokenizer_config(folder), metadata["tokenizer.ggml.tokens"]
    other = []
    for role in (role for role in ROLES if role not in UNKEPT_ROLES):
        text, i = named_text(merged.get(f"{role}_token")), metadata.get(id_key(role))
        has = tokens[i] if i is not None and i < len(tokens) else None
        if text not in (None, has, named_text(config.get(f"{role}_token"))):
            other.append(f"{role}_token {quoted(text)} (the file has {'none' if has is None else quoted(has)})")
    return [f"special_tokens_map.json, which transformers uses, is left out: {listed(other)}"] if other else []


def _other_templates(folder: Path, merged: Mapping[str, Any], metadata: Mapping[str, Any]) -> list[str]:
    found = {name: metadata[key] for key, name in template_names(metadata).items()}
    expected = {key_name(name): text for name, text in folder_templates(folder, merged, []).items()}
    if found == expected:
        return []
    names = listed(sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)))
    return [
        "the file has the chat templates of tokenizer_config.json, as with the reference converter; transformers uses "
        f"those of {names}: to use one, run lowbit metadata FILE set tokenizer.chat_template --from-file JINJA"
    ]


def _other_vocabulary(tokenizer: Mapping[str, Any], tokens: Sequence[str]) -> list[str]:
    """A tokenizer.json that differs from the tokenizer.model of the file."""
    vocab = (tokenizer.get("model") or {}).get("vocab")
    if not isinstance(vocab, dict) or not vocab:
        return []
    expected = {i: text for text, i in vocab.items()}
    expected |= {token.get("id"): token["content"] for token in tokenizer.get("added_tokens") or []}
    other = [i for i, text in expected.items() if type(i) is int and not _is_token(tokens, i, text)]
    if not other:
        return []
    first = min(other)
    has = quoted(tokens[first]) if 0 <= first < len(tokens) else "no token"
    return [
        "the file has the tokens of tokenizer.model, as with the reference converter; transformers uses "
        f"tokenizer.json, which has {len(other)} other tokens: id {first} is {quoted(expected[first])} there, "
        f"and {has} in the file"
    ]


def _is_token(tokens: Sequence[str], i: int, text: str) -> bool:
    return 0 <= i < len(tokens) and tokens[i] in (text, text.replace(SPACE, " "))


def _ids_without_tokens(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> list[str]:
    count = len(metadata["tokenizer.ggml.tokens"])
    notes = []
    for role in (role for role in ROLES if role not in ("eos", *UNKEPT_ROLES)):  # listed_ends has eos
        value = config.get(f"{role}_token_id")
        found = metadata.get(id_key(role))
        if type(value) is not int or 0 <= value < count or found not in (None, value):
            continue
        left = "left out" if found is None else f"{id_key(role)} keeps it, and readers ignore it"
        notes.append(f"config.json: {role}_token_id is {shown(value, 40)}, but there are {count} tokens: {left}")
    return notes


def _lost_ends(folder: Path, metadata: Mapping[str, Any]) -> list[str]:
    """Ids that end a text in config.json and generation_config.json, but not in the file."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    notes: list[str] = []
    ids = listed_ends(folder, len(tokens), notes)
    special = np.flatnonzero(np.isin(types, (UNKNOWN, CONTROL, USER_DEFINED))).tolist()
    ends = known_ends({tokens[i]: i for i in special}) | {metadata.get(id_key(role)) for role in ("eos", "eot", "eom")}
    if lost := sorted(ids - ends):
        names = listed((f"{i} ({tokens[i]!r})" for i in lost), 4)
        notes.append(f"eos_token_id lists ids that GGUF has no key for; other programs do not end a text at {names}")
    return notes
