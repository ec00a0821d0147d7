"""GGUF's keys and tensors for the rotary embedding of config.json."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lowbit.base.errors import FormatError, UnsupportedError
from lowbit.hf.config import Config
from lowbit.tensors.source import ArraySource, TensorSource

#: Settings of yarn in config.json and under rope.scaling.
YARN_KEYS = (
    ("extrapolation_factor", "yarn_ext_factor"),
    ("attention_factor", "yarn_attn_factor"),
    ("beta_fast", "yarn_beta_fast"),
    ("beta_slow", "yarn_beta_slow"),
)
#: The tensor with the divisors of the frequencies.
ROPE_FREQS = "rope_freqs.weight"


def rope_metadata(rope: Config, context: int) -> dict[str, Any]:
    """Keys of a rotary embedding, without the architecture's name: its base, and its scaling if GGUF has keys for it.

    rope: the result of Config.rope. context: max_position_embeddings.
    """
    kind = rope.values["rope_type"]
    result: dict[str, Any] = {}
    if kind == "linear":
        result = {"rope.scaling.type": kind, "rope.scaling.factor": rope.number("factor")}
    elif kind == "yarn":
        result = _yarn_metadata(rope, context)
    elif kind not in ("default", "llama3"):
        raise rope.error(
            UnsupportedError, "rope_type", repr(kind), expected="default, linear, yarn or llama3", found=kind
        )
    if kind != "default" and rope.number("partial_rotary_factor", 1.0) != 1:
        raise rope.error(UnsupportedError, "partial_rotary_factor", "is set, and the architecture rotates whole heads")
    return {**result, "rope.freq_base": rope.number("rope_theta")}


def _yarn_metadata(rope: Config, context: int) -> dict[str, Any]:
    """Keys of YaRN. Without a factor in config.json, it is the ratio of the two contexts, as in transformers."""
    original = rope.integer("original_max_position_embeddings")
    factor = rope.number("factor", context / original)
    result = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": original,
    }
    for key, gguf_key in YARN_KEYS:
        if rope.values.get(key) is not None:
            result[f"rope.scaling.{gguf_key}"] = rope.number(key)
    if rope.values.get("attention_factor") is None and (magnitude := _yarn_magnitude(rope, factor)) is not None:
        result["rope.scaling.yarn_attn_factor"] = magnitude
    if not rope.boolean("truncate", True):
        raise rope.error(UnsupportedError, "truncate", "is false, and GGUF has no key for YaRN with an exact ramp")
    return result


def _yarn_magnitude(rope: Config, factor: float) -> float | None:
    """YaRN's magnitude if config.json has mscale and mscale_all_dim; transformers requires both."""
    if not rope.values.get("mscale") or not rope.values.get("mscale_all_dim"):
        return None
    slope = 0.1 * math.log(max(factor, 1.0))
    return (slope * rope.number("mscale") + 1) / (slope * rope.number("mscale_all_dim") + 1)


def rope_tensors(rope: Config, dim: int) -> list[TensorSource]:
    """rope_freqs.weight, if the rotary embedding is scaled as in Llama 3. dim: rotated values of a head."""
    if rope.values["rope_type"] != "llama3":
        return []
    factors = llama3_factors(
        dim,
        rope.number("rope_theta"),
        rope.number("factor", 8.0),
        rope.number("low_freq_factor", 1.0),
        rope.number("high_freq_factor", 4.0),
        rope.number("original_max_position_embeddings"),
    )
    if not (np.isfinite(factors) & (factors > 0)).all():
        raise FormatError(
            f"{rope.part}: the settings give factors that are not positive and finite", path=rope.path, key=rope.part
        )
    return [ArraySource(ROPE_FREQS, factors)]


@np.errstate(all="ignore")  # extreme numbers, and equal factors: a division by 0
def llama3_factors(
    dim: int, theta: float, factor: float, low_freq_factor: float, high_freq_factor: float, original_context: float
) -> np.ndarray:
    """Llama 3's divisors of the frequencies, (dim // 2,) float32.

    Every step rounds to float32, as in the reference. theta ** x is correctly rounded here; the reference's result is
    within one unit in the last place, and equal for the released models (theta 500000, dim 64 and 128).
    """
    one, old = np.float32(1.0), np.float32(original_context)
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    frequencies = one / np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)
    wavelengths = one / frequencies * np.float32(2 * math.pi)  # torch multiplies the number with the reciprocal
    smooth = one / wavelengths * old - np.float32(low_freq_factor)
    smooth = smooth / np.float32(high_freq_factor - low_freq_factor)
    between = one / ((one - smooth) / np.float32(factor) + smooth)
    result: np.ndarray = np.where(
        wavelengths > np.float32(original_context / low_freq_factor), np.float32(factor), between
    )
    result[wavelengths < np.float32(original_context / high_freq_factor)] = one
    return result
