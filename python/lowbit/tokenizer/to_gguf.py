"""tokenizer.* keys of a GGUF file, from a Hugging Face folder, using only JSON and a small parser.

Three kinds are tried in the reference converter's order: tokenizer.model (SentencePiece), tokenizer.json with byte
fallback (SentencePiece's vocabulary without its scores), tokenizer.json with byte-level BPE.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.base.errors import FileError, FormatError
from lowbit.base.paths import is_file
from lowbit.base.quoting import quoted
from lowbit.tokenizer.added import MAX_TOKENS, checked_id, json_added_tokens, named_tokens, with_old_added
from lowbit.tokenizer.byte_level import BYTES
from lowbit.tokenizer.naming import pre_tokenizer_name
from lowbit.tokenizer.notes import tokenizer_notes
from lowbit.tokenizer.rules import TokenizerRules
from lowbit.tokenizer.sentencepiece import BYTE, CONTROL, NORMAL, SPACE, UNUSED, USER_DEFINED, read_model
from lowbit.tokenizer.special import special_tokens, tokenizer_merges
from lowbit.tokenizer.tokenizer_json import read_optional, tokenizer_json
from lowbit.tokenizer.tokenizer_json import tokenizer_config as read_tokenizer_config

ADDED_SCORE = -1000.0
PADDING_SCORE = -10000.0

#: Control tokens that their authors did not mark as special.
_SPECIAL_LOOKS = re.compile(r"<pad>|<mask>|<2mass>|\[@BOS@\]|<\|.*\|>|<\uff5c.*\uff5c>|<unused.*>", re.DOTALL)
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def padding_text(token_id: int) -> str:
    """The text in GGUF of an id without a token."""
    return f"[PAD{token_id}]"


def looks_special(text: str) -> bool:
    """Whether a token is a control token by its spelling."""
    return _SPECIAL_LOOKS.fullmatch(text) is not None


def _decoded(text: str) -> str:
    """The text of an added token after a byte-level decoder."""
    try:
        return bytes(BYTES[c] for c in text).decode("utf-8", errors="replace")
    except KeyError:
        return text


def _base_vocab(tokenizer: dict[str, Any], path: Path) -> dict[int, str]:
    """Tokens of tokenizer.json's model by id."""
    model = tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict) or not vocab or model.get("type") != "BPE":  # type: ignore[union-attr]
        raise FormatError("model:", path=path, key="model", expected="a BPE vocabulary")
    found: dict[int, str] = {}
    for text, value in vocab.items():
        token_id = checked_id(value, path)
        if found.setdefault(token_id, text) != text:
            raise FormatError(
                f"tokens {quoted(found[token_id])} and {quoted(text)} have the same id {token_id}", path=path
            )
    return found


def _byte_level(
    folder: Path, tokenizer: dict[str, Any], tokenizer_config: dict[str, Any], vocab_size: int
) -> dict[str, Any]:
    """Keys of a byte-level BPE vocabulary."""
    path = folder / "tokenizer.json"
    vocab = _base_vocab(tokenizer, path)
    added = json_added_tokens(folder, tokenizer, tokenizer_config)
    vocab |= {token_id: token.text for token_id, token in added.items()}
    if max(vocab) >= vocab_size:
        raise FormatError(f"token id {max(vocab)}, but vocab_size in config.json is {vocab_size}", path=path)
    tokens, types = [], np.full(vocab_size, NORMAL, np.int32)
    for i in range(vocab_size):
        text = vocab.get(i)
        if text is None:
            text, types[i] = padding_text(i), UNUSED
        elif i in added:
            text = text if added[i].normalized else _decoded(text)
            types[i] = CONTROL if added[i].special or looks_special(text) else USER_DEFINED
            if types[i] == USER_DEFINED:
                text = text.replace(SPACE, " ")
        tokens.append(text)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre_tokenizer_name(tokenizer, path),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
    }


def _sentencepiece_keys(tokens: list[str], scores: list[float], types: list[int]) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
    }


def _sentencepiece(
    folder: Path, tokenizer: dict[str, Any], tokenizer_config: dict[str, Any], as_spelled: bool, vocab_size: int
) -> dict[str, Any]:
    """Keys of tokenizer.model, updated from added_tokens.json and tokenizer_config.json.

    Ids from vocab_size on are left out, ids without a piece become padding. as_spelled: the added tokens of
    tokenizer.json are included, and added tokens keep their spelling.
    """
    tokens = [padding_text(i) for i in range(vocab_size)]
    scores = [PADDING_SCORE] * vocab_size
    types = [UNUSED] * vocab_size
    for i, piece in enumerate(read_model(folder / "tokenizer.model").pieces[:vocab_size]):
        tokens[i], scores[i] = piece.text, piece.score
        types[i] = NORMAL if piece.type == USER_DEFINED else piece.type
    path = folder / "added_tokens.json"
    for text, value in read_optional(path).items():
        if (i := checked_id(value, folder)) < vocab_size:
            tokens[i], scores[i], types[i] = text, ADDED_SCORE, USER_DEFINED
    added = json_added_tokens(folder, {}, tokenizer_config)
    if as_spelled:
        added |= json_added_tokens(folder, tokenizer, {})
    for i, token in added.items():
        if i < vocab_size:
            special = token.special or (looks_special(token.text) and not as_spelled)
            tokens[i] = token.text if special or as_spelled else token.text.replace(SPACE, " ")
            scores[i], types[i] = ADDED_SCORE, CONTROL if special else USER_DEFINED
    return _sentencepiece_keys(tokens, scores, types)


def _byte_fallback(folder: Path, tokenizer: dict[str, Any], tokenizer_config: dict[str, Any]) -> dict[str, Any]:
    """Keys of a tokenizer.json with a SentencePiece vocabulary. The scores are unknown, so all are equal."""
    vocab = _base_vocab(tokenizer, folder / "tokenizer.json")
    size = len(vocab)
    if sorted(vocab) != list(range(size)):
        raise FormatError("vocabulary:", path=folder / "tokenizer.json", expected=f"all ids from 0 to {size - 1}")
    special = named_tokens(tokenizer_config)
    tokens, types = [vocab[i] for i in range(size)], [NORMAL] * size
    for i, text in enumerate(tokens):
        if _BYTE_TOKEN.fullmatch(text):
            types[i] = BYTE
        elif text in special:
            types[i] = CONTROL
    for i, token in sorted(json_added_tokens(folder, tokenizer, tokenizer_config).items()):
        if i >= size:
            tokens.append(token.text)
            types.append(CONTROL if token.text in special else USER_DEFINED)
    return _sentencepiece_keys(tokens, [ADDED_SCORE] * len(tokens), types)


def _ranked(
    folder: Path, tokenizer: dict[str, Any], tokenizer_config: dict[str, Any], vocab_size: int
) -> dict[str, Any]:
    """Keys of a tokenizer.json for an architecture whose files the reference makes only from tokenizer.model.

    A token's score is minus the rank of the first merge that gives it, so the scores order the merges as their ranks
    do. Raises FormatError for missing ids and ids from vocab_size on. A shorter vocabulary is padded.
    """
    path = folder / "tokenizer.json"
    vocab = _base_vocab(tokenizer, path)
    added = json_added_tokens(folder, tokenizer, tokenizer_config)
    if max((*vocab, *added)) >= vocab_size:
        raise FormatError(f"token id {max((*vocab, *added))}, but vocab_size in config.json is {vocab_size}", path=path)
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(tokenizer_merges(tokenizer, folder)):
        ranks.setdefault(merge.replace(" ", "", 1), rank)
    tokens, types = [padding_text(i) for i in range(vocab_size)], [UNUSED] * vocab_size
    scores = [PADDING_SCORE] * vocab_size
    for i, text in vocab.items():
        tokens[i], scores[i] = text, float(-ranks.get(text, len(ranks)))
        types[i] = BYTE if _BYTE_TOKEN.fullmatch(text) else NORMAL
    for i, token in added.items():
        special = token.special or looks_special(token.text)
        tokens[i], scores[i] = token.text if special else token.text.replace(SPACE, " "), ADDED_SCORE
        types[i] = CONTROL if special else USER_DEFINED
    return _sentencepiece_keys(tokens, scores, types)


def _is_byte_fallback(tokenizer: dict[str, Any]) -> bool:
    model, decoder = tokenizer.get("model"), tokenizer.get("decoder")
    return (
        isinstance(model, dict)
        and model.get("type") == "BPE"
        and model.get("byte_fallback") is True
        and isinstance(decoder, dict)
        and decoder.get("type") == "Sequence"
    )


def _check_unique(tokens: list[str], folder: Path) -> None:
    """Raises FormatError if two ids have one text: readers of GGUF files refuse that, except for empty texts."""
    seen: dict[str, int] = {}
    for i, text in enumerate(tokens):
        if text and seen.setdefault(text, i) != i:
            raise FormatError(f"the ids {seen[text]} and {i} have the same token {quoted(text)}", path=folder)


def tokenizer_metadata(
    folder: Path, config: dict[str, Any], rules: TokenizerRules, vocab_size: int, notes: list[str] | None = None
) -> dict[str, Any]:
    """The tokenizer.* keys of a Hugging Face folder, in the reference's order.

    config: config.json. rules: those of the architecture. vocab_size: rows of the embedding; shorter vocabularies are
    padded. notes: a list to which losses are appended.
    """
    if vocab_size > MAX_TOKENS:
        raise FormatError(
            f"vocab_size {vocab_size}",
            path=folder / "config.json",
            key="vocab_size",
            expected=f"at most {MAX_TOKENS}",
            found=vocab_size,
        )
    tokenizer, tokenizer_config = tokenizer_json(folder), read_tokenizer_config(folder)
    result: dict[str, Any] = {}
    prefix_space = tokenizer_config.get("add_prefix_space")
    if rules.keeps_space_prefix and isinstance(prefix_space, bool):
        result["tokenizer.ggml.add_space_prefix"] = prefix_space
    merges = False
    in_full = with_old_added(folder, tokenizer, tokenizer_config, vocab_size)
    is_byte_level = tokenizer_config.get("tokenizer_class") in rules.byte_level_classes
    if is_file(folder / "tokenizer.model") and not is_byte_level:
        result |= _sentencepiece(folder, tokenizer, tokenizer_config, rules.tokens_as_spelled, vocab_size)
    elif not tokenizer and is_file(folder / "vocab.json"):
        from lowbit.tokenizer.files import byte_level_definition  # imports the tokenizers library

        merges, tokenizer = True, byte_level_definition(folder, tokenizer_config)
        result |= _byte_level(folder, tokenizer, tokenizer_config, vocab_size)
    elif not tokenizer:
        raise FileError(
            "no tokenizer.json or tokenizer.model: save the tokenizer in the model's folder",
            path=folder,
            errno=errno.ENOENT,
        )
    elif rules.byte_fallback == "alike" and _is_byte_fallback(tokenizer):
        result |= _byte_fallback(folder, in_full, tokenizer_config)
    elif rules.byte_fallback == "ranked" and _is_byte_fallback(tokenizer):
        result |= _ranked(folder, in_full, tokenizer_config, vocab_size)
    else:
        merges = True
        result |= _byte_level(folder, in_full, tokenizer_config, vocab_size)
    num_tokens = None if merges else len(result["tokenizer.ggml.tokens"])
    result |= special_tokens(folder, config, tokenizer, tokenizer_config, merges, num_tokens)
    if merges and "tokenizer.ggml.merges" not in result:
        raise FormatError(
            "model has no merges, and BPE needs them: save the tokenizer again, or download the file again",
            path=folder / "tokenizer.json",
        )
    _check_unique(result["tokenizer.ggml.tokens"], folder)
    result |= {} if merges else rules.keys_without_merges
    result |= rules.keys_by_size.get(vocab_size, {})
    if notes is not None:
        notes += tokenizer_notes(folder, config, tokenizer, result)
    return result
