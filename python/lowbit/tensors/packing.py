"""Blocks made of codes and scales that are already known: the inverse of `_core.unpack_rows`, without any fit.

The byte maps are those of docs/formats.md. Arrays have the shape (blocks, ...), one row for each block of the format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]
Bytes = npt.NDArray[Any]


def bytes_of_halves(values: Numbers) -> Bytes:
    """float16 numbers (blocks,) as two bytes each, (blocks, 2)."""
    return np.ascontiguousarray(values, "<f2").view(np.uint8).reshape(-1, 2)


def nibbles(codes: Numbers, half: int) -> Bytes:
    """Codes of 4 bits (blocks, n), 2 * half at a time: byte j has code j in the low bits, code j + half in the high."""
    pairs = codes.reshape(len(codes), -1, 2, half)
    return np.asarray((pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(len(codes), -1))


def _bits(codes: Numbers, bit: int) -> Bytes:
    """One bit of each code, from the lowest bit of the first byte on."""
    return np.packbits(codes >> bit & 1, axis=1, bitorder="little")


def _in_planes(codes: Numbers, size: int, bits: int) -> Bytes:
    """Codes i, i + size, i + 2 * size, ... of 8 // bits planes in one byte, from the lowest bits on."""
    planes = codes.reshape(len(codes), -1, 8 // bits, size)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return np.asarray(np.bitwise_or.reduce(planes << shifts, axis=2).reshape(len(codes), -1))


def _planes_of_one_bit(codes: Numbers, bit: int) -> Bytes:
    """Byte k, bit g: a bit of code 32 * g + k of 256."""
    return _in_planes(codes >> bit & 1, 32, 1)


def _q1_0(codes: Numbers, d: Numbers) -> list[Bytes]:
    return [bytes_of_halves(d), _bits(codes, 1)]


def _q2_0(codes: Numbers, d: Numbers) -> list[Bytes]:
    return [bytes_of_halves(d), _in_planes(codes, 1, 2)]


def _tq2_0(codes: Numbers, d: Numbers) -> list[Bytes]:
    return [_in_planes(codes, 32, 2), bytes_of_halves(d)]


def _tq1_0(codes: Numbers, d: Numbers) -> list[Bytes]:
    parts = []
    for start, size, count in ((0, 32, 5), (160, 16, 5), (240, 4, 4)):
        digits = codes[:, start : start + size * count].reshape(len(codes), count, size).astype(np.uint16)
        powers = 3 ** np.arange(4, 4 - count, -1, dtype=np.uint16)
        number = (digits * powers[:, None]).sum(axis=1)
        parts.append(((number * np.uint32(256) + 242) // 243).astype(np.uint8))
    return [*parts, bytes_of_halves(d)]


def _q4_0(codes: Numbers, d: Numbers, *minimum: Numbers) -> list[Bytes]:
    return [bytes_of_halves(d), *map(bytes_of_halves, minimum), nibbles(codes, 16)]


def _q5_0(codes: Numbers, d: Numbers, *minimum: Numbers) -> list[Bytes]:
    return [bytes_of_halves(d), *map(bytes_of_halves, minimum), _bits(codes, 4), nibbles(codes & 15, 16)]


def _q8_0(codes: Numbers, d: Numbers) -> list[Bytes]:
    return [bytes_of_halves(d), codes]


def _mxfp4(codes: Numbers, exponent: Numbers) -> list[Bytes]:
    return [exponent.astype(np.uint8).reshape(-1, 1), nibbles(codes, 16)]


def _nvfp4(codes: Numbers, scales: Numbers) -> list[Bytes]:
    return [scales.astype(np.uint8), nibbles(codes, 8)]


def _q2_k(codes: Numbers, d: Numbers, scales: Numbers, dmin: Numbers, minima: Numbers) -> list[Bytes]:
    both = (scales | minima << 4).astype(np.uint8)
    return [both, _in_planes(codes, 32, 2), bytes_of_halves(d), bytes_of_halves(dmin)]


def _q3_k(codes: Numbers, d: Numbers, scales: Numbers) -> list[Bytes]:
    raw = (scales + 32).astype(np.uint8)
    low = raw[:, :8] & 15 | (raw[:, 8:] & 15) << 4
    high = _in_planes(raw >> 4, 4, 2)
    return [_planes_of_one_bit(codes, 2), _in_planes(codes & 3, 32, 2), low, high, bytes_of_halves(d)]


def _six_bit_scales(scales: Numbers, minima: Numbers) -> Bytes:
    s, m = scales.astype(np.uint8), minima.astype(np.uint8)
    first, second = s[:, :4] | s[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6
    return np.concatenate([first, second, s[:, 4:] & 15 | (m[:, 4:] & 15) << 4], axis=1)


def _q4_k(codes: Numbers, d: Numbers, scales: Numbers, dmin: Numbers, minima: Numbers) -> list[Bytes]:
    header = [bytes_of_halves(d), bytes_of_halves(dmin), _six_bit_scales(scales, minima)]
    return [*header, nibbles(codes, 32)]


def _q5_k(codes: Numbers, d: Numbers, scales: Numbers, dmin: Numbers, minima: Numbers) -> list[Bytes]:
    header = [bytes_of_halves(d), bytes_of_halves(dmin), _six_bit_scales(scales, minima)]
    return [*header, _planes_of_one_bit(codes, 4), nibbles(codes & 15, 32)]


def _q6_k(codes: Numbers, d: Numbers, scales: Numbers) -> list[Bytes]:
    low, high = nibbles(codes & 15, 64), _in_planes(codes >> 4, 32, 2)
    return [low, high, scales.astype(np.int8).view(np.uint8), bytes_of_halves(d)]


def _iq4_xs(codes: Numbers, d: Numbers, scales: Numbers) -> list[Bytes]:
    raw = (scales + 32).astype(np.uint8)
    low = raw[:, ::2] & 15 | (raw[:, 1::2] & 15) << 4
    return [bytes_of_halves(d), _in_planes(raw >> 4, 1, 2), low, nibbles(codes, 16)]


_PACKERS: Mapping[str, Callable[..., list[Bytes]]] = {
    "Q1_0": _q1_0, "Q2_0": _q2_0, "TQ1_0": _tq1_0, "TQ2_0": _tq2_0, "Q4_0": _q4_0, "Q4_1": _q4_0, "Q5_0": _q5_0,
    "Q5_1": _q5_0, "Q8_0": _q8_0, "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
    "IQ4_NL": _q4_0, "IQ4_XS": _iq4_xs, "MXFP4": _mxfp4, "NVFP4": _nvfp4,
}  # fmt: skip


def pack_blocks(format: str, codes: Numbers, fields: Sequence[Numbers]) -> Bytes:
    """The bytes of blocks, (blocks, block bytes).

    codes: as stored, uint8 (blocks, block size); of Q1_0 0 and 2. fields: what docs/formats.md lists beside the codes:
    d (blocks,), then a minimum or integer scales (blocks, groups), dmin (blocks,) and integer minima. The integer
    scales of Q3_K and IQ4_XS are those minus 32.
    """
    return np.concatenate(_PACKERS[format](codes, *fields), axis=1)
