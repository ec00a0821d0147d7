"""The alphabet of byte-level BPE."""

from __future__ import annotations


def _alphabet() -> dict[str, int]:
    alphabet = {chr(b): b for b in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))}
    rest = [b for b in range(256) if chr(b) not in alphabet]
    return {**alphabet, **{chr(0x100 + i): b for i, b in enumerate(rest)}}


#: Character -> byte, for all 256 bytes: printable Latin-1 maps to itself, the rest to U+0100 and up.
BYTES = _alphabet()
