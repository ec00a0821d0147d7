"""Tiny random networks of every shape, and the core's models of them."""

from __future__ import annotations

import numpy as np

import lowbit
from lowbit import _core
from lowbit.arch.model_spec import ModelSpec, Rope
from lowbit.tensors.qtensor import QTensor, format_of

BASE = {
    "architecture": "llama",
    "vocab_size": 67,
    "context_length": 1200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "norm_eps": 1e-5,
    "rope_interleaved": False,
}


def frequencies(dim: int, theta: float = 10000.0, first: float = 1.0) -> tuple[float, ...]:
    return tuple((first * theta ** (-2.0 * np.arange(dim // 2) / max(dim, 1))).astype(np.float32).tolist())


SPECS = {
    "base": {},
    "interleaved": {"rope_interleaved": True},
    "heads-not-hidden": {"head_dim": 40},
    "head-of-12": {"head_dim": 12, "rope_interleaved": True},
    "head-of-50": {"head_dim": 50},
    "partly-rotated": {"head_dim": 24, "rope_dim": 10},
    "partly-rotated-interleaved": {"head_dim": 24, "rope_dim": 10, "rope_interleaved": True},
    "not-rotated": {"rope_dim": 0},
    "head-of-1": {"head_dim": 1, "rope_dim": 0},
    "every-head-its-own": {"num_heads": 3, "num_kv_heads": 3},
    "one-key-for-nine": {"num_heads": 9, "num_kv_heads": 1},
    "odd-sizes": {"hidden_size": 33, "intermediate_size": 7, "vocab_size": 131},
    "smallest": {"vocab_size": 1, "hidden_size": 1, "intermediate_size": 1, "num_layers": 1},
    "gelu": {"activation": "gelu_tanh", "embedding_scale": 3.0, "attention_scale": 0.4},
    "capped": {"attention_softcap": 2.0, "logit_softcap": 1.5},
    "windows": {"num_layers": 4, "windows": (0, 1, 16, 65)},
    "windows-capped": {"windows": (70, 3), "attention_softcap": 0.5, "num_kv_heads": 1, "head_dim": 20},
    "two-ropes": {
        "num_layers": 3,
        "windows": (20, 20, 0),
        "ropes": (Rope(frequencies(16), 1.3), Rope(frequencies(16, 50.0, 0.2))),
        "layer_ropes": (0, 0, 1),
    },
    "long": {
        "original_context": 140,
        "ropes": (Rope(frequencies(16), 1.1, frequencies(16, 300.0), 1.4),),
    },
    "int8-activations": {"activation": "relu2", "int8_activations": True},
}


def make_spec(**fields) -> ModelSpec:
    """The base with some fields replaced; by default every layer attends to all tokens and has the same rope."""
    given = {**BASE, **fields}
    dim = given.setdefault("rope_dim", given["head_dim"])
    given.setdefault("attention_scale", given["head_dim"] ** -0.5)
    given.setdefault("windows", (0,) * given["num_layers"])
    given.setdefault("ropes", (Rope(frequencies(dim)),))
    given.setdefault("layer_ropes", (0,) * given["num_layers"])
    return ModelSpec(**given)


def random_tensors(spec: ModelSpec, seed: int = 0, extras: bool = False, fused: bool = False) -> dict[str, np.ndarray]:
    """Weights that keep magnitudes near one; with `extras` also all the tensors that may be absent, with `fused` one
    matrix for queries, keys and values and one for gate and up."""
    rng = np.random.default_rng(seed)
    tensors = {}

    def linear(name: str, rows: int, columns: int) -> None:
        tensors[f"{name}.weight"] = rng.standard_normal((rows, columns)) / np.sqrt(columns)
        if extras and name != "token_embd":
            tensors[f"{name}.bias"] = rng.standard_normal(rows)
            tensors[f"{name}.scale"] = rng.uniform(0.5, 1.5, 1)

    def norm(name: str, size: int) -> None:
        tensors[f"{name}.weight"] = 1 + 0.3 * rng.standard_normal(size)

    q_dim, kv_dim = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    hidden, inner = spec.hidden_size, spec.intermediate_size
    linear("token_embd", spec.vocab_size, hidden)
    norm("output_norm", hidden)
    if extras:
        linear("output", spec.vocab_size, hidden)
    for i in range(spec.num_layers):
        block = f"blk.{i}."
        norm(f"{block}attn_norm", hidden)
        norm(f"{block}ffn_norm", hidden)
        if extras:
            norm(f"{block}attn_q_norm", spec.head_dim)
            norm(f"{block}attn_k_norm", spec.head_dim)
            norm(f"{block}attn_sub_norm", q_dim)
            norm(f"{block}ffn_sub_norm", inner)
            norm(f"{block}post_attention_norm", hidden)
            norm(f"{block}post_ffw_norm", hidden)
        if fused:
            linear(f"{block}attn_qkv", q_dim + 2 * kv_dim, hidden)
            linear(f"{block}ffn_up", 2 * inner, hidden)
        else:
            linear(f"{block}attn_q", q_dim, hidden)
            linear(f"{block}attn_k", kv_dim, hidden)
            linear(f"{block}attn_v", kv_dim, hidden)
            linear(f"{block}ffn_gate", inner, hidden)
            linear(f"{block}ffn_up", inner, hidden)
        linear(f"{block}attn_output", hidden, q_dim)
        linear(f"{block}ffn_down", hidden, inner)
    return {name: array.astype(np.float32) for name, array in tensors.items()}


def packed(tensors: dict[str, np.ndarray], format: str, **options) -> dict[str, QTensor | np.ndarray]:
    return {name: lowbit.quantize(a, format, **options) if a.ndim == 2 else a for name, a in tensors.items()}


def as_given(tensors) -> dict[str, tuple[str, list[int], np.ndarray]]:
    return {name: (format_of(w), list(w.shape), w.data if isinstance(w, QTensor) else w) for name, w in tensors.items()}


def make_model(spec, tensors, compute="f32", threads=2, max_length=None, max_sequences=8) -> _core.Model:
    length = spec.context_length if max_length is None else max_length
    return _core.Model(spec, as_given(tensors), compute, threads, length, max_sequences)


def forward(model, ids, start=0, sequence=0, wants=None, expected_length=0) -> np.ndarray:
    num = len(ids)
    positions = np.arange(start, start + num, dtype=np.int32)
    wants = np.ones(num, bool) if wants is None else np.asarray(wants, bool)
    sequences = np.full(num, sequence, np.int32)
    return model.forward(np.asarray(ids, np.int32), positions, sequences, wants, expected_length)


def random_ids(spec: ModelSpec, num: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, spec.vocab_size, num).astype(np.int32)


def relative_error(logits: np.ndarray, expected: np.ndarray) -> float:
    return np.abs(logits - expected).max() / max(np.ptp(expected), np.abs(expected).max())
