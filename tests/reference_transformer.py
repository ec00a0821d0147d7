"""The transformer of src/model in NumPy's float64, one sequence at a time: the tests' definition of right."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lowbit.spec import ModelSpec


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def rotate(x: np.ndarray, spec: ModelSpec, divisors: np.ndarray) -> np.ndarray:
    """Rotary positions: x (T, heads, head_dim), whose first rope_dim values turn by position times frequency."""
    half = spec.rope_dim // 2
    frequencies = spec.rope_theta ** (-2.0 * np.arange(half) / max(spec.rope_dim, 1)) / divisors
    angles = np.arange(len(x))[:, None, None] * frequencies
    first, second = np.arange(half), half + np.arange(half)
    if spec.rope_interleaved:
        first, second = 2 * first, 2 * first + 1
    out = x.copy()
    out[..., first] = x[..., first] * np.cos(angles) - x[..., second] * np.sin(angles)
    out[..., second] = x[..., first] * np.sin(angles) + x[..., second] * np.cos(angles)
    return out


def silu(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))


def reference_logits(spec: ModelSpec, tensors: Mapping[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    """Logits (T, vocab) after each id."""
    w = {name: array.astype(np.float64) for name, array in tensors.items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    def heads(name: str, x: np.ndarray, num: int) -> np.ndarray:
        y = linear(name, x).reshape(len(x), num, spec.head_dim)
        if name.endswith("_v"):
            return y
        norm = w.get(f"{name}_norm.weight")
        divisors = w.get("rope_freqs.weight", np.ones(spec.rope_dim // 2))
        return rotate(y if norm is None else rms_norm(y, norm, spec.norm_eps), spec, divisors)

    x = w["token_embd.weight"][ids]
    hidden_from = np.triu(np.ones((len(ids), len(ids)), bool), 1)
    for i in range(spec.num_layers):
        block = f"blk.{i}."
        normed = rms_norm(x, w[f"{block}attn_norm.weight"], spec.norm_eps)
        q = heads(f"{block}attn_q", normed, spec.num_heads)
        k, v = (heads(f"{block}attn_{part}", normed, spec.num_kv_heads) for part in "kv")
        k, v = (np.repeat(part, spec.num_heads // spec.num_kv_heads, axis=1) for part in (k, v))
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(spec.head_dim)
        scores[:, hidden_from] = -np.inf
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        attended = np.einsum("hij,jhd->ihd", p / p.sum(axis=-1, keepdims=True), v)
        x = x + linear(f"{block}attn_output", attended.reshape(len(ids), -1))
        normed = rms_norm(x, w[f"{block}ffn_norm.weight"], spec.norm_eps)
        gated = silu(linear(f"{block}ffn_gate", normed)) * linear(f"{block}ffn_up", normed)
        x = x + linear(f"{block}ffn_down", gated)
    x = rms_norm(x, w["output_norm.weight"], spec.norm_eps)
    return linear("output" if "output.weight" in w else "token_embd", x)
