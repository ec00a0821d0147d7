"""What the reference converter does differently for the tokenizers of a family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class TokenizerRules:
    """Exceptions of the reference converter for the tokenizers of an architecture."""

    keeps_space_prefix: bool = False  #: tokenizer_config.json's add_prefix_space becomes add_space_prefix
    #: values of tokenizer_class for which a tokenizer.model is ignored
    byte_level_classes: tuple[str, ...] = ()
    #: with a tokenizer.model: tokenizer.json's added tokens count too, and added tokens are kept as they are spelled
    tokens_as_spelled: bool = False
    #: a tokenizer.json with byte fallback becomes a SentencePiece vocabulary, with equal scores or the ranks of its
    #: merges; None: it stays byte-level BPE
    byte_fallback: Literal["alike", "ranked"] | None = None
    keys_without_merges: Mapping[str, Any] = field(default_factory=dict)  #: for SentencePiece vocabularies
    keys_by_size: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)  #: for vocabularies known by their size
