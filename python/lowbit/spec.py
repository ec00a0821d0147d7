"""ModelSpec: what the transformer in C++ needs to know of a network (the same struct is src/model/spec.h)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSpec:
    """Shape and constants of a decoder-only transformer.

    Whether a tensor is there (blk.N.attn_q_norm.weight, biases, rope_freqs.weight, output.weight) decides the rest.
    """

    architecture: str  #: GGUF name: "llama", "qwen3"
    vocab_size: int
    context_length: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    rope_dim: int  #: leading dimensions of a head that are rotated
    rope_interleaved: bool  #: True: pairs (2i, 2i+1), GGUF llama; False: halves (i, i + rope_dim/2), qwen3
