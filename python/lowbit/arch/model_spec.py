"""ModelSpec: the description of a network for the C++ transformer (src/engine/spec.h reads its fields)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rope:
    """A table of a rotary embedding: pair i of a head's values rotates by position * frequencies[i] radians.

    The numbers include all kinds of scaling (arch/rope.py computes them), so the core needs no kinds.
    """

    frequencies: tuple[float, ...]  #: rope_dim / 2 float32 values, radians per position
    magnitude: float = 1.0  #: factor of cosines and sines
    #: The frequencies for sequences longer than ModelSpec.original_context, for all of their tokens (LongRoPE). Empty:
    #: `frequencies` apply to every length.
    long_frequencies: tuple[float, ...] = ()
    long_magnitude: float = 1.0


@dataclass(frozen=True)
class ModelSpec:
    """Shape and constants of a decoder-only transformer.

    The presence of tensors decides the rest:

    - output.weight, biases (blk.N.X.bias), norms of queries and keys (blk.N.attn_q_norm.weight);
    - blk.N.post_attention_norm.weight, blk.N.post_ffw_norm.weight: norms of a branch's result;
    - blk.N.attn_sub_norm.weight, blk.N.ffn_sub_norm.weight: norms of the inputs of attn_output and ffn_down;
    - blk.N.attn_qkv.weight instead of attn_q, attn_k, attn_v: their rows, in this order;
    - blk.N.ffn_up.weight of 2 * intermediate_size rows without an ffn_gate: the gate's rows, then those of ffn_up;
    - blk.N.X.scale: one number, the factor of the product with blk.N.X.weight.
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
    attention_scale: float  #: scores are query . key times this, mostly 1 / sqrt(head_dim)
    windows: tuple[int, ...]  #: attention window of each layer, including the token itself; 0: unlimited
    rope_dim: int  #: leading dimensions of a head that are rotated
    rope_interleaved: bool  #: True: pairs (2i, 2i+1), GGUF llama; False: halves (i, i + rope_dim/2), qwen3
    ropes: tuple[Rope, ...]
    layer_ropes: tuple[int, ...]  #: index into `ropes` for each layer
    original_context: int = 0  #: longer sequences use `long_frequencies`; 0: none does
    activation: str = "silu"  #: of the gate: "silu", "gelu_tanh" or "relu2"
    embedding_scale: float = 1.0  #: factor of the embeddings
    attention_softcap: float = 0.0  #: scores s become cap * tanh(s / cap); 0: none
    logit_softcap: float = 0.0  #: the same for logits
    int8_activations: bool = (
        False  #: inputs of the layers' matrices are rounded to 8 bits, one scale per token (BitNet)
    )

    def is_long(self, length: int) -> bool:
        """Whether a sequence of this length uses `long_frequencies`."""
        return 0 < self.original_context < length
