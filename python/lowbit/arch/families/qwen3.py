"""qwen3: the dense models of Qwen 3, with normalized queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowbit.arch.base import Architecture
from lowbit.arch.families.qwen2 import qwen_hf_windows, qwen_windows
from lowbit.arch.table import DENSE_LAYER, Tensor
from lowbit.hf.config import Config


class Qwen3(Architecture):
    """Rotates halves, as Hugging Face does, so no tensor changes."""

    name = "qwen3"
    hf_names = ("Qwen3ForCausalLM", "Qwen3Model")
    rope_interleaved = False
    keeps_pooling = True
    layer_tensors = (
        *DENSE_LAYER,
        Tensor("attn_q_norm.weight", "self_attn.q_norm.weight", ("head_dim",)),
        Tensor("attn_k_norm.weight", "self_attn.k_norm.weight", ("head_dim",)),
    )

    def default_head_dim(self, hidden: int, num_heads: int) -> int:
        """128 for every hidden size."""
        return 128

    def config_windows(self, config: Config) -> tuple[int, ...]:
        """As in Qwen 2."""
        return qwen_windows(config, self.sizes(config).layers)

    def has_bias(self, part: str, config: Config) -> bool:
        """Biases of attention depend on a switch."""
        return part.startswith("attn") and config.boolean("attention_bias", False)

    def hf_windows(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """As in Qwen 2."""
        return qwen_hf_windows(metadata, self.name)


ARCHITECTURE = Qwen3()
