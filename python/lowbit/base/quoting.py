"""Foreign text in messages: names in files, arguments, errors of other packages.

A message is one line of bounded length that a terminal can print safely. Unprintable characters (control characters,
terminal escapes, line breaks, text direction marks, lone surrogates) are escaped as in Python's strings. Long text is
cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice

#: The most UTF-8 bytes of a name or value in a message, and of a message.
MOST_SHOWN, MOST_MESSAGE = 100, 500

_CUT = "..."


def printable(text: str) -> str:
    """The text with unprintable characters escaped, so that it cannot control a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a path that is not UTF-8 (os.fsdecode)
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def one_line(text: str, most: int = MOST_MESSAGE) -> str:
    """A message cut to a number of bytes. The middle is cut, because advice is at the end."""
    if len(text) > 2 * most:  # a character has at least one byte
        text = text[:most] + text[-most:]
    whole = printable(text).encode()
    if len(whole) <= most:
        return whole.decode()
    half = (most - len(_CUT)) // 2
    begin, end = (part.decode(errors="ignore") for part in (whole[:half], whole[-half:]))
    return begin + _CUT + end


def shown(value: object, most: int = MOST_SHOWN) -> str:
    """A name or value: unchanged if it is printable and short enough, else escaped and cut."""
    whole = printable(_text(value)[: most + 1]).encode()
    if len(whole) <= most:
        return whole.decode()
    return whole[: most - len(_CUT)].decode(errors="ignore") + _CUT


def quoted(value: object, most: int = MOST_SHOWN) -> str:
    """Like `shown`, in quotation marks: for text that may be empty or contain spaces."""
    return f"'{shown(value, most)}'"


def reason(error: BaseException, most: int = 200) -> str:
    """The message of another package's exception in one line, or its class if the message is empty."""
    text = re.sub(r"\s+", " ", _text(error)[: 4 * most]).strip()
    return shown(text, most) or type(error).__name__


def listed(names: Iterable[object], most: int = 3) -> str:
    """The first names, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name) for name in islice(names, most)) + more


def _text(value: object) -> str:
    try:
        return str(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; nested lists
        return f"an int of {value.bit_length()} bits" if isinstance(value, int) else f"a nested {type(value).__name__}"
