"""llama: Llama 1 to 3, Mistral, TinyLlama, SmolLM2 and other models with these classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowbit.arch.base import Architecture
from lowbit.arch.keys import Keys
from lowbit.arch.table import Sizes
from lowbit.hf.config import Config
from lowbit.tensors.source import InterleavedHeads, SeparatedHeads, TensorSource
from lowbit.tokenizer.rules import TokenizerRules


class Llama(Architecture):
    """GGUF rotates neighbours (2i, 2i+1), Hugging Face rotates halves, so query and key rows are reordered."""

    name = "llama"
    hf_names = ("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM", "LlamaModel")
    rope_interleaved = True
    engine_reads_rope_freqs = True
    tokenizer_rules = TokenizerRules(
        keeps_space_prefix=True,
        byte_fallback="alike",
        keys_by_size={
            # CodeLlama: tokens for infilling.
            32016: {
                "tokenizer.ggml.prefix_token_id": 32007,
                "tokenizer.ggml.suffix_token_id": 32008,
                "tokenizer.ggml.middle_token_id": 32009,
                "tokenizer.ggml.eot_token_id": 32010,
            },
            # SmolLM and Granite do not start with <|endoftext|>.
            49152: {"tokenizer.ggml.add_bos_token": False},
        },
    )

    def late_metadata(self, config: Config) -> dict[str, Any]:
        """Vocabulary size, rotated dimensions, and the window, which the reference does not write."""
        sizes = self.sizes(config)
        keys = {"llama.vocab_size": sizes.vocab, "llama.rope.dimension_count": sizes.head_dim}
        return {**keys, **super().late_metadata(config)}

    def config_windows(self, config: Config) -> tuple[int, ...]:
        """Mistral's window, in every layer: sliding_window; 4096 if config.json does not have it."""
        has_one = config.hf_class == "MistralForCausalLM" and not config.is_null("sliding_window")
        window = config.integer("sliding_window", 4096) if has_one else 0
        return (window,) * self.sizes(config).layers

    def has_bias(self, part: str, config: Config) -> bool:
        """Two switches decide. Mistral's class has no biases."""
        return config.hf_class != "MistralForCausalLM" and config.boolean(
            "attention_bias" if part.startswith("attn") else "mlp_bias", False
        )

    def fix_up(self, tensor: TensorSource, config: Config) -> TensorSource:
        """Reorders the rows of queries and keys."""
        num_heads = _num_heads(tensor.name, self.sizes(config))
        return InterleavedHeads(tensor.name, tensor, num_heads) if num_heads else tensor

    def restore(self, tensor: TensorSource, config: Config) -> TensorSource:
        """Restores the row order of queries and keys."""
        num_heads = _num_heads(tensor.name, self.sizes(config))
        return SeparatedHeads(tensor.name, tensor, num_heads) if num_heads else tensor

    def hf_windows(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """A file with a window is a Mistral."""
        window = Keys(metadata, self.name).integer("attention.sliding_window", 0, minimum=0)
        if not window:
            return {}
        return {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": window}


def _num_heads(name: str, sizes: Sizes) -> int:
    """Number of heads in a tensor's rows; 0 for all tensors except queries and keys."""
    if name.endswith((".attn_q.weight", ".attn_q.bias")):
        return sizes.num_heads
    return sizes.num_kv_heads if name.endswith((".attn_k.weight", ".attn_k.bias")) else 0


ARCHITECTURE = Llama()
