"""ModelSpec: what the transformer in C++ needs to know of a network (the same structs are in src/engine/spec.h)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from lowbit import _core


@dataclass(frozen=True)
class Rope:
    """A table of a rotary embedding: pair i of a head's values turns by position * frequencies[i] radians.

    All kinds of scaling are in the numbers (arch/_rope.py computes them), so that the core knows none of them.
    """

    frequencies: tuple[float, ...]  #: rope_dim / 2 float32 values, radians a position
    magnitude: float = 1.0  #: cosines and sines are multiplied by it
    #: The same for sequences of more than ModelSpec.original_context tokens, for all of their tokens (LongRoPE); empty:
    #: `frequencies` serve every length.
    long_frequencies: tuple[float, ...] = ()
    long_magnitude: float = 1.0


@dataclass(frozen=True)
class ModelSpec:
    """Shape and constants of a decoder-only transformer.

    Whether a tensor is there decides the rest:

    - output.weight, biases (blk.N.X.bias), norms of queries and keys (blk.N.attn_q_norm.weight);
    - blk.N.post_attention_norm.weight, blk.N.post_ffw_norm.weight: norms of what a branch adds;
    - blk.N.attn_sub_norm.weight, blk.N.ffn_sub_norm.weight: norms of the inputs of attn_output and ffn_down;
    - blk.N.attn_qkv.weight in place of attn_q, attn_k, attn_v: its rows are theirs, in this order;
    - blk.N.ffn_up.weight of 2 * intermediate_size rows without an ffn_gate: the gate's rows, then its own;
    - blk.N.X.scale, one number by which the product with blk.N.X.weight is multiplied.
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
    windows: tuple[int, ...]  #: for each layer how many tokens one sees, itself included; 0: all
    rope_dim: int  #: leading dimensions of a head that are rotated
    rope_interleaved: bool  #: True: pairs (2i, 2i+1), GGUF llama; False: halves (i, i + rope_dim/2), qwen3
    ropes: tuple[Rope, ...]
    layer_ropes: tuple[int, ...]  #: for each layer an index into `ropes`
    original_context: int = 0  #: sequences of more tokens rotate by `long_frequencies`; 0: there is no such length
    activation: str = "silu"  #: of the gate: "silu", "gelu_tanh" or "relu2"
    embedding_scale: float = 1.0  #: embeddings are multiplied by it
    attention_softcap: float = 0.0  #: scores s become cap * tanh(s / cap); 0: none
    logit_softcap: float = 0.0  #: the same for logits
    int8_activations: bool = (
        False  #: inputs of the layers' linear maps are rounded to 8 bits, one scale a token (BitNet)
    )

    def is_long(self, length: int) -> bool:
        """Whether a sequence of so many tokens rotates by `long_frequencies`."""
        return 0 < self.original_context < length

    def core(self) -> _core.ModelSpec:
        """The same for the core."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["architecture"]
        fields["ropes"] = [_core.Rope(**dataclasses.asdict(rope)) for rope in self.ropes]
        return _core.ModelSpec(**fields)
