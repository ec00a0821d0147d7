"""Reads the file that `llama-perplexity --kl-divergence-base FILE` writes: what a model predicts for a text.

The layout, little endian; n is the number of predictions of a window, context - 1 - context // 2:

| bytes | content |
| --- | --- |
| 8 | "_logits_" |
| 12 | int32: context (tokens of a window), vocabulary, windows |
| 4 * windows * context | int32: the tokens |
| windows * n rows | predictions after the tokens context // 2 to context - 2 of each window |

A row is two float32, step and lowest, and a uint16 code of each word of the vocabulary, with one more if it is odd: the
log-probability is lowest + step * code. The codes reach from the likeliest word down by at most 16 nats. Words below
have code 0, so of these the file tells only that they are unlikely.

The first token of a window is replaced by BOS before the model reads it; the file has the original.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowbit.base.errors import FormatError

MAGIC = b"_logits_"
_HEADER = len(MAGIC) + 12


@dataclass(frozen=True)
class LogProbabilities:
    """An open file. tokens: int32 (windows, context). rows: uint16 (windows, n, 4 + codes), mapped."""

    tokens: np.ndarray
    rows: np.ndarray
    vocabulary: int

    def window(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The log-probabilities of a window, float32 (n, vocabulary), and where the file has them (code above 0)."""
        rows = np.ascontiguousarray(self.rows[index])
        step, lowest = rows[:, :4].copy().view(np.float32).T[:, :, None]
        codes = rows[:, 4 : 4 + self.vocabulary]
        return lowest + step * codes, codes > 0


def read(path: Path) -> LogProbabilities:
    """Opens such a file. Raises FormatError if it is another one, or has another size than its header tells."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(_HEADER)
    if len(header) < _HEADER or not header.startswith(MAGIC):
        raise FormatError(
            "no file of log-probabilities:", path=path, offset=0, expected=MAGIC.decode(), found=header[: len(MAGIC)]
        )
    context, vocabulary, windows = (int(number) for number in np.frombuffer(header, "<i4", 3, len(MAGIC)))
    if context < 3 or vocabulary < 1 or windows < 1:
        raise FormatError(
            "header:",
            path=path,
            offset=len(MAGIC),
            expected="a context of at least 3, words and windows",
            found=f"{context}, {vocabulary} and {windows}",
        )
    shape = (windows, context - 1 - context // 2, 4 + vocabulary + vocabulary % 2)
    start = _HEADER + 4 * windows * context
    expected = start + 2 * shape[0] * shape[1] * shape[2]
    if size != expected:
        raise FormatError("size:", path=path, offset=size, expected=f"{expected} bytes", found=size)
    tokens = np.memmap(path, "<i4", "r", _HEADER, (windows, context))
    return LogProbabilities(tokens, np.memmap(path, "<u2", "r", start, shape), vocabulary)
