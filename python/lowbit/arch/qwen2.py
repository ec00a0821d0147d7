"""qwen2: the dense models of Qwen 2 and 2.5, with biases on queries, keys and values."""

from __future__ import annotations

from typing import Any

from lowbit.arch._base import Architecture, sliding_layers
from lowbit.config import Config


class Qwen2(Architecture):
    """Rotates halves, as Hugging Face does, so no tensor changes."""

    name = "qwen2"
    hf_names = ("Qwen2ForCausalLM",)
    rope_interleaved = False

    def metadata(self, config: Config) -> dict[str, Any]:
        """The usual keys; the length of keys and values only where config.json has head_dim."""
        keys = super().metadata(config)
        if config.values.get("head_dim") is None:
            del keys[f"{self.name}.attention.key_length"], keys[f"{self.name}.attention.value_length"]
        return keys

    def config_windows(self, config: Config) -> tuple[int, ...]:
        """sliding_window from layer max_window_layers on, if use_sliding_window is set; 4096 and 28 where they are
        missing."""
        return qwen_windows(config, self.sizes(config).layers)


def qwen_windows(config: Config, num_layers: int) -> tuple[int, ...]:
    """The windows of Qwen 2 and 3, which are off unless use_sliding_window is set."""
    if not config.boolean("use_sliding_window", False) or config.is_null("sliding_window"):
        return (0,) * num_layers
    window = config.integer("sliding_window", 4096)
    first = config.integer("max_window_layers", 28, minimum=0)
    return tuple(window * sliding for sliding in sliding_layers(config, num_layers, lambda i: i >= first))


ARCHITECTURE = Qwen2()
