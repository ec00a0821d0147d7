"""Tables of rotary embeddings from a GGUF file's metadata and tensors, in float32 steps as in transformers.

Sources: transformers' modeling_rope_utils.py; Chen et al. 2023 (linear), Peng et al. 2023 (YaRN), Ding et al. 2024
(LongRoPE). Powers are correctly rounded here; torch's are within one unit in the last place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit.arch.keys import Keys
from lowbit.arch.model_spec import Rope
from lowbit.arch.rope_keys import ROPE_FREQS
from lowbit.base.errors import FormatError, UnsupportedError
from lowbit.base.quoting import quoted
from lowbit.tensors.qtensor import QTensor

Array = npt.NDArray[np.float32]
ONE = np.ones(1, np.float32)
Tensors = Mapping[str, QTensor | npt.NDArray[Any]]


@np.errstate(all="ignore")  # the result is checked at the end
def rope_of(get: Keys, tensors: Tensors, dim: int) -> Rope:
    """The rotary embedding of the keys rope.* and the tensors rope_*.weight: unscaled, linear, Llama 3, YaRN or
    LongRoPE. `dim`: rotated values of a head.

    Raises FormatError for invalid values and shapes, UnsupportedError for an unknown kind of scaling.
    """
    powers = _powers(get.number("rope.freq_base", 10000.0), dim)
    magnitude = get.number("rope.scaling.attn_factor", 1.0)
    kind = get.text("rope.scaling.type", "linear")
    given = get.number("rope.scaling.factor", get.number("rope.scale_linear", 1.0))
    factor = np.float32(1.0 if kind == "none" else given)
    long_factors = _factors(tensors, "rope_factors_long.weight", dim)
    short_factors = _factors(tensors, "rope_factors_short.weight", dim)
    if (long_factors is None) != (short_factors is None):
        missing = f"rope_factors_{'long' if long_factors is None else 'short'}.weight"
        raise FormatError(f"tensor {missing} is missing, but the one for the other length is not", tensor=missing)
    if long_factors is not None and short_factors is not None:
        short, long = (_table(ONE / (f * powers) / factor) for f in (short_factors, long_factors))
        return Rope(short, magnitude, long, magnitude)
    factors = _factors(tensors, ROPE_FREQS, dim)
    if kind == "yarn":
        if factors is not None:
            raise get.error(
                UnsupportedError,
                "rope.scaling.type",
                "is 'yarn'",
                expected=f"none with tensor {ROPE_FREQS}",
                found="yarn",
            )
        return _yarn(get, powers, magnitude)
    if kind not in ("none", "linear"):
        raise get.error(
            UnsupportedError, "rope.scaling.type", f"is {quoted(kind, 40)}", expected="none, linear or yarn", found=kind
        )
    frequencies = ONE / powers / factor
    if factors is not None:
        frequencies /= factors
    return Rope(_table(frequencies), magnitude)


@np.errstate(all="ignore")
def plain_rope(base: float, dim: int, magnitude: float = 1.0) -> Rope:
    """The rotary embedding of Su et al. 2021: frequencies base ** (-2 i / dim)."""
    return Rope(_table(ONE / _powers(base, dim)), magnitude)


def original_context(get: Keys, ropes: tuple[Rope, ...]) -> int:
    """The longest sequence that uses the short tables; 0 without long tables."""
    if not any(rope.long_frequencies for rope in ropes):
        return 0
    return get.integer("rope.scaling.original_context_length", get.integer("context_length"))


def _powers(base: float, dim: int) -> Array:
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    result: Array = np.power(np.float64(np.float32(base)), exponents.astype(np.float64)).astype(np.float32)
    return result


def _yarn(get: Keys, powers: Array, magnitude: float) -> Rope:
    """YaRN: pairs with many rotations keep their frequency, pairs with few are scaled, with a linear ramp between.

    Neither transformers nor llama.cpp's graphs of these architectures use yarn_ext_factor; neither does this.
    """
    pairs, base = len(powers), get.number("rope.freq_base", 10000.0)
    factor = get.number("rope.scaling.factor")
    original = get.integer("rope.scaling.original_context_length", get.integer("context_length"))

    def pair_that_turns(times: float) -> float:
        return 2 * pairs * math.log(original / (times * 2 * math.pi)) / (2 * math.log(base))

    if base == 1:
        raise get.error(FormatError, "rope.freq_base", "is 1, which YaRN cannot use")
    low = max(math.floor(pair_that_turns(get.number("rope.scaling.yarn_beta_fast", 32.0))), 0)
    high = min(math.ceil(pair_that_turns(get.number("rope.scaling.yarn_beta_slow", 1.0))), 2 * pairs - 1)
    width = high - low if high != low else 0.001
    ramp = (np.arange(pairs, dtype=np.float32) - np.float32(low)) / np.float32(width)
    kept = ONE - np.clip(ramp, 0, 1)
    frequencies = ONE / (np.float32(factor) * powers) * (ONE - kept) + ONE / powers * kept
    default = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    return Rope(_table(frequencies), get.number("rope.scaling.yarn_attn_factor", default) * magnitude)


def _factors(tensors: Tensors, name: str, dim: int) -> Array | None:
    tensor = tensors.get(name)
    if tensor is None:
        return None
    if tuple(tensor.shape) != (dim // 2,):
        raise FormatError(f"tensor {name}:", tensor=name, expected=f"shape ({dim // 2})", found=tuple(tensor.shape))
    values = tensor.dequantize(np.float32) if isinstance(tensor, QTensor) else tensor.astype(np.float32)
    if not (np.isfinite(values) & (values > 0)).all():
        raise FormatError(f"tensor {name}:", tensor=name, expected="positive numbers")
    result: Array = values
    return result


def _table(frequencies: Array) -> tuple[float, ...]:
    if not np.isfinite(frequencies).all():
        raise FormatError("the base and scaling of the rotary embedding give frequencies that are not finite")
    return tuple(frequencies.tolist())
