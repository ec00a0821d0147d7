"""Added tokens: those of tokenizer.json, tokenizer_config.json and added_tokens.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from lowbit.base.errors import FormatError
from lowbit.base.quoting import quoted
from lowbit.tokenizer.tokenizer_json import read_optional

#: The most tokens of a vocabulary.
MAX_TOKENS = 1 << 24


class AddedToken(NamedTuple):
    """An entry of added_tokens or added_tokens_decoder."""

    text: str
    special: bool
    normalized: bool


def json_added_tokens(
    folder: Path, tokenizer: dict[str, Any], tokenizer_config: dict[str, Any]
) -> dict[int, AddedToken]:
    """Added tokens by id: those of tokenizer.json, updated from tokenizer_config.json."""
    entries = tokenizer.get("added_tokens") or []
    decoder = tokenizer_config.get("added_tokens_decoder") or {}
    found: dict[int, AddedToken] = {}
    for token_id, entry in [*((entry.get("id"), entry) for entry in entries), *decoder.items()]:
        special = bool(entry.get("special", False))
        token = AddedToken(entry["content"], special, bool(entry.get("normalized", not special)))
        found[checked_id(token_id, folder)] = token
    return found


def with_old_added(
    folder: Path, tokenizer: dict[str, Any], tokenizer_config: dict[str, Any], vocab_size: int
) -> dict[str, Any]:
    """tokenizer.json plus missing tokens of added_tokens.json. transformers, and so the reference converter, adds them
    unless tokenizer_config.json lists added tokens."""
    if not tokenizer or "added_tokens_decoder" in tokenizer_config:
        return tokenizer
    path, special = folder / "added_tokens.json", named_tokens(tokenizer_config)
    there = tokenizer.get("added_tokens") or []
    texts, ids = {token["content"] for token in there}, {token.get("id") for token in there}
    more = [
        {"id": token_id, "content": text, "special": text in special, "normalized": text not in special}
        for text, value in read_optional(path).items()
        if text not in texts and (token_id := checked_id(value, path)) not in ids and token_id < vocab_size
    ]
    return {**tokenizer, "added_tokens": [*there, *more]}


def checked_id(value: Any, path: Path) -> int:
    """A token id in a JSON file, which may be text. Raises FormatError."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        value = int(value)
    if type(value) is not int or not 0 <= value < MAX_TOKENS:
        raise FormatError(
            f"token id {quoted(value)}", path=path, expected=f"an integer below {MAX_TOKENS}", found=value
        )
    return value


def named_tokens(tokenizer_config: dict[str, Any]) -> set[str]:
    """Texts of the tokens that have a role in tokenizer_config.json, with the llama tokenizer's defaults."""
    roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    named = {key: tokenizer_config.get(key, default) for key, default in roles.items()}
    named |= {key: tokenizer_config.get(key) for key in ("sep_token", "pad_token", "cls_token", "mask_token")}
    extra = tokenizer_config.get("additional_special_tokens") or tokenizer_config.get("extra_special_tokens") or []
    values = [*named.values(), *(extra.values() if isinstance(extra, dict) else extra)]
    texts = (value.get("content") if isinstance(value, dict) else value for value in values)
    return {text for text in texts if isinstance(text, str)}
