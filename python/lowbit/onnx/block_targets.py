"""The formats of GGUF that hold given levels and scales: which fit, and the numbers that they store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit.onnx.block_rows import BlockRows, Floats
from lowbit.tensors.formats import find_format
from lowbit.tensors.packing import pack_blocks

Numbers = npt.NDArray[Any]

_IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_FP4_LEVELS = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


@dataclass(frozen=True)
class Target:
    """A format with blocks of `group` levels that share a scale.

    low, high: of its levels. has_minimum: codes from 0 to `high` and a minimum for each group. levels: what codes stand
    for, if that is not low, low + 1, ... positive: encoders write no negative scales. scales: the integers that group
    scales are of a super-block's, the likeliest of the largest first; None if each block has a scale of its own.
    """

    format: str
    group: int
    low: int
    high: int
    has_minimum: bool = False
    levels: tuple[int, ...] = ()
    positive: bool = False
    scales: tuple[int, ...] = ()
    stored: Callable[[Numbers], Numbers] | None = None


def _positive(top: int) -> tuple[int, ...]:
    return tuple(range(top, 0, -1))


def _signed(top: int) -> tuple[int, ...]:
    return (-top, *(sign * number for number in range(top - 1, 0, -1) for sign in (-1, 1)))


def _exponents(scales: Numbers) -> Numbers:
    """MXFP4: the exponents e of scales 2^(e - 128); -1 where a scale is none."""
    fraction, exponent = np.frexp(scales)
    found = exponent + 127
    return np.where((fraction == 0.5) & (found >= 0) & (found < 256), found, -1)


def _ue4m3(scales: Numbers) -> Numbers:
    """NVFP4: the codes of half the scales; -1 where a scale has none."""
    codes = np.arange(127)
    table = np.where(codes < 8, codes / 1024, (8 + codes % 8) * 2.0 ** (codes // 8 - 11))
    at = np.minimum(np.searchsorted(table, scales), len(table) - 1)
    return np.where(table[at] == scales, at, -1)


TARGETS = (
    Target("Q1_0", 128, -1, 1, levels=(-1, 2, 1), positive=True),
    Target("TQ1_0", 256, -1, 1, positive=True),
    Target("TQ2_0", 256, -1, 1, positive=True),
    Target("Q2_0", 64, -1, 2, positive=True),
    Target("Q2_K", 16, 0, 3, has_minimum=True, scales=_positive(15)),
    Target("Q3_K", 16, -4, 3, scales=_signed(32)),
    Target("IQ4_XS", 32, -127, 113, levels=_IQ4_LEVELS, scales=_signed(32)),
    Target("MXFP4", 32, -12, 12, levels=_FP4_LEVELS, stored=_exponents),
    Target("Q4_0", 32, -8, 7),
    Target("IQ4_NL", 32, -127, 113, levels=_IQ4_LEVELS),
    Target("NVFP4", 16, -12, 12, levels=_FP4_LEVELS, stored=_ue4m3),
    Target("Q4_K", 32, 0, 15, has_minimum=True, scales=_positive(63)),
    Target("Q4_1", 32, 0, 15, has_minimum=True),
    Target("Q5_0", 32, -16, 15),
    Target("Q5_K", 32, 0, 31, has_minimum=True, scales=_positive(63)),
    Target("Q5_1", 32, 0, 31, has_minimum=True),
    Target("Q6_K", 16, -32, 31, scales=_signed(128)),
    Target("Q8_0", 32, -128, 127),
)
BY_FORMAT: Mapping[str, Target] = {target.format: target for target in TARGETS}


def packed(target: Target, rows: BlockRows, rounded: bool) -> npt.NDArray[np.uint8] | None:
    """The rows' bytes in a format, (rows, row bytes), or None if it does not hold their levels or scales.

    The values may still differ where float32 rounds. rounded: scales and minima are rounded to float16 if they are not;
    only for formats with a scale of their own for each block.
    """
    grouped = _grouped(rows, target.group)
    if grouped is None:
        return None
    with np.errstate(all="ignore"):  # what is not finite does not fit, or stays as it is
        levels = _levels(target, *grouped)
        if levels is None:
            return None
        codes, scales, minima = levels
        block = find_format(target.format).block_size
        fields = _fields(target, scales, minima, block // target.group, rounded)
    return (
        None
        if fields is None
        else pack_blocks(target.format, codes.reshape(-1, block), fields).reshape(len(rows.codes), -1)
    )


def _grouped(rows: BlockRows, group: int) -> tuple[Numbers, Floats, Floats, Floats] | None:
    """Codes (groups, group), scales, zero points and offsets (groups,), or None if a group has several scales."""
    inputs, size = rows.codes.shape[1], rows.block_size
    floats: list[Floats] = []
    for each in (rows.scales, rows.zero_points, rows.offsets):
        if size % group == 0:
            each = np.repeat(each, size // group, axis=1)[:, : inputs // group]
        elif group % size == 0:
            together = each.reshape(len(each), -1, group // size)
            if not (together == together[..., :1]).all():
                return None
            each = together[..., 0]
        elif size < inputs:
            return None
        else:  # one block, which need not be a multiple of the group
            each = np.repeat(each, inputs // group, axis=1)
        floats.append(each.reshape(-1))
    return rows.codes.reshape(-1, group), floats[0], floats[1], floats[2]


def _levels(
    target: Target, codes: Numbers, scales: Floats, zeros: Floats, offsets: Floats
) -> tuple[npt.NDArray[np.uint8], Floats, Numbers] | None:
    """Stored codes (groups, group), scales and minima (groups,)."""
    if target.has_minimum:
        return _affine(target, codes, scales, zeros, offsets)
    if offsets.any() or (zeros != np.rint(zeros)).any() or (np.abs(zeros) > 255).any():
        return None
    levels = codes.astype(np.int16) - zeros.astype(np.int16)[:, None]
    low, high = levels.min(axis=1), levels.max(axis=1)
    fits, fits_negated = (low >= target.low) & (high <= target.high), (-high >= target.low) & (-low <= target.high)
    if not (fits | fits_negated).all():
        return None
    negated = ~fits | (fits_negated & np.signbit(scales) if target.positive else False)
    if negated.any():
        levels[negated] *= -1
        scales = np.where(negated, -scales, scales)
    if not target.levels:
        codes = levels - target.low if target.format != "Q8_0" else levels
        return codes.astype(np.uint8), scales, np.zeros_like(scales)
    table = np.full(256, 255, np.uint8)
    for code in reversed(range(len(target.levels))):
        table[target.levels[code]] = code
    found = table[levels]
    return None if (found == 255).any() else (found, scales, np.zeros_like(scales))


def _affine(
    target: Target, codes: Numbers, scales: Floats, zeros: Floats, offsets: Floats
) -> tuple[npt.NDArray[np.uint8], Floats, Numbers] | None:
    """Codes from 0 on. A weight is scale * code - minimum; the minimum is float64."""
    codes = codes.astype(np.int16)
    low, high = codes.min(axis=1), codes.max(axis=1)
    shifted = (low < 0) | (high > target.high)
    shift = np.where(shifted, low, 0)
    if (high - shift > target.high).any():
        return None
    minima = (zeros.astype(np.float64) - shift) * scales - offsets
    return (codes - shift[:, None]).astype(np.uint8), scales, minima


def _fields(target: Target, scales: Floats, minima: Numbers, groups: int, rounded: bool) -> Sequence[Numbers] | None:
    """What is stored beside the codes."""
    if target.stored is not None:
        stored = target.stored(scales).reshape(-1, groups)
        return None if (stored < 0).any() else [stored]
    if target.scales:
        if rounded:
            return None
        fields: list[Numbers] = []
        for each in (scales, minima)[: 1 + target.has_minimum]:
            factors = _factors(each.astype(np.float64).reshape(-1, groups), target.scales)
            if factors is None:
                return None
            fields.extend(factors)
        return fields
    shared = scales.reshape(-1, groups)
    if groups > 1 and not (shared == shared[:, :1]).all():
        return None
    numbers: list[Numbers] = [shared[:, 0], 0 - minima] if target.has_minimum else [shared[:, 0]]
    halves = [each.astype(np.float16) for each in numbers]
    is_exact = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(halves, numbers, strict=True))
    return halves if is_exact or rounded else None


def _factors(values: Numbers, candidates: tuple[int, ...]) -> tuple[Numbers, Numbers] | None:
    """d (blocks,) and integers (blocks, groups) whose products are the values (blocks, groups), or None.

    d is a float16. candidates: of the integer of the largest value, in the order in which they are tried.
    """
    at = np.abs(values).argmax(axis=1)
    largest = np.take_along_axis(values, at[:, None], axis=1)[:, 0]
    d = np.zeros(len(values))
    integers = np.zeros(values.shape, np.int64)
    low, high = min(0, *candidates), max(candidates)
    open_ = np.flatnonzero(largest)
    if not np.isfinite(largest).all():
        return None
    for candidate in candidates:
        if not open_.size:
            break
        tried = largest[open_] / candidate
        ratio = np.rint(values[open_] / tried[:, None])
        fits = (tried.astype(np.float16) == tried) & (ratio * tried[:, None] == values[open_]).all(axis=1)
        fits &= (ratio >= low).all(axis=1) & (ratio <= high).all(axis=1)
        done = open_[fits]
        d[done], integers[done] = tried[fits], ratio[fits].astype(np.int64)
        if candidate != candidates[0]:  # the encoder's integers, which have no common factor, and not their multiples
            factor = np.gcd.reduce(integers[done], axis=1)
            d[done] *= factor
            integers[done] //= factor[:, None]
        open_ = open_[~fits]
    return None if open_.size else (d, integers)
