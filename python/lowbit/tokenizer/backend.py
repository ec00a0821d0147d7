"""Implementations of a tokenizer: the `tokenizers` library alone, or together with the core.

The library takes 0.2 to 0.5 s to build a BPE model of a large vocabulary. The core is several times faster and gives
the same ids. It does only the merges. The library still normalizes, finds added tokens, pre-tokenizes, adds special
tokens around a text, and decodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import tokenizers
from tokenizers import AddedToken, models

from lowbit._core import Bpe, Merges, TokenIndex


def _plain(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A copy that treats special tokens in a text as text. In the library this is an attribute of the tokenizer, so
    switching it for each call would not be thread-safe."""
    plain = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True
    return plain


class LibraryBackend:
    """Only the library. `parts` has a tokenizer's steps, `whole` also its vocabulary; here they are the same object."""

    def __init__(self, whole: tokenizers.Tokenizer) -> None:
        self.whole = self.parts = whole

    @cached_property
    def added(self) -> Mapping[int, AddedToken]:
        """Added tokens by id."""
        return self.whole.get_added_tokens_decoder()

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        return _plain(self.whole)

    def __len__(self) -> int:
        return self.whole.get_vocab_size()

    def num_ids(self, least: int) -> int:
        """The number of ids, at least `least`."""
        return max(least, max(self.whole.get_vocab().values(), default=-1) + 1)

    def encode(self, text: str, add_special_tokens: bool, parse_special: bool) -> list[int]:
        """Ids of a text."""
        whole = self.whole if parse_special else self._plain
        return whole.encode(text, add_special_tokens=add_special_tokens).ids

    def pieces(self, ids: list[int]) -> list[str | None]:
        """The input of a decoder for ids. Added tokens with the flag `normalized` are in their normalized form."""
        return [self.whole.id_to_token(i) for i in ids]

    def id(self, token: str) -> int | None:
        """The id of a token."""
        return self.whole.token_to_id(token)


@dataclass(frozen=True)
class BpeModel:
    """A BPE vocabulary in the core. The options are those of `tokenizers.models.BPE`."""

    index: TokenIndex
    merges: Merges
    unknown: int | None = None
    fuse_unk: bool = False
    byte_fallback: bool = False
    ignore_merges: bool = False

    def in_core(self, ids_of: list[int | None]) -> Bpe:
        """The encoder of words. ids_of: for `Bpe.encode`, ids of the library's encoding -> ids here; None for words."""
        return Bpe(self.merges, ids_of, self.unknown, self.fuse_unk, self.byte_fallback, self.ignore_merges)

    def in_library(self, **options: Any) -> models.BPE:
        """The same model in the library, with other options if given."""
        ours = {
            "unk_token": None if self.unknown is None else self.index.text(self.unknown),
            "fuse_unk": self.fuse_unk,
            "byte_fallback": self.byte_fallback,
            "ignore_merges": self.ignore_merges,
        }
        return models.BPE(vocab=self.index.ids(), merges=self.merges.pairs(), **{**ours, **options})


class BpeBackend:
    """The library for the steps and the core for the merges, with the same methods.

    `parts` is a tokenizer whose unigram model has no words: it leaves words unchanged in the tokens of an encoding,
    with id 0. Added tokens have other ids. Every added token is in the vocabulary.
    """

    def __init__(self, parts: tokenizers.Tokenizer, model: BpeModel, added: Sequence[AddedToken]) -> None:
        self._model, self._given = model, list(added)
        longest = max((len(token.content) for token in added), default=0)
        parts.model = models.Unigram([("\0" * (longest + 1), 0.0)], 0, False)  # no added token has this name
        parts.add_tokens(self._given)
        self.parts = parts
        self.added: dict[int, AddedToken] = {}
        self._normalized: dict[int, str] = {}
        self._ids_of: list[int | None] = [None]
        for own_id, token in parts.get_added_tokens_decoder().items():
            token_id = model.index.find(token.content)
            assert token_id is not None
            assert own_id == len(self._ids_of)
            self._ids_of.append(token_id)
            self.added[token_id] = token
            if (text := parts.id_to_token(own_id)) is not None and text != token.content:
                self._normalized[token_id] = text
        self._bpe = model.in_core(self._ids_of)

    def __reduce__(self) -> tuple[Any, ...]:
        return LibraryBackend, (self.whole,)

    @cached_property
    def whole(self) -> tokenizers.Tokenizer:
        """The same tokenizer in the library alone."""
        whole = tokenizers.Tokenizer(self._model.in_library())
        for name in ("normalizer", "pre_tokenizer", "decoder", "post_processor"):
            if (part := getattr(self.parts, name)) is not None:
                setattr(whole, name, part)
        whole.add_tokens(self._given)
        return whole

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        return _plain(self.parts)

    def __len__(self) -> int:
        return len(self._model.index)

    def num_ids(self, least: int) -> int:
        """The number of ids, at least `least`."""
        return max(least, len(self))

    def encode(self, text: str, add_special_tokens: bool, parse_special: bool) -> list[int]:
        """Ids of a text."""
        parts = self.parts if parse_special else self._plain
        found = parts.encode(text, add_special_tokens=add_special_tokens)
        return self._bpe.encode(found.tokens, found.ids, found.special_tokens_mask)

    def pieces(self, ids: list[int]) -> list[str | None]:
        """The input of a decoder for ids."""
        texts = self._model.index.texts(ids)
        return (
            [self._normalized.get(i, text) for i, text in zip(ids, texts, strict=True)] if self._normalized else texts
        )

    def id(self, token: str) -> int | None:
        """The id of a token."""
        own_id = self.parts.token_to_id(token)
        return self._model.index.find(token) if own_id is None else self._ids_of[own_id]


Backend = LibraryBackend | BpeBackend


def backend_of(parts: tokenizers.Tokenizer, model: BpeModel | models.Model, added: Sequence[AddedToken]) -> Backend:
    """A backend from a tokenizer's steps (its model is ignored), a model and added tokens."""
    if isinstance(model, BpeModel):
        if all(not token.content or model.index.find(token.content) is not None for token in added):
            return BpeBackend(parts, model, added)
        model = model.in_library()  # the library renumbers the other tokens
    parts.model = model
    parts.add_tokens(list(added))
    return LibraryBackend(parts)
