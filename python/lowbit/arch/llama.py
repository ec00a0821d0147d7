"""llama: Llama 1 to 3, Mistral, TinyLlama, SmolLM2 and the many that kept the class."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lowbit._core import FormatError
from lowbit.arch import _hf
from lowbit.arch._base import Architecture, Sizes
from lowbit.arch._keys import Keys
from lowbit.config import Config
from lowbit.tensor_source import ArraySource, InterleavedHeads, SeparatedHeads, TensorSource


class Llama(Architecture):
    """GGUF rotates neighbours (2i, 2i+1) where Hugging Face rotates halves, so query and key rows are reordered."""

    name = "llama"
    hf_names = ("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM")
    rope_interleaved = True

    def late_metadata(self, config: Config) -> dict[str, Any]:
        """Vocabulary size, rotated dimensions, and the window, which the reference drops."""
        sizes = self.sizes(config)
        keys = {"llama.vocab_size": sizes.vocab, "llama.rope.dimension_count": sizes.head_dim}
        return {**keys, **super().late_metadata(config)}

    def config_windows(self, config: Config) -> tuple[int, ...]:
        """Mistral's, in every layer: sliding_window, which is 4096 where config.json does not mention it."""
        has_one = config.hf_class == "MistralForCausalLM" and not config.is_null("sliding_window")
        window = config.integer("sliding_window", 4096) if has_one else 0
        return (window,) * self.sizes(config).layers

    def fix_up(self, tensor: TensorSource, config: Config) -> TensorSource:
        """Reorders the rows of queries and keys."""
        num_heads = _num_heads(tensor.name, self.sizes(config))
        return InterleavedHeads(tensor.name, tensor, num_heads) if num_heads else tensor

    def restore(self, tensor: TensorSource, config: Config) -> TensorSource:
        """Puts the rows of queries and keys back."""
        num_heads = _num_heads(tensor.name, self.sizes(config))
        return SeparatedHeads(tensor.name, tensor, num_heads) if num_heads else tensor

    def hf_windows(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """A file with a window is Mistral's."""
        window = Keys(metadata, self.name).integer("attention.sliding_window", 0, minimum=0)
        if not window:
            return {}
        return {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": window}

    def hf_rope(self, metadata: Mapping[str, Any], tensors: Mapping[str, TensorSource]) -> dict[str, Any]:
        """As in every architecture, or Llama 3's settings if the file has their factors."""
        rope = super().hf_rope(metadata, tensors)
        factors = tensors.get("rope_freqs.weight")
        if factors is None:
            return rope
        theta = rope["rope_theta"]
        return _hf.rope_parameters(_hf.llama3_parameters(factors, theta, llama3_factors), theta)

    def extra_tensors(self, config: Config) -> Iterable[TensorSource]:
        """rope_freqs.weight when the rotary embedding is scaled as in Llama 3."""
        rope = config.rope()
        if rope.values["rope_type"] == "llama3":
            factors = llama3_factors(
                self.sizes(config).head_dim,
                rope.number("rope_theta"),
                rope.number("factor", 8.0),
                rope.number("low_freq_factor", 1.0),
                rope.number("high_freq_factor", 4.0),
                rope.number("original_max_position_embeddings", 8192.0),
            )
            if not (np.isfinite(factors) & (factors > 0)).all():
                raise FormatError(f"{rope.where}: its numbers make factors that are not positive and finite")
            yield ArraySource("rope_freqs.weight", factors)


def _num_heads(name: str, sizes: Sizes) -> int:
    """How many heads a tensor's rows make, 0 for all but queries and keys."""
    if name.endswith((".attn_q.weight", ".attn_q.bias")):
        return sizes.num_heads
    return sizes.num_kv_heads if name.endswith((".attn_k.weight", ".attn_k.bias")) else 0


@np.errstate(all="ignore")  # extreme numbers, and equal factors, between which nothing lies
def llama3_factors(
    dim: int, theta: float, factor: float, low_freq_factor: float, high_freq_factor: float, original_context: float
) -> np.ndarray:
    """What Llama 3 divides each frequency by, (dim // 2,) float32.

    Every step rounds to float32, as the reference's does. theta ** x is rounded correctly here; the reference's is
    within one unit in the last place of that, and equal for the released models (theta 500000, dim 64 and 128).
    """
    one, old = np.float32(1.0), np.float32(original_context)
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    frequencies = one / np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)
    wavelengths = one / frequencies * np.float32(2 * math.pi)  # torch divides a number by multiplying its inverse
    smooth = one / wavelengths * old - np.float32(low_freq_factor)
    smooth = smooth / np.float32(high_freq_factor - low_freq_factor)
    between = one / ((one - smooth) / np.float32(factor) + smooth)
    result: np.ndarray = np.where(
        wavelengths > np.float32(original_context / low_freq_factor), np.float32(factor), between
    )
    result[wavelengths < np.float32(original_context / high_freq_factor)] = one
    return result


ARCHITECTURE = Llama()
