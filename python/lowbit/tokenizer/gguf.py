"""A `tokenizers.Tokenizer` built from the metadata of a GGUF file.

Byte-level BPE (`gpt2`, and `gemma4`, which is BPE over plain text) has its merges in the file. SentencePiece BPE
(`llama`) has scores: a pair of pieces merges if the two together are a piece, best score first. That is BPE with the
merges ranked by score, so they are written out from the scores here. SentencePiece's unigram model (`t5`) and WordPiece
(`bert`) are what embedding models use.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from lowbit.base.errors import FormatError, UnsupportedError
from lowbit.base.quoting import quoted
from lowbit.tokenizer.regexes import PRE_TOKENIZERS, PreTokenizer
from lowbit.tokenizer.sentencepiece import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED
from lowbit.tokenizer.special import checked_special

# A piece is cut at every place to find its merges, which is quadratic in its length.
_MAX_PIECE = 1024


class Vocab:
    """The tokenizer arrays of a file, checked: `tokens` list[str], `types` int (N,), `scores` float (N,) or None."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self._notes: dict[str, str] = {}
        self.model = self.text("tokenizer.ggml.model")
        self.tokens = self._strings("tokenizer.ggml.tokens")
        if not self.tokens:
            raise FormatError("tokenizer.ggml.tokens: expected at least one token, found none")
        self.tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(self.tokens)]
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            twice = next(token for i, token in enumerate(self.tokens) if self.ids[token] != i)
            raise FormatError(f"tokenizer.ggml.tokens: the token {twice!r} occurs more than once")
        types = self._numbers("tokenizer.ggml.token_type")
        self.types = np.full(len(self.tokens), NORMAL, np.int64) if types is None else types.astype(np.int64)

    def spelled(self, tokens: list[str]) -> Vocab:
        """The same arrays, with these texts of the tokens."""
        vocab = copy(self)
        vocab.tokens, vocab.ids = tokens, {token: i for i, token in enumerate(tokens)}
        return vocab

    def text(self, key: str, default: str | None = None) -> str:
        """A string value; `default=None` means that the key is required."""
        value = self._metadata.get(key, default)
        if not isinstance(value, str):
            raise FormatError(f"{key}: expected a string, found {_kind(value)}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A boolean value."""
        value = self._metadata.get(key, default)
        if not isinstance(value, (bool, np.bool_)):
            raise FormatError(f"{key}: expected a boolean, found {_kind(value)}")
        return bool(value)

    def token_id(self, key: str, default: int | None = None) -> int | None:
        """An id that the file names, or `default`; one that no token has is noted and taken for none."""
        value = self._metadata.get(key)
        found = None if value is None else checked_special(key, value, len(self.tokens))
        if found is None and value is not None:
            self.note(key, f"is {value}, which none of the {len(self.tokens)} tokens has: ignored")
        if found is None and default is not None and default < len(self.tokens):
            return default
        return found

    def token_ids(self, key: str) -> list[int]:
        """An array of ids, [] where there is none."""
        value = self._metadata.get(key, np.empty(0, np.uint32))
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or value.ndim != 1:
            raise FormatError(f"{key}: expected an array of integers, found {_kind(value)}")
        if len(value) and not (value.min() >= 0 and value.max() < len(self.tokens)):
            raise FormatError(f"{key}: expected ids below {len(self.tokens)}, found {value.min()} to {value.max()}")
        return [int(i) for i in value]

    def note(self, key: str, sentence: str) -> None:
        """Keeps what was ignored, once a key."""
        self._notes[key] = f"{key} {sentence}"

    @property
    def notes(self) -> list[str]:
        """What was ignored so far, one sentence each."""
        return list(self._notes.values())

    def scores(self) -> np.ndarray:
        """Scores of the pieces, float64 (N,)."""
        scores = self._numbers("tokenizer.ggml.scores")
        if scores is None:
            raise FormatError("tokenizer.ggml.scores: missing, and a SentencePiece tokenizer needs it")
        if np.isnan(scores).any():
            raise FormatError(f"tokenizer.ggml.scores: NaN at index {int(np.isnan(scores).argmax())}")
        return scores.astype(np.float64)

    def bytes(self, key: str) -> bytes:
        """An array of bytes, b"" where there is none."""
        value = self._metadata.get(key, np.empty(0, np.uint8))
        if not isinstance(value, np.ndarray) or value.dtype.itemsize != 1 or value.dtype.kind not in "iu":
            raise FormatError(f"{key}: expected an array of bytes, found {_kind(value)}")
        return value.tobytes()

    def has(self, key: str) -> bool:
        """Whether the file has this key."""
        return key in self._metadata

    def merges(self, key: str = "tokenizer.ggml.merges") -> list[tuple[str, str]]:
        """The merges, best first. Both parts and what they make must be tokens."""
        if not self.has(key):
            raise FormatError(
                f"{key}: missing, and without it a {self.model} vocabulary cannot tokenize: convert the model again"
            )
        merges, ids = [], self.ids
        for i, merge in enumerate(self._strings(key)):
            cut = merge.find(" ", 1)
            left, right = merge[:cut], merge[cut + 1 :]
            if cut < 0 or left not in ids or right not in ids or left + right not in ids:
                raise FormatError(f"{key}: expected two tokens that make a third at index {i}, found {merge!r}")
            merges.append((left, right))
        return merges

    def _strings(self, key: str) -> list[str]:
        value = self._metadata.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise FormatError(f"{key}: expected an array of strings, found {_kind(value)}")
        return value

    def _numbers(self, key: str) -> np.ndarray | None:
        value = self._metadata.get(key)
        if value is None:
            return None
        if isinstance(value, list) and value and not isinstance(value[0], str):
            value = np.asarray(value)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf":
            raise FormatError(f"{key}: expected an array of numbers, found {_kind(value)}")
        if value.ndim != 1 or len(value) != len(self.tokens):
            raise FormatError(f"{key}: expected {len(self.tokens)} values, one a token, found {value.size}")
        return value


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {quoted(value, 40)}"


class Family(NamedTuple):
    """What holds for a kind of tokenizer where the file is silent.

    ids: role -> id. first, last: the roles of the tokens around a text, "" for none.
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
    """The kind that the file names. Raises UnsupportedError for one that lowbit does not have."""
    if vocab.model not in _FAMILIES:
        known = ", ".join(sorted(_FAMILIES))
        raise UnsupportedError(f"tokenizer.ggml.model: {vocab.model!r} is not supported, only {known} are")
    found = _FAMILIES[vocab.model]
    return found._replace(first="bos") if vocab.model == "gpt2" and _pre_tokenizer(vocab).add_bos else found


def build(vocab: Vocab) -> tokenizers.Tokenizer:
    """The tokenizer that the file's arrays describe, without its BOS and EOS."""
    if vocab.model == "gpt2":
        if not vocab.has("tokenizer.ggml.pre"):
            vocab.note(
                "tokenizer.ggml.pre",
                "is missing, as in files before May 2024: words are cut in the default way, which is wrong for most "
                "models; convert the model again, or name the way (lowbit metadata FILE set tokenizer.ggml.pre NAME)",
            )
        tokenizer = _byte_level(vocab, _pre_tokenizer(vocab))
    else:
        kinds = {"llama": _sentencepiece, "gemma4": _plain_bpe, "t5": _unigram, "bert": _word_piece}
        tokenizer = kinds[vocab.model](vocab)
    _add_special(vocab, tokenizer)
    return tokenizer


def _pre_tokenizer(vocab: Vocab) -> PreTokenizer:
    name = vocab.text("tokenizer.ggml.pre", "default")
    if name not in PRE_TOKENIZERS:
        raise UnsupportedError(f"tokenizer.ggml.pre: the pre-tokenizer {name!r} is not known")
    return PRE_TOKENIZERS[name]


def _byte_level(vocab: Vocab, pre: PreTokenizer) -> tokenizers.Tokenizer:
    model = models.BPE(vocab=vocab.ids, merges=vocab.merges(), ignore_merges=pre.ignore_merges)
    tokenizer = tokenizers.Tokenizer(model)
    splits = [pre_tokenizers.Split(Regex(split), "isolated") for split in pre.splits]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(vocab: Vocab) -> tokenizers.Tokenizer:
    unknown = vocab.token_id("tokenizer.ggml.unknown_token_id", 0)
    prefix = vocab.flag("tokenizer.ggml.add_space_prefix", True)
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocab.ids,
            merges=score_merges(vocab),
            unk_token=None if unknown is None else vocab.tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    to_mark = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), to_mark]) if prefix else to_mark
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _plain_bpe(vocab: Vocab) -> tokenizers.Tokenizer:
    unknown = vocab.token_id("tokenizer.ggml.unknown_token_id")
    model = models.BPE(
        vocab=vocab.ids,
        merges=vocab.merges(),
        unk_token=None if unknown is None else vocab.tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|[\n]+"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _unigram(vocab: Vocab) -> tokenizers.Tokenizer:
    unknown = vocab.token_id("tokenizer.ggml.unknown_token_id", 2)
    pieces = list(zip(vocab.tokens, vocab.scores().tolist(), strict=True))
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unknown, bool((vocab.types == BYTE).any())))
    steps: list[normalizers.Normalizer] = []
    if charsmap := vocab.bytes("tokenizer.ggml.precompiled_charsmap"):
        steps.append(normalizers.Precompiled(charsmap))
    prefix = vocab.flag("tokenizer.ggml.add_space_prefix", True)
    if vocab.flag("tokenizer.ggml.remove_extra_whitespaces", False):
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" +"), " ")]
        prefix = True
    steps += [normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Metaspace(SPACE, "always" if prefix else "never")
    return tokenizer


def _word_piece(vocab: Vocab) -> tokenizers.Tokenizer:
    """The file marks the pieces that begin a word, and the model those that do not."""
    unknown = vocab.token_id("tokenizer.ggml.unknown_token_id", 100)
    ids = {_word_piece_text(token): i for token, i in vocab.ids.items()}
    if unknown is None or len(ids) != len(vocab.tokens):
        raise FormatError("tokenizer.ggml.tokens: expected an unknown token and no word piece twice")
    model = models.WordPiece(vocab=ids, unk_token=_word_piece_text(vocab.tokens[unknown]))
    tokenizer = tokenizers.Tokenizer(model)
    lowercase = vocab.flag("tokenizer.ggml.normalizer.lowercase", True)
    accents = vocab.flag("tokenizer.ggml.normalizer.strip_accents", lowercase)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=accents)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _word_piece_text(token: str) -> str:
    if token.startswith(SPACE):
        return token[1:]
    return token if token.startswith("[") and token.endswith("]") else f"##{token}"


def score_merges(vocab: Vocab) -> list[tuple[str, str]]:
    """The merges that the scores imply, best first; of one piece's merges the one with the longest left part first.

    Control, unknown and byte tokens are never made by merging, so that text cannot spell them.
    """
    ids, merges = vocab.ids, []
    scores = vocab.scores().tolist()
    for piece_id in np.flatnonzero(~np.isin(vocab.types, (UNKNOWN, CONTROL, BYTE))).tolist():
        piece, score = vocab.tokens[piece_id], scores[piece_id]
        if len(piece) > _MAX_PIECE:
            raise FormatError(
                f"tokenizer.ggml.tokens: expected at most {_MAX_PIECE} characters at {piece_id}, found {len(piece)}"
            )
        for cut in range(len(piece) - 1, 0, -1):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                merges.append((score, -cut, left, right))
    merges.sort(key=lambda merge: (-merge[0], merge[1]))
    return [(left, right) for _, _, left, right in merges]


def _add_special(vocab: Vocab, tokenizer: tokenizers.Tokenizer) -> None:
    """Tokens that are matched in the text before everything else; control and unknown ones are special."""
    # llama.cpp knows Phi-3 by its name: there, special tokens swallow the white space after them.
    name = vocab.text("general.name", "").lower()
    phi3 = "phi-3" in name or "phi3" in name
    tokens = []
    for token_id in np.flatnonzero(np.isin(vocab.types, (UNKNOWN, CONTROL, USER_DEFINED))).tolist():
        content = _word_piece_text(vocab.tokens[token_id]) if vocab.model == "bert" else vocab.tokens[token_id]
        strip = phi3 and content not in ("<unk>", "<s>", "<|endoftext|>")
        special = bool(vocab.types[token_id] != USER_DEFINED)
        tokens.append(AddedToken(content, special=special, normalized=False, rstrip=strip))
    tokenizer.add_tokens(tokens)
