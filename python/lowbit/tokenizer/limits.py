"""Limits on how much longer the steps of a tokenizer may make a text.

Factors multiply: forty steps that double a letter turn it into a terabyte. So the product of the largest factors of all
steps is checked before anything is tokenized. Regular expressions need no limit: the library stops slow ones.
"""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import tokenizers

from lowbit.base.errors import FormatError

#: Real tokenizers reach hundreds, with a character map (33 bytes for one byte) and three replacements.
MAX_GROWTH = 1 << 14

_CHILDREN = ("normalizers", "pretokenizers", "processors", "decoders")


def state(part: Any) -> dict[str, Any] | None:
    """The part of a tokenizer as in tokenizer.json."""
    return None if part is None else json.loads(part.__getstate__())


def check_growth(backend: tokenizers.Tokenizer) -> None:
    """Raises FormatError for a tokenizer whose steps can make a text, or a decoded text, too much longer."""
    encoding = (backend.normalizer, backend.pre_tokenizer, backend.post_processor)
    for what, parts in (("texts to tokenize", encoding), ("decoded texts", (backend.decoder,))):
        growth = math.prod(_growth(step) for part in parts if (step := state(part)) is not None)
        if growth > MAX_GROWTH:
            raise FormatError(f"its steps can make {what} more than {MAX_GROWTH} times as long")


def _growth(step: dict[str, Any]) -> int:
    """The most bytes in which a step, or a sequence of steps, can turn one byte."""
    kind, growth = step["type"], 1
    if kind == "Sequence":
        for child in next(step[name] for name in _CHILDREN if name in step):
            growth = min(growth * _growth(child), MAX_GROWTH + 1)
    elif kind == "Replace":
        old, new = step["pattern"].get("String", ""), len(step["content"].encode())
        growth = -(-new // len(old.encode())) if old else 1 + new  # a regular expression can match an empty text
    elif kind == "Prepend":  # before each part between added tokens
        growth = 1 + len(step["prepend"].encode())
    elif kind == "ByteLevel":
        growth = 2
    elif kind == "Precompiled":
        growth = max(map(len, base64.b64decode(step["precompiled_charsmap"]).split(b"\0")))
    elif kind == "TemplateProcessing":
        growth = max(sum("Sequence" in piece for piece in step[name]) for name in ("single", "pair"))
    return max(growth, 1)
