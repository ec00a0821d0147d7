"""Values of config.json, computed from GGUF keys and tensors.

GGUF stores numbers as float32. In config.json they become the shortest decimals that round to the same float32: the
numbers as their authors wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lowbit.arch.keys import Keys
from lowbit.arch.rope_keys import llama3_factors
from lowbit.arch.table import MAX_LAYERS
from lowbit.base.errors import FormatError, UnsupportedError
from lowbit.gguf.reading import strings
from lowbit.hf.config import MOST_FLOAT32
from lowbit.tensors.source import TensorSource, read
from lowbit.tokenizer.special import checked_special, id_key

#: The most pairs of dimensions that a head can rotate.
MAX_ROTATED = 1 << 16


def decimal(value: Any) -> float:
    """A float32 as the shortest decimal that rounds to it. Raises FormatError if JSON has no number for it."""
    if not abs(value) <= MOST_FLOAT32:
        raise FormatError(expected="a finite number", found=value)
    return float(str(np.float32(value)))


def has_biases(tensors: Mapping[str, TensorSource], parts: tuple[str, ...]) -> bool:
    """Whether the layers have these biases: all or none, because config.json has one switch."""
    names = [f"blk.0.{part}.bias" for part in parts]
    there = [name for name in names if name in tensors]
    if there and len(there) != len(names):
        missing = next(name for name in names if name not in tensors)
        raise UnsupportedError(
            f"tensor {missing} is missing, but tensor {there[0]} is not; config.json cannot express this",
            tensor=there[0],
        )
    return bool(there)


def token_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    """bos_token_id, eos_token_id and pad_token_id, if the file has them and their tokens exist."""
    tokens = strings(metadata, "tokenizer.ggml.tokens")
    count = 0 if tokens is None else len(tokens)
    found: dict[str, int] = {}
    for role in ("bos", "eos", "pad"):
        if (value := metadata.get(id_key(role))) is not None:
            token_id = checked_special(id_key(role), value, count)
            found |= {} if token_id is None else {f"{role}_token_id": token_id}
    return found


def llama3_parameters(factors: TensorSource, theta: float) -> dict[str, Any]:
    """The settings that give the factors of rope_freqs.weight, float32 (head_dim / 2,).

    The factors depend only on the ratio of low_freq_factor, high_freq_factor and the original context. All known models
    have 1, 4 and a power of two, so these are tried. Raises UnsupportedError if none gives the same bits.
    """
    if len(factors.shape) != 1 or not 0 < factors.shape[0] <= MAX_ROTATED or factors.dtype != np.float32:
        raise FormatError(
            f"tensor {factors.name}: {factors.dtype} {list(factors.shape)}",
            tensor=factors.name,
            expected="one factor for each rotated pair",
        )
    wanted = read(factors)
    factor = decimal(wanted.max())
    for exponent in range(4, 25):
        settings = (factor, 1.0, 4.0, float(1 << exponent))
        if np.array_equal(llama3_factors(2 * len(wanted), theta, *settings), wanted):
            names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
            return {"rope_type": "llama3", **dict(zip(names, settings, strict=True)), names[-1]: 1 << exponent}
    raise UnsupportedError(
        f"tensor {factors.name}:", expected="the factors of a Llama 3 scaling with known settings", tensor=factors.name
    )


def layer_types(metadata: Mapping[str, Any], arch: str, window: int) -> list[str]:
    """layer_types in config.json, from attention.sliding_window_pattern. Without it, all layers have the window."""
    get = Keys(metadata, arch)
    num_layers = get.integer("block_count", maximum=MAX_LAYERS)
    key = "attention.sliding_window_pattern"
    pattern = metadata.get(f"{arch}.{key}")
    if pattern is None:
        pattern = [window > 0] * num_layers
    elif isinstance(pattern, (int, np.integer)):  # all layers except each n-th; 0: every layer
        period = get.integer(key, minimum=0)
        pattern = [period == 0 or (i + 1) % period > 0 for i in range(num_layers)]
    if not isinstance(pattern, (list, np.ndarray)) or len(pattern) != num_layers:
        name = f"{arch}.{key}"
        raise FormatError(f"{name}:", key=name, expected=f"one value for each of {num_layers} layers")
    return ["sliding_attention" if has_window else "full_attention" for has_window in pattern]


def rope_parameters(rope: dict[str, Any], theta: float) -> dict[str, Any]:
    """The rotary embedding in both forms: transformers 5 reads rope_parameters, 4 the other two.

    With only one form, a reader of the other would silently use its default.
    """
    scaling = None if rope["rope_type"] == "default" else rope
    return {"rope_parameters": {**rope, "rope_theta": theta}, "rope_theta": theta, "rope_scaling": scaling}
