"""qwen2: the dense models of Qwen 2 and 2.5, with biases on queries, keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowbit.arch import hf_values
from lowbit.arch.base import Architecture, sliding_layers
from lowbit.arch.keys import Keys
from lowbit.base.errors import FormatError
from lowbit.hf.config import Config
from lowbit.tensors.source import TensorSource


class Qwen2(Architecture):
    """Rotates halves, as Hugging Face does, so no tensor changes."""

    name = "qwen2"
    hf_names = ("Qwen2ForCausalLM", "Qwen2Model")
    rope_interleaved = False
    keeps_pooling = True

    def metadata(self, config: Config) -> dict[str, Any]:
        """The usual keys; the length of keys and values only if config.json has head_dim."""
        keys = super().metadata(config)
        if config.values.get("head_dim") is None:
            del keys[f"{self.name}.attention.key_length"], keys[f"{self.name}.attention.value_length"]
        return keys

    def config_windows(self, config: Config) -> tuple[int, ...]:
        """sliding_window from layer max_window_layers on, if use_sliding_window is set. Defaults: 4096 and 28."""
        return qwen_windows(config, self.sizes(config).layers)

    def has_bias(self, part: str, config: Config) -> bool:
        """Queries, keys and values always have biases."""
        return part in ("attn_q", "attn_k", "attn_v")

    def hf_config(self, metadata: Mapping[str, Any], tensors: Mapping[str, TensorSource]) -> dict[str, Any]:
        """As in every architecture; head_dim if the file has the length of keys."""
        config = super().hf_config(metadata, tensors)
        if f"{self.name}.attention.key_length" not in metadata:
            del config["head_dim"]
        return config

    def hf_biases(self, tensors: Mapping[str, TensorSource]) -> dict[str, bool]:
        """Queries, keys and values always have biases; config.json has no key for it."""
        if not hf_values.has_biases(tensors, ("attn_q", "attn_k", "attn_v")):
            raise FormatError("tensor blk.0.attn_q.bias is missing", tensor="blk.0.attn_q.bias")
        return {}

    def hf_windows(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """As in Qwen 3."""
        return qwen_hf_windows(metadata, self.name)


def qwen_windows(config: Config, num_layers: int) -> tuple[int, ...]:
    """The windows of Qwen 2 and 3. They are off unless use_sliding_window is set."""
    if not config.boolean("use_sliding_window", False) or config.is_null("sliding_window"):
        return (0,) * num_layers
    window = config.integer("sliding_window", 4096)
    first = config.integer("max_window_layers", 28, minimum=0)
    return tuple(window * sliding for sliding in sliding_layers(config, num_layers, lambda i: i >= first))


def qwen_hf_windows(metadata: Mapping[str, Any], arch: str) -> dict[str, Any]:
    """The inverse of `qwen_windows`. transformers 4 reads only max_window_layers."""
    window = Keys(metadata, arch).integer("attention.sliding_window", 0, minimum=0)
    types = hf_values.layer_types(metadata, arch, window)
    full = [i for i, kind in enumerate(types) if kind == "full_attention"]
    settings = {"use_sliding_window": window > 0, "sliding_window": window or None, "layer_types": types}
    return {**settings, "max_window_layers": full[-1] + 1 if full else 0}


ARCHITECTURE = Qwen2()
