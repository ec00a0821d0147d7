"""A tokenizer's backend, built from the metadata of a GGUF file.

Byte-level BPE (`gpt2`, and `gemma4`, which is BPE over plain text) has its merges in the file. SentencePiece BPE
(`llama`) has scores: two pieces merge if their concatenation is a piece, best score first. That is BPE with merges
ranked by score, so the merges are computed from the scores here. Embedding models use SentencePiece's unigram model
(`t5`) and WordPiece (`bert`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from lowbit._core import GgufStrings, Merges, TokenIndex
from lowbit.base.errors import FormatError, UnsupportedError
from lowbit.base.quoting import quoted
from lowbit.gguf.reading import strings
from lowbit.tokenizer.backend import Backend, BpeModel, backend_of
from lowbit.tokenizer.regexes import PRE_TOKENIZERS, PreTokenizer
from lowbit.tokenizer.sentencepiece import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED
from lowbit.tokenizer.special import checked_special, wrong_key

_TOKENS, _SCORES = "tokenizer.ggml.tokens", "tokenizer.ggml.scores"


class Vocab:
    """The checked tokenizer arrays of a file: `index` of the tokens, `types` int (N,), `scores` float (N,) or None."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self._notes: dict[str, str] = {}
        self.model = self.text("tokenizer.ggml.model")
        self.index = TokenIndex(self._strings(_TOKENS))
        self._changed: dict[int, str] = {}
        if not len(self):
            raise wrong_key(_TOKENS, "at least one token", "none")
        self._spell({i: f"[EMPTY_{i}]" for i in self.index.blank()})
        if (twice := self.index.repeated) is not None:
            (text,) = self.texts([twice])
            raise FormatError(f"{_TOKENS}: the token {quoted(text)} occurs more than once", key=_TOKENS)
        types = self._numbers("tokenizer.ggml.token_type")
        self.types = np.full(len(self), NORMAL, np.int64) if types is None else types.astype(np.int64)

    def __len__(self) -> int:
        return len(self.index)

    def _spell(self, changed: Mapping[int, str]) -> None:
        if changed:
            self._changed = {**self._changed, **changed}
            self.index = TokenIndex(self._strings(_TOKENS), self._changed)

    def texts(self, ids: Iterable[int] | None = None) -> list[str]:
        """The texts of tokens, by default of all."""
        return self.index.spellings(list(range(len(self)) if ids is None else ids))

    def spelled(self, changed: Mapping[int, str]) -> Vocab:
        """The same arrays with other texts of some tokens, by id; an empty text is not a token."""
        vocab = copy(self)
        vocab._spell(changed)
        return vocab

    def text(self, key: str, default: str | None = None) -> str:
        """A string value; `default=None` means that the key is required."""
        value = self._metadata.get(key, default)
        if not isinstance(value, str):
            raise wrong_key(key, "a string", _kind(value))
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A boolean value."""
        value = self._metadata.get(key, default)
        if not isinstance(value, (bool, np.bool_)):
            raise wrong_key(key, "a boolean", _kind(value))
        return bool(value)

    def token_id(self, key: str, default: int | None = None) -> int | None:
        """A special token's id in the file, or `default`. An id without a token is ignored with a note."""
        value = self._metadata.get(key)
        found = None if value is None else checked_special(key, value, len(self))
        if found is None and value is not None:
            self.note(key, f"is {value}, but the ids are 0 to {len(self) - 1}: ignored")
        if found is None and default is not None and default < len(self):
            return default
        return found

    def token_ids(self, key: str) -> list[int]:
        """An array of ids; [] if it is missing."""
        value = self._metadata.get(key, np.empty(0, np.uint32))
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or value.ndim != 1:
            raise wrong_key(key, "an array of integers", _kind(value))
        if len(value) and not (value.min() >= 0 and value.max() < len(self)):
            raise wrong_key(key, f"ids below {len(self)}", f"{value.min()} to {value.max()}")
        return [int(i) for i in value]

    def note(self, key: str, sentence: str) -> None:
        """Records a note on an ignored value, once per key."""
        self._notes[key] = f"{key} {sentence}"

    @property
    def notes(self) -> list[str]:
        """Notes on ignored values, one sentence each."""
        return list(self._notes.values())

    def scores(self) -> np.ndarray:
        """Scores of the pieces, float64 (N,)."""
        scores = self._numbers(_SCORES)
        if scores is None:
            raise FormatError(f"{_SCORES} is missing, and a SentencePiece tokenizer needs it", key=_SCORES)
        if np.isnan(scores).any():
            raise FormatError(f"{_SCORES}: NaN at index {int(np.isnan(scores).argmax())}", key=_SCORES)
        return scores.astype(np.float64)

    def bytes(self, key: str) -> bytes:
        """An array of bytes; b"" if it is missing."""
        value = self._metadata.get(key, np.empty(0, np.uint8))
        if not isinstance(value, np.ndarray) or value.dtype.itemsize != 1 or value.dtype.kind not in "iu":
            raise wrong_key(key, "an array of bytes", _kind(value))
        return value.tobytes()

    def has(self, key: str) -> bool:
        """Whether the file has this key."""
        return key in self._metadata

    def merges(self, key: str = "tokenizer.ggml.merges") -> Merges:
        """The merges, best first. Both parts and the result must be tokens."""
        if not self.has(key):
            raise FormatError(
                f"{key} is missing, and a {self.model} tokenizer needs it: convert the model again",
                key=key,
            )
        return Merges.of_lines(self.index, self._strings(key), key)

    def score_merges(self) -> Merges:
        """The merges that follow from the scores. The result of a merge is never a control, unknown or byte token."""
        return Merges.of_scores(self.index, self.scores(), ~np.isin(self.types, (UNKNOWN, CONTROL, BYTE)))

    def _strings(self, key: str) -> list[str] | GgufStrings:
        found = strings(self._metadata, key)
        if found is None:
            raise wrong_key(key, "an array of strings", _kind(self._metadata.get(key)))
        return found

    def _numbers(self, key: str) -> np.ndarray | None:
        value = self._metadata.get(key)
        if value is None:
            return None
        if isinstance(value, list) and value and not isinstance(value[0], str):
            value = np.asarray(value)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf":
            raise wrong_key(key, "an array of numbers", _kind(value))
        if value.ndim != 1 or len(value) != len(self):
            raise wrong_key(key, f"{len(self)} values, one for each token", value.size)
        return value


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {quoted(value, 40)}"


class Family(NamedTuple):
    """Defaults of a kind of tokenizer, for missing keys.

    ids: role -> id. first, last: the roles of the tokens around a text; "" for none.
    """

    ids: dict[str, int]
    first: str = ""
    last: str = ""


_FAMILIES = {
    "llama": Family({"bos": 1, "eos": 2, "unk": 0}, first="bos"),
    "gpt2": Family({}),
    "gemma4": Family({}, first="bos"),
    "t5": Family({"eos": 1, "unk": 2, "pad": 0}, last="eos"),
    "bert": Family({"bos": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103}, first="bos", last="sep"),
}


def family(vocab: Vocab) -> Family:
    """The file's kind of tokenizer. Raises UnsupportedError for an unknown kind."""
    if vocab.model not in _FAMILIES:
        known = ", ".join(sorted(_FAMILIES))
        raise UnsupportedError(
            f"tokenizer.ggml.model: unsupported model {vocab.model!r}",
            key="tokenizer.ggml.model",
            expected=f"one of {known}",
            found=vocab.model,
        )
    found = _FAMILIES[vocab.model]
    return found._replace(first="bos") if vocab.model == "gpt2" and _pre_tokenizer(vocab).add_bos else found


def build(vocab: Vocab) -> Backend:
    """The backend of the file's arrays, without its BOS and EOS."""
    if vocab.model == "gpt2" and not vocab.has("tokenizer.ggml.pre"):
        vocab.note(
            "tokenizer.ggml.pre",
            "is missing, as in files before May 2024: the default pre-tokenizer is used, which is wrong for most "
            "models; convert the model again, or set its name (lowbit metadata FILE set tokenizer.ggml.pre NAME)",
        )
    kinds: dict[str, Callable[[Vocab, tokenizers.Tokenizer], BpeModel | models.Model]] = {
        "gpt2": _byte_level,
        "llama": _sentencepiece,
        "gemma4": _plain_bpe,
        "t5": _unigram,
        "bert": _word_piece,
    }
    steps = tokenizers.Tokenizer(models.BPE())
    return backend_of(steps, kinds[vocab.model](vocab, steps), _special(vocab))


def _pre_tokenizer(vocab: Vocab) -> PreTokenizer:
    name = vocab.text("tokenizer.ggml.pre", "default")
    if name not in PRE_TOKENIZERS:
        raise UnsupportedError(
            f"tokenizer.ggml.pre: unknown pre-tokenizer {name!r}", key="tokenizer.ggml.pre", found=name
        )
    return PRE_TOKENIZERS[name]


# Each function sets a tokenizer's steps and returns its model.


def _byte_level(vocab: Vocab, steps: tokenizers.Tokenizer) -> BpeModel:
    pre = _pre_tokenizer(vocab)
    splits = [pre_tokenizers.Split(Regex(split), "isolated") for split in pre.splits]
    steps.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    steps.decoder = decoders.ByteLevel()
    return BpeModel(vocab.index, vocab.merges(), ignore_merges=pre.ignore_merges)


def _sentencepiece(vocab: Vocab, steps: tokenizers.Tokenizer) -> BpeModel:
    prefix = vocab.flag("tokenizer.ggml.add_space_prefix", True)
    to_mark = normalizers.Replace(" ", SPACE)
    steps.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), to_mark]) if prefix else to_mark
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    steps.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    unknown = vocab.token_id("tokenizer.ggml.unknown_token_id", 0)
    return BpeModel(vocab.index, vocab.score_merges(), unknown, fuse_unk=True, byte_fallback=True)


def _plain_bpe(vocab: Vocab, steps: tokenizers.Tokenizer) -> BpeModel:
    steps.normalizer = normalizers.Replace(" ", SPACE)
    steps.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|[\n]+"), "isolated")
    steps.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    unknown = vocab.token_id("tokenizer.ggml.unknown_token_id")
    return BpeModel(vocab.index, vocab.merges(), unknown, fuse_unk=True, byte_fallback=True)


def _unigram(vocab: Vocab, steps: tokenizers.Tokenizer) -> models.Unigram:
    chain: list[normalizers.Normalizer] = []
    if charsmap := vocab.bytes("tokenizer.ggml.precompiled_charsmap"):
        chain.append(normalizers.Precompiled(charsmap))
    prefix = vocab.flag("tokenizer.ggml.add_space_prefix", True)
    if vocab.flag("tokenizer.ggml.remove_extra_whitespaces", False):
        chain += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" +"), " ")]
        prefix = True
    chain += [normalizers.Prepend(SPACE)] if prefix else []
    steps.normalizer = normalizers.Sequence([*chain, normalizers.Replace(" ", SPACE)])
    steps.decoder = decoders.Metaspace(SPACE, "always" if prefix else "never")
    unknown = vocab.token_id("tokenizer.ggml.unknown_token_id", 2)
    pieces = list(zip(vocab.texts(), vocab.scores().tolist(), strict=True))
    return models.Unigram(pieces, unknown, bool((vocab.types == BYTE).any()))


def _word_piece(vocab: Vocab, steps: tokenizers.Tokenizer) -> models.WordPiece:
    """In the file, pieces that start a word have a mark; in the model, all other pieces have one."""
    unknown = vocab.token_id("tokenizer.ggml.unknown_token_id", 100)
    ids = {_word_piece_text(token): i for i, token in enumerate(vocab.texts())}
    if unknown is None or len(ids) != len(vocab):
        raise wrong_key(_TOKENS, "an unknown token, and each word piece only once")
    lowercase = vocab.flag("tokenizer.ggml.normalizer.lowercase", True)
    accents = vocab.flag("tokenizer.ggml.normalizer.strip_accents", lowercase)
    steps.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=accents)
    steps.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    steps.decoder = decoders.WordPiece()
    return models.WordPiece(vocab=ids, unk_token=_word_piece_text(*vocab.texts([unknown])))


def _word_piece_text(token: str) -> str:
    if token.startswith(SPACE):
        return token[1:]
    return token if token.startswith("[") and token.endswith("]") else f"##{token}"


def _special(vocab: Vocab) -> list[AddedToken]:
    """Tokens that are matched before pre-tokenizing. Control and unknown tokens are special."""
    # llama.cpp recognises Phi-3 by its name; its special tokens absorb the white space after them.
    name = vocab.text("general.name", "").lower()
    phi3 = "phi-3" in name or "phi3" in name
    ids = np.flatnonzero(np.isin(vocab.types, (UNKNOWN, CONTROL, USER_DEFINED))).tolist()
    tokens = []
    for token_id, text in zip(ids, vocab.texts(ids), strict=True):
        content = _word_piece_text(text) if vocab.model == "bert" else text
        strip = phi3 and content not in ("<unk>", "<s>", "<|endoftext|>")
        special = bool(vocab.types[token_id] != USER_DEFINED)
        tokens.append(AddedToken(content, special=special, normalized=False, rstrip=strip))
    return tokens
