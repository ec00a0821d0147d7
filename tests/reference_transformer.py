"""The transformer of src/engine in NumPy's float64, one sequence at a time: the tests' definition of right."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lowbit.arch.model_spec import ModelSpec, Rope


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def rotate(x: np.ndarray, spec: ModelSpec, rope: Rope) -> np.ndarray:
    """Rotary positions: x (T, heads, head_dim), whose first rope_dim values turn by position times frequency."""
    half = spec.rope_dim // 2
    is_long = spec.is_long(len(x)) and rope.long_frequencies
    frequencies = np.array(rope.long_frequencies if is_long else rope.frequencies)
    magnitude = rope.long_magnitude if is_long else rope.magnitude
    angles = np.arange(len(x))[:, None, None] * frequencies
    cos, sin = magnitude * np.cos(angles), magnitude * np.sin(angles)
    first, second = np.arange(half), half + np.arange(half)
    if spec.rope_interleaved:
        first, second = 2 * first, 2 * first + 1
    out = x.copy()
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., first] * sin + x[..., second] * cos
    return out


def silu(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Of each row, in float64."""
    x = logits.astype(np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """x / 2 * (1 + tanh(u)), with 1 + tanh(u) = 2 / (1 + exp(-2 u))."""
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def relu2(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) ** 2


def soft_cap(x: np.ndarray, cap: float) -> np.ndarray:
    return cap * np.tanh(x / cap) if cap else x


def round_tokens(x: np.ndarray) -> np.ndarray:
    """BitNet's rounding of activations, 8 bits and one scale a token."""
    scale = 127 / np.maximum(np.abs(x).max(axis=-1, keepdims=True), 1e-5)
    return np.clip(np.round(x * scale), -128, 127) / scale


ACTIVATIONS = {"silu": silu, "gelu_tanh": gelu_tanh, "relu2": relu2}


def reference_logits(spec: ModelSpec, tensors: Mapping[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    """Logits (T, vocab) after each id."""
    w = {name: array.astype(np.float64) for name, array in tensors.items()}
    q_dim, kv_dim = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        if spec.int8_activations and name.startswith("blk."):
            x = round_tokens(x)
        return x @ w[f"{name}.weight"].T * w.get(f"{name}.scale", 1.0) + w.get(f"{name}.bias", 0.0)

    def parts(fused: str, names: tuple[str, ...], sizes: tuple[int, ...], x: np.ndarray) -> list[np.ndarray]:
        if any(f"{name}.weight" not in w for name in names):
            return np.split(linear(fused, x), np.cumsum(sizes)[:-1], axis=1)
        return [linear(name, x) for name in names]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        """Where there is one."""
        return rms_norm(x, w[f"{name}.weight"], spec.norm_eps) if f"{name}.weight" in w else x

    x = w["token_embd.weight"][ids] * spec.embedding_scale
    for i in range(spec.num_layers):
        block = f"blk.{i}."
        normed = norm(f"{block}attn_norm", x)
        names = tuple(f"{block}attn_{part}" for part in "qkv")
        q, k, v = (
            y.reshape(len(ids), -1, spec.head_dim)
            for y in parts(f"{block}attn_qkv", names, (q_dim, kv_dim, kv_dim), normed)
        )
        rope = spec.ropes[spec.layer_ropes[i]]
        q, k = (rotate(norm(f"{name}_norm", y), spec, rope) for name, y in zip(names, (q, k), strict=False))
        k, v = (np.repeat(part, spec.num_heads // spec.num_kv_heads, axis=1) for part in (k, v))
        scores = soft_cap(np.einsum("ihd,jhd->hij", q, k) * spec.attention_scale, spec.attention_softcap)
        distance = np.arange(len(ids))[:, None] - np.arange(len(ids))
        scores[:, (distance < 0) | ((distance >= spec.windows[i]) & (spec.windows[i] > 0))] = -np.inf
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        attended = np.einsum("hij,jhd->ihd", p / p.sum(axis=-1, keepdims=True), v).reshape(len(ids), -1)
        added = linear(f"{block}attn_output", norm(f"{block}attn_sub_norm", attended))
        x = x + norm(f"{block}post_attention_norm", added)
        normed = norm(f"{block}ffn_norm", x)
        inner = spec.intermediate_size
        gate, up = parts(f"{block}ffn_up", (f"{block}ffn_gate", f"{block}ffn_up"), (inner, inner), normed)
        gated = norm(f"{block}ffn_sub_norm", ACTIVATIONS[spec.activation](gate) * up)
        x = x + norm(f"{block}post_ffw_norm", linear(f"{block}ffn_down", gated))
    x = norm("output_norm", x)
    return soft_cap(linear("output" if "output.weight" in w else "token_embd", x), spec.logit_softcap)
