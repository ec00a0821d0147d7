"""Tiny random networks of every shape, and the core's models of them."""

from __future__ import annotations

import dataclasses

import numpy as np

import lowbit
from lowbit import _core
from lowbit.qtensor import QTensor, format_of
from lowbit.spec import ModelSpec

BASE = ModelSpec(
    architecture="llama",
    vocab_size=67,
    context_length=1200,
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    norm_eps=1e-5,
    rope_theta=10000.0,
    rope_dim=16,
    rope_interleaved=False,
)
SPECS = {
    "base": {},
    "interleaved": {"rope_interleaved": True},
    "heads-not-hidden": {"head_dim": 40, "rope_dim": 40},
    "head-of-12": {"head_dim": 12, "rope_dim": 12, "rope_interleaved": True},
    "head-of-50": {"head_dim": 50, "rope_dim": 50},
    "partly-rotated": {"head_dim": 24, "rope_dim": 10},
    "partly-rotated-interleaved": {"head_dim": 24, "rope_dim": 10, "rope_interleaved": True},
    "not-rotated": {"rope_dim": 0},
    "head-of-1": {"head_dim": 1, "rope_dim": 0},
    "every-head-its-own": {"num_heads": 3, "num_kv_heads": 3},
    "one-key-for-nine": {"num_heads": 9, "num_kv_heads": 1},
    "odd-sizes": {"hidden_size": 33, "intermediate_size": 7, "vocab_size": 131},
    "smallest": {"vocab_size": 1, "hidden_size": 1, "intermediate_size": 1, "num_layers": 1},
}


def make_spec(**fields) -> ModelSpec:
    return dataclasses.replace(BASE, **fields)


def random_tensors(spec: ModelSpec, seed: int = 0, extras: bool = False) -> dict[str, np.ndarray]:
    """Weights that keep magnitudes near one; with `extras` also all the tensors that may be absent."""
    rng = np.random.default_rng(seed)
    tensors = {}

    def linear(name: str, rows: int, columns: int) -> None:
        tensors[f"{name}.weight"] = rng.standard_normal((rows, columns)) / np.sqrt(columns)
        if extras and name != "token_embd":
            tensors[f"{name}.bias"] = rng.standard_normal(rows)

    def norm(name: str, size: int) -> None:
        tensors[f"{name}.weight"] = 1 + 0.3 * rng.standard_normal(size)

    q_dim, kv_dim = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    linear("token_embd", spec.vocab_size, spec.hidden_size)
    norm("output_norm", spec.hidden_size)
    if extras:
        linear("output", spec.vocab_size, spec.hidden_size)
        tensors["rope_freqs.weight"] = np.linspace(1, 8, spec.rope_dim // 2)
    for i in range(spec.num_layers):
        block = f"blk.{i}."
        norm(f"{block}attn_norm", spec.hidden_size)
        norm(f"{block}ffn_norm", spec.hidden_size)
        if extras:
            norm(f"{block}attn_q_norm", spec.head_dim)
            norm(f"{block}attn_k_norm", spec.head_dim)
        linear(f"{block}attn_q", q_dim, spec.hidden_size)
        linear(f"{block}attn_k", kv_dim, spec.hidden_size)
        linear(f"{block}attn_v", kv_dim, spec.hidden_size)
        linear(f"{block}attn_output", spec.hidden_size, q_dim)
        linear(f"{block}ffn_gate", spec.intermediate_size, spec.hidden_size)
        linear(f"{block}ffn_up", spec.intermediate_size, spec.hidden_size)
        linear(f"{block}ffn_down", spec.hidden_size, spec.intermediate_size)
    return {name: array.astype(np.float32) for name, array in tensors.items()}


def packed(tensors: dict[str, np.ndarray], format: str, **options) -> dict[str, QTensor | np.ndarray]:
    return {name: lowbit.quantize(a, format, **options) if a.ndim == 2 else a for name, a in tensors.items()}


def core_spec(spec: ModelSpec) -> _core.ModelSpec:
    fields = dataclasses.asdict(spec)
    del fields["architecture"]
    return _core.ModelSpec(**fields)


def as_given(tensors) -> dict[str, tuple[str, list[int], np.ndarray]]:
    return {name: (format_of(w), list(w.shape), w.data if isinstance(w, QTensor) else w) for name, w in tensors.items()}


def make_model(spec, tensors, compute="f32", threads=2, max_length=None, max_sequences=8) -> _core.Model:
    length = spec.context_length if max_length is None else max_length
    return _core.Model(core_spec(spec), as_given(tensors), compute, threads, length, max_sequences)


def forward(model, ids, start=0, sequence=0, wants=None) -> np.ndarray:
    num = len(ids)
    positions = np.arange(start, start + num, dtype=np.int32)
    wants = np.ones(num, bool) if wants is None else np.asarray(wants, bool)
    return model.forward(np.asarray(ids, np.int32), positions, np.full(num, sequence, np.int32), wants)


def random_ids(spec: ModelSpec, num: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, spec.vocab_size, num).astype(np.int32)


def relative_error(logits: np.ndarray, expected: np.ndarray) -> float:
    return np.abs(logits - expected).max() / max(np.ptp(expected), np.abs(expected).max())
