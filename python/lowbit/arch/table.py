"""Parts of the families' tables: tensors with their two names, and the sizes in their shapes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

#: The most layers of a network.
MAX_LAYERS = 4096


@dataclass(frozen=True)
class Tensor:
    """One tensor of an architecture: its GGUF name, Hugging Face name and shape as names of sizes."""

    gguf: str
    hf: str
    shape: tuple[str, ...]
    required: bool = True


#: The dense decoder with gated feed-forward: llama and most later architectures.
DENSE_GLOBAL = (
    Tensor("token_embd.weight", "model.embed_tokens.weight", ("vocab", "hidden")),
    Tensor("output_norm.weight", "model.norm.weight", ("hidden",)),
    Tensor("output.weight", "lm_head.weight", ("vocab", "hidden"), required=False),
)
DENSE_LAYER = (
    Tensor("attn_norm.weight", "input_layernorm.weight", ("hidden",)),
    Tensor("attn_q.weight", "self_attn.q_proj.weight", ("heads", "hidden")),
    Tensor("attn_k.weight", "self_attn.k_proj.weight", ("kv_heads", "hidden")),
    Tensor("attn_v.weight", "self_attn.v_proj.weight", ("kv_heads", "hidden")),
    Tensor("attn_output.weight", "self_attn.o_proj.weight", ("hidden", "heads")),
    Tensor("attn_q.bias", "self_attn.q_proj.bias", ("heads",), required=False),
    Tensor("attn_k.bias", "self_attn.k_proj.bias", ("kv_heads",), required=False),
    Tensor("attn_v.bias", "self_attn.v_proj.bias", ("kv_heads",), required=False),
    Tensor("attn_output.bias", "self_attn.o_proj.bias", ("hidden",), required=False),
    Tensor("ffn_norm.weight", "post_attention_layernorm.weight", ("hidden",)),
    Tensor("ffn_gate.weight", "mlp.gate_proj.weight", ("ffn", "hidden")),
    Tensor("ffn_up.weight", "mlp.up_proj.weight", ("ffn", "hidden")),
    Tensor("ffn_down.weight", "mlp.down_proj.weight", ("hidden", "ffn")),
    Tensor("ffn_gate.bias", "mlp.gate_proj.bias", ("ffn",), required=False),
    Tensor("ffn_up.bias", "mlp.up_proj.bias", ("ffn",), required=False),
    Tensor("ffn_down.bias", "mlp.down_proj.bias", ("hidden",), required=False),
)

#: The keys of config.json behind each size in Tensor.shape.
CONFIG_KEYS = {
    "vocab": "vocab_size",
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "heads": "num_attention_heads, head_dim",
    "kv_heads": "num_key_value_heads, head_dim",
    "qkv": "num_attention_heads, num_key_value_heads, head_dim",
    "gate_up": "intermediate_size",
    "head_dim": "head_dim",
}


@dataclass
class Sizes:
    """The sizes in config.json, with transformers' defaults."""

    layers: int
    context: int
    hidden: int
    ffn: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int
    norm_eps: float
    named: dict[str, int] = field(init=False)  #: the sizes that Tensor.shape names

    def __post_init__(self) -> None:
        self.named = {
            "vocab": self.vocab,
            "hidden": self.hidden,
            "ffn": self.ffn,
            "heads": self.num_heads * self.head_dim,
            "kv_heads": self.num_kv_heads * self.head_dim,
            "qkv": (self.num_heads + 2 * self.num_kv_heads) * self.head_dim,
            "gate_up": 2 * self.ffn,
            "head_dim": self.head_dim,
            "one": 1,
        }


def layer_of(name: str) -> int:
    """The layer in a GGUF tensor's name; -1 for tensors outside the layers."""
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else -1
