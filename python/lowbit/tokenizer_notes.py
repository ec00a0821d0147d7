"""What a conversion says of a tokenizer: ids that no token has, and what of a folder the keys of GGUF do not keep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.quoting import listed, shown
from lowbit.sentencepiece import CONTROL, UNKNOWN, USER_DEFINED
from lowbit.special_tokens import ROLES, UNKEPT_ROLES, id_key, known_ends, listed_ends

__all__ = ["tokenizer_notes"]


def tokenizer_notes(folder: Path, config: Mapping[str, Any], metadata: Mapping[str, Any]) -> list[str]:
    """One sentence each. config: config.json. metadata: the tokenizer's keys, made of the folder."""
    notes = _ids_without_tokens(config, metadata)
    notes += _lost_ends(folder, metadata)
    return notes


def _ids_without_tokens(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> list[str]:
    count = len(metadata["tokenizer.ggml.tokens"])
    notes = []
    for role in (role for role in ROLES if role not in ("eos", *UNKEPT_ROLES)):  # listed_ends tells of eos
        value = config.get(f"{role}_token_id")
        found = metadata.get(id_key(role))
        if type(value) is not int or 0 <= value < count or found not in (None, value):
            continue
        left = "left out" if found is None else f"{id_key(role)} keeps it, and readers ignore it"
        notes.append(f"config.json: {role}_token_id is {shown(value, 40)}, which none of {count} tokens has: {left}")
    return notes


def _lost_ends(folder: Path, metadata: Mapping[str, Any]) -> list[str]:
    """Ids that end a text for config.json and generation_config.json, and not for the file."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    notes: list[str] = []
    ids = listed_ends(folder, len(tokens), notes)
    special = np.flatnonzero(np.isin(types, (UNKNOWN, CONTROL, USER_DEFINED))).tolist()
    ends = known_ends({tokens[i]: i for i in special}) | {metadata.get(id_key(role)) for role in ("eos", "eot", "eom")}
    if lost := sorted(ids - ends):
        names = listed((f"{i} ({tokens[i]!r})" for i in lost), 4)
        notes.append(f"eos_token_id lists ids that GGUF has no key for; other programs do not end a text at {names}")
    return notes
