"""The ids that onnxruntime-genai 0.18 gives for a text.

It reads tokenizer.json with an implementation of its own, which knows byte-level and SentencePiece-like BPE. A
normalizer, the post-processor, flags of added tokens and most pre-tokenizers have no effect.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import tokenizers
from tokenizers import Regex, models, pre_tokenizers

from lowbit.tokenizer.byte_level import BYTES
from lowbit.tokenizer.limits import state
from lowbit.tokenizer.naming import GPT2, LLAMA3
from lowbit.tokenizer.sentencepiece import SPACE

#: The types of pre-tokenizers that it does not refuse. It obeys only Split.
PRE_TOKENIZERS = frozenset(
    ("BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "Metaspace", "PreTokenizer", "Punctuation",
     "Sequence", "Split", "UnicodeScripts", "Whitespace", "WhitespaceSplit")
)  # fmt: skip
#: What it removes after an added token with rstrip.
_SPACES = " \n\r\t"
#: SentencePiece's pieces: a text is cut before a space after this many characters, and everywhere after the second.
_FEW, _MANY = 10, 100
_BREAKS = (" ", "\n", "\r", SPACE)
#: The parts of regular expressions for which it has code, as it removes them from an expression one after another.
_LETTERS = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_KNOWN_PARTS = (
    f"{_LETTERS}{_UPPER}*{_LOWER}+{_ENDINGS}?", f"{_LETTERS}{_UPPER}+{_LOWER}*{_ENDINGS}?",
    f"{_LETTERS}{_UPPER}*{_LOWER}+", f"{_LETTERS}{_UPPER}+{_LOWER}*",
    "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", _ENDINGS,
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r" ?[^\s\p{L}\p{N}]+[\r\n]*", f"{_LETTERS}[\\p{{L}}\\p{{M}}]+",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", f"{_LETTERS}\\p{{L}}+", "'s|'t|'re|'ve|'m|'ll|'d",
    r" ?[^\s\p{L}\p{N}]+", r" ?\p{L}+| ?\p{N}+", r"[\p{L}]+|[\p{N}]", r"[^\s\p{L}\p{N}]+", r"\s+(?!\S)|\s+",
    r"\p{N}{1,3}", r"\s*[\r\n]+", r"\p{N}",
)  # fmt: skip
_CHARACTERS = {byte: character for character, byte in BYTES.items()}


@dataclass(frozen=True)
class GenaiTokenizer:
    """A tokenizer as genai reads it. Its model must be BPE."""

    whole: tokenizers.Tokenizer
    is_gemma: bool = False  #: the class in tokenizer_config.json is Gemma's

    def encode(self, text: str) -> list[int]:
        """Ids of a text. None of them is added around it."""
        ids: list[int] = []
        strips = False
        for part in self._added.split(text) if self._ids else [text]:
            if (token_id := self._ids.get(part)) is not None:
                ids.append(token_id)
                strips = self.added[token_id].rstrip
                continue
            part = part.lstrip(_SPACES) if strips else part
            strips = False
            for piece in self._spm_pieces(part) if self.is_spm else self._byte_pieces(part):
                whole = self._model.token_to_id(piece)
                ids += [token.id for token in self._model.tokenize(piece)] if whole is None else [whole]
        return ids

    @cached_property
    def is_spm(self) -> bool:
        """Whether it takes the tokenizer for SentencePiece's: by the steps of the decoder."""
        return any(
            (step["type"] == "Replace" and step["pattern"].get("String") == SPACE)
            or (step["type"] == "Metaspace" and step["replacement"] == SPACE)
            for step in self._decoders
        )

    @cached_property
    def keeps_first_space(self) -> bool:
        """Whether decoding should remove the first space, which genai keeps."""
        return self.is_spm and any(step["type"] == "Strip" and step["content"] == " " for step in self._decoders)

    @cached_property
    def regexes(self) -> list[str]:
        """The splits that it applies, one after another."""
        pre_tokenizer = state(self.whole.pre_tokenizer) or {}
        if pre_tokenizer.get("type") == "Split":
            found = [pre_tokenizer["pattern"].get("Regex")]
            return [found[0]] if found[0] is not None else []
        steps = []
        for step in pre_tokenizer.get("pretokenizers", []):
            if step["type"] == "Split":
                if (regex := step["pattern"].get("Regex")) is None:
                    break
                steps.append(regex)
        return steps or [LLAMA3 if self.is_spm else GPT2]

    @cached_property
    def _decoders(self) -> list[dict[str, Any]]:
        steps: list[dict[str, Any]] = (state(self.whole.decoder) or {}).get("decoders", [])
        return steps

    @cached_property
    def _model(self) -> models.BPE:
        model: models.BPE = self.whole.model
        return model

    @cached_property
    def added(self) -> dict[int, tokenizers.AddedToken]:
        """Added tokens by id."""
        return self.whole.get_added_tokens_decoder()

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token.content: token_id for token_id, token in self.added.items()}

    @cached_property
    def _added(self) -> re.Pattern[str]:
        """Added tokens, the longest first."""
        return re.compile(f"({'|'.join(map(re.escape, sorted(self._ids, key=len, reverse=True)))})")

    @cached_property
    def _splits(self) -> list[pre_tokenizers.Split]:
        return [pre_tokenizers.Split(Regex(regex), "isolated") for regex in self.regexes]

    def _split(self, text: str) -> list[str]:
        parts = [text]
        for split in self._splits:
            parts = [piece for part in parts for piece, _ in split.pre_tokenize_str(part)]
        return parts

    def _byte_pieces(self, text: str) -> Iterator[str]:
        for part in self._split(text):
            yield "".join(_CHARACTERS[byte] for byte in part.encode())

    def _spm_pieces(self, text: str) -> Iterator[str]:
        is_whole = not self.regexes  # a split at a fixed text has no effect, and then there is no prefix
        has_prefix = self.keeps_first_space and not is_whole and text
        marked = SPACE + text if has_prefix else text
        if self.is_gemma or is_whole or (has_prefix and text.startswith(" ")):
            yield from map(_with_marks, _cut(marked))
        else:
            yield from map(_with_marks, self._split(marked))


def is_known_regex(regex: str) -> bool:
    """Whether genai has code for all parts of a regular expression. Others run in std::regex, over UTF-8."""
    for part in _KNOWN_PARTS:
        regex = re.sub(rf"(?:^|\|){re.escape(part)}(?=\||$)", "", regex, count=1).removeprefix("|")
    return not regex


def _with_marks(text: str) -> str:
    return text.replace(" ", SPACE)


def _cut(text: str) -> Iterator[str]:
    """Pieces of a text that is not split into words."""
    start = 0
    for i in range(1, len(text)):
        is_word = text[i] in _BREAKS and text[i - 1] not in _BREAKS
        if (i - start > _FEW and is_word) or i - start > _MANY:
            yield text[start:i]
            start = i
    if text:
        yield text[start:]
