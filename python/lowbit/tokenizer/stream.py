"""Text from token ids, one id at a time: streaming decoding and stop strings."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from lowbit.base import arguments
from lowbit.base.errors import InputError
from lowbit.base.quoting import quoted
from lowbit.tokenizer.byte_level import BYTES

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Pieces(Protocol):
    """An incremental decoder. It returns text that later tokens cannot change."""

    def push(self, token: str) -> str:
        """The text that is final after `token`."""

    def flush(self) -> str:
        """The rest."""


class _ByteLevel:
    """Tokens are encoded bytes; an incomplete UTF-8 sequence stays in the decoder."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: str) -> str:
        try:
            piece = bytes(BYTES[c] for c in token)
        except KeyError:  # an added token in plain text
            piece = token.encode("utf-8")
        return self._decoder.decode(piece)

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _ByteFallback:
    """SentencePiece: plain pieces, and `<0xXX>` tokens for characters without a piece.

    A run of byte tokens is decoded as a whole: one invalid byte turns every byte of its run into U+FFFD, as in the
    decoder of the tokenizers library. So a run waits for the token that ends it.
    """

    def __init__(self, replacements: Sequence[tuple[str, str]], strip: tuple[str, int], byte_fallback: bool) -> None:
        self._replacements = replacements
        self._strip, self._left = strip
        self._byte_fallback = byte_fallback
        self._run = bytearray()

    def push(self, token: str) -> str:
        for old, new in self._replacements:
            token = token.replace(old, new)
        byte = _BYTE_TOKEN.fullmatch(token) if self._byte_fallback else None
        if byte:
            self._run.append(int(byte[1], 16))
            return ""
        return self._end_of_run() + self._without_lead(token)

    def flush(self) -> str:
        return self._end_of_run()

    def _end_of_run(self) -> str:
        run, self._run = bytes(self._run), bytearray()
        try:
            return self._without_lead(run.decode("utf-8"))
        except UnicodeDecodeError:
            return self._without_lead("\ufffd" * len(run))

    def _without_lead(self, text: str) -> str:
        while self._left and text.startswith(self._strip):
            text = text[len(self._strip) :]
            self._left -= 1
        if text:
            self._left = 0
        return text


class _Metaspace:
    """The first token loses its word marks; in all others they are spaces."""

    def __init__(self, mark: str, keep_first: bool) -> None:
        self._mark = mark
        self._first = "" if not keep_first else " "

    def push(self, token: str) -> str:
        space, self._first = self._first, " "
        return token.replace(self._mark, space)

    def flush(self) -> str:
        return ""


class _Whole:
    """Any other decoder: a token's text may depend on all others, so the text comes at the end."""

    def __init__(self, decode: Callable[[list[str]], str]) -> None:
        self._decode = decode
        self._tokens: list[str] = []

    def push(self, token: str) -> str:
        self._tokens.append(token)
        return ""

    def flush(self) -> str:
        tokens, self._tokens = self._tokens, []
        return self._decode(tokens) if tokens else ""


def piece_decoder(decoder: dict[str, Any] | None, decode: Callable[[list[str]], str], continuation: bool) -> Pieces:
    """The incremental form of a tokenizer.json `decoder` entry. `decode` is the whole form, for unknown ones.

    `continuation` keeps what a decoder strips from the start of a text.
    """
    kind = (decoder or {}).get("type")
    if kind == "ByteLevel":
        return _ByteLevel()
    if kind == "Metaspace":
        scheme = (decoder or {}).get("prepend_scheme", "always")
        return _Metaspace((decoder or {})["replacement"], continuation or scheme == "never")
    steps = list((decoder or {}).get("decoders", ())) if kind == "Sequence" else []
    if len(steps) == 1 and steps[0].get("type") == "ByteLevel":
        return _ByteLevel()
    names = [step.get("type") for step in steps]
    replacements = []
    while names and names[0] == "Replace" and "String" in steps[0]["pattern"]:
        replacements.append((steps[0]["pattern"]["String"], steps[0]["content"]))
        names, steps = names[1:], steps[1:]
    if names in (["ByteFallback", "Fuse"], ["ByteFallback", "Fuse", "Strip"], ["Fuse"], ["Fuse", "Strip"]):
        strip: dict[str, Any] = steps[-1] if names[-1] == "Strip" else {"content": " ", "start": 0, "stop": 0}
        if strip["stop"] == 0:
            return _ByteFallback(
                replacements, (strip["content"], 0 if continuation else strip["start"]), names[0] == "ByteFallback"
            )
    return _Whole(decode)


class TextStream:
    """Decodes ids one by one.

    `push(id)` returns new final text, possibly empty; `flush()` returns the rest. All pieces together equal
    `tokenizer.decode(ids)`. No piece ends inside a character. Made by `Tokenizer.stream()`.
    """

    def __init__(self, pieces: Pieces, token: Callable[[int], str], skip: frozenset[int]) -> None:
        self._pieces = pieces
        self._token = token
        self._skip = skip

    def push(self, token_id: int) -> str:
        """The text that is final after `token_id`. Raises InputError for an id outside the vocabulary."""
        token = self._token(token_id)
        return self._pieces.push(token) if token and token_id not in self._skip else ""

    def flush(self) -> str:
        """The remaining text; an incomplete character becomes U+FFFD here, and only here."""
        return self._pieces.flush()


class StopFilter:
    """Passes text through until a stop string is complete, without any part of the stop string.

    The text ends at the stop string that is complete first (of several that end together, the longest), for every
    division of the text into pieces. `stopped`: one was found. `stop`: which one.
    """

    def __init__(self, stops: str | Iterable[str]) -> None:
        stops = [stops] if isinstance(stops, str) else arguments.items("stop", stops)
        for stop in stops:
            if not isinstance(stop, str) or not stop:
                raise InputError("stop:", expected="strings that are not empty", found=quoted(stop))
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._held = ""
        self.stop: str | None = None

    @property
    def stopped(self) -> bool:
        """True after a stop string was found; later text is dropped."""
        return self.stop is not None

    def push(self, text: str) -> str:
        """The text that is now certain not to belong to a stop string."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, at, self.stop = min(found)
            self._held = ""
            return text[:at]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The remaining text, at the end."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
