"""Tokenizers of folders without tokenizer.json (SentencePiece's tokenizer.model, or GPT-2's vocab.json and merges.txt),
and of a tokenizer.json that needs changes.

SentencePiece's processing (its own normalizer, one leading space, pieces that are matched first) is composed of steps
of the tokenizers library. Added tokens and their flags come from tokenizer_config.json and added_tokens.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from lowbit.base.errors import FormatError, UnsupportedError
from lowbit.base.foreign import read_own_text
from lowbit.base.quoting import quoted
from lowbit.hf.checkpoint import MAX_JSON_BYTES, read_json
from lowbit.tokenizer.added import checked_id
from lowbit.tokenizer.definition import FLAGS
from lowbit.tokenizer.gguf import Vocab
from lowbit.tokenizer.naming import QWEN2
from lowbit.tokenizer.sentencepiece import BPE, BYTE, CONTROL, SPACE, UNIGRAM, UNKNOWN, USER_DEFINED, Model, read_model
from lowbit.tokenizer.special import ROLES
from lowbit.tokenizer.tokenizer_json import read_optional, tokenizer_json

#: config.json's model_type for which transformers uses tokenizer.json unchanged, for any tokenizer_class.
_TAKEN_AS_THEY_ARE = ("mistral", "phi3")


def rebuilt_definition(folder: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """A folder's tokenizer.json with the parts that transformers replaces; None if it is used unchanged.

    The first files of Llama 2, and fine-tunes of it, mark special tokens as `normalized`. Their normalizer prepends a
    mark to a text, so these tokens are found only after a space: in "</s><s>" the second is plain text. transformers
    builds every LlamaTokenizer without a normalizer. lowbit omits it too if tokens are marked this way. config:
    tokenizer_config.json.
    """
    if str(config.get("tokenizer_class", "")).removesuffix("Fast") != "LlamaTokenizer":
        return None
    tokenizer = tokenizer_json(folder)
    normalizer = tokenizer.get("normalizer")
    steps = normalizer.get("normalizers") if isinstance(normalizer, dict) else None
    if not isinstance(steps, list) or {"type": "Prepend", "prepend": SPACE} not in steps:
        return None
    if not any(token.get("normalized") and token.get("special") for token in tokenizer.get("added_tokens") or []):
        return None
    if read_optional(folder / "config.json").get("model_type") in _TAKEN_AS_THEY_ARE:
        return None
    has_prefix = config.get("add_prefix_space") is not False
    scheme = "never" if not has_prefix else "always" if config.get("legacy") is True else "first"
    front = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}
    return {**tokenizer, "normalizer": None, "pre_tokenizer": front}


def added_tokens(folder: Path, config: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Added tokens by id: from added_tokens_decoder in tokenizer_config.json, with flags; without this key from
    added_tokens.json, as in transformers."""
    path = folder / "added_tokens.json"
    special = _special(config)
    found: dict[int, AddedToken] = {}
    for text, token_id in (read_optional(path) if "added_tokens_decoder" not in config else {}).items():
        found[checked_id(token_id, path)] = AddedToken(text, special=text in special, normalized=text not in special)
    for token_id, entry in (config.get("added_tokens_decoder") or {}).items():
        text = entry["content"]
        flags = {flag: entry[flag] for flag in FLAGS if isinstance(entry.get(flag), bool)}
        flags["special"] = flags.get("special", False) or text in special
        found[checked_id(token_id, folder / "tokenizer_config.json")] = AddedToken(text, **flags)
    return dict(sorted(found.items()))


def _special(config: Mapping[str, Any]) -> set[str]:
    """Texts that have a role in the configuration."""
    extra = config.get("additional_special_tokens") or []
    values = [*(config.get(f"{role}_token") for role in ROLES), *(extra if isinstance(extra, list) else [])]
    texts = (value.get("content") if isinstance(value, dict) else value for value in values)
    return {text for text in texts if isinstance(text, str)}


def sentencepiece_tokenizer(folder: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer of a folder's tokenizer.model, without its BOS and EOS.

    Special tokens are matched at every position. As in transformers, SentencePiece's leading space is added only to the
    text before the first one, or, if `legacy` is set in tokenizer_config.json, also to each text after one.
    """
    path = folder / "tokenizer.model"
    model = read_model(path)
    if model.model_type not in (UNIGRAM, BPE) or model.space_suffix or not model.escape_whitespaces:
        raise UnsupportedError(
            path=path,
            expected="BPE or unigram with spaces before words",
            found=f"model_type {model.model_type}, treat_whitespace_as_suffix {model.space_suffix}, "
            f"escape_whitespaces {model.escape_whitespaces}",
        )
    vocab, added = _vocabulary(path, model, added_tokens(folder, config))
    tokenizer = tokenizers.Tokenizer(_model(vocab, model))
    tokenizer.normalizer = _normalizer(model)
    pieces = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.add_dummy_prefix:
        # Metaspace adds its mark unless the text starts with one. A text starts with a mark only if it is the added
        # space.
        scheme = "always" if config.get("legacy") is True else "first"
        front = pre_tokenizers.Metaspace(" ", prepend_scheme=scheme, split=False)
        mark = pre_tokenizers.Metaspace(SPACE, prepend_scheme="never", split=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([front, mark])
    strip = [decoders.Strip(" ", 1, 0)] if model.add_dummy_prefix or model.remove_extra_whitespaces else []
    tokenizer.decoder = decoders.Sequence([*pieces, *strip])
    tokenizer.add_tokens(added)
    return tokenizer


def _normalizer(model: Model) -> normalizers.Normalizer:
    """The normalization before the leading space is added. Spaces become marks, except a leading space that replaces
    the added one."""
    steps: list[normalizers.Normalizer] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if not model.remove_extra_whitespaces:
        return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    steps += [normalizers.Replace(Regex(" +"), " "), normalizers.Replace(Regex(f"[ {SPACE}]+\\z"), "")]
    steps += [] if model.add_dummy_prefix else [normalizers.Replace(Regex(r"\A "), "")]
    return normalizers.Sequence([*steps, normalizers.Replace(Regex(r"(?!\A) "), SPACE)])


def _vocabulary(path: Path, model: Model, added: Mapping[int, AddedToken]) -> tuple[Vocab, list[AddedToken]]:
    """Pieces and added tokens, and which of them are matched first."""
    tokens, scores, types = (list(column) for column in zip(*model.pieces, strict=True))
    matched = {
        i: AddedToken(text, special=types[i] != USER_DEFINED, normalized=types[i] == USER_DEFINED)
        for i, text in enumerate(tokens)
        if types[i] in (UNKNOWN, CONTROL, USER_DEFINED)
    }
    for token_id, token in added.items():
        if token_id > len(tokens):
            raise FormatError(
                f"added token {token_id}",
                path=path,
                expected=f"consecutive ids, and {len(tokens)} is missing",
                found=token_id,
            )
        if token_id == len(tokens):
            tokens.append(token.content)
            scores.append(0.0)
            types.append(CONTROL)  # no merge produces it
        tokens[token_id] = token.content
    keys = {
        "tokenizer.ggml.model": "llama" if model.model_type == BPE else "t5",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array(scores),
        "tokenizer.ggml.token_type": np.array(types),
    }
    return Vocab(keys), [*{**matched, **added}.values()]


def _model(vocab: Vocab, model: Model) -> models.Model:
    unknown = np.flatnonzero(vocab.types == UNKNOWN)
    has_bytes = model.byte_fallback and bool((vocab.types == BYTE).any())
    if model.model_type == UNIGRAM:
        pieces = list(zip(vocab.texts(), vocab.scores().tolist(), strict=True))
        return models.Unigram(pieces, int(unknown[0]) if len(unknown) else None, has_bytes)
    return models.BPE(
        vocab=vocab.index.ids(),
        merges=vocab.score_merges().pairs(),
        unk_token=vocab.texts([int(unknown[0])])[0] if len(unknown) else None,
        fuse_unk=True,
        byte_fallback=has_bytes,
    )


def byte_level_definition(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The equivalent tokenizer.json of vocab.json and merges.txt.

    Neither file defines the pre-tokenizer. It follows from tokenizer_class; GPT-2's and Qwen2's are known. Raises
    FileError, FormatError or UnsupportedError.
    """
    kind = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    prefix = config.get("add_prefix_space") is True
    bytes_ = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": True}
    split = {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": False}
    chains: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {
        "GPT2Tokenizer": (None, bytes_),
        "Qwen2Tokenizer": (
            {"type": "NFC"},
            {"type": "Sequence", "pretokenizers": [split, {**bytes_, "use_regex": False}]},
        ),
    }
    if kind not in chains:
        raise UnsupportedError(
            f"there is no tokenizer.json, and the pre-tokenizer of tokenizer_class {quoted(kind, 40)} is unknown; "
            f"known are those of {' and '.join(chains)}",
            path=folder,
            key="tokenizer_class",
        )
    normalizer, pre_tokenizer = chains[kind]
    added = added_tokens(folder, config)
    vocab = read_json(folder / "vocab.json")
    if any(type(token_id) is not int for token_id in vocab.values()):
        raise FormatError(path=folder / "vocab.json", expected="integers as ids")
    merges = _merges(folder / "merges.txt")
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": token.content, **{flag: getattr(token, flag) for flag in FLAGS}}
            for i, token in added.items()
        ],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "decoder": bytes_,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def _merges(path: Path) -> list[str]:
    lines = read_own_text(path, MAX_JSON_BYTES).split("\n")
    return [line for line in lines if line and not line.startswith("#version")]
