"""gemma3: Gemma 3's text models, alone (270M, 1B) or inside a multimodal model (4B and up).

Norms before and after both branches, normalized queries and keys, GELU (tanh) in the gate, embeddings times the square
root of the hidden size; five layers with a window and rotary base 10000, then one with full attention and base 10^6.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lowbit.arch import hf_values
from lowbit.arch.base import Architecture, sliding_layers
from lowbit.arch.keys import Keys
from lowbit.arch.model_spec import Rope
from lowbit.arch.rope import Tensors, plain_rope, rope_of
from lowbit.arch.table import DENSE_LAYER, MAX_LAYERS, Tensor
from lowbit.base.errors import FormatError, UnsupportedError
from lowbit.hf.config import Config
from lowbit.tensors.source import MinusOne, PlusOne, TensorSource
from lowbit.tokenizer.rules import TokenizerRules

#: Keys that the text_config of a multimodal model may omit, with the defaults of transformers' Gemma3TextConfig.
NESTED_DEFAULTS = {
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
}
#: One of this many layers has full attention.
PATTERN = 6
GLOBAL_THETA, LOCAL_THETA = 1e6, 1e4
#: Caps of the logits and of attention scores. The reference keeps the first and refuses checkpoints with the second.
SOFT_CAPS = ("final_logit_softcapping", "attn_logit_softcapping")


class Gemma3(Architecture):
    """Rotates halves, as Hugging Face does. Hugging Face stores norms minus one."""

    name = "gemma3"
    hf_names = ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration")
    rope_interleaved = False
    tokenizer_rules = TokenizerRules(
        byte_fallback="ranked", keys_without_merges={"tokenizer.ggml.add_space_prefix": False}
    )
    hidden_act = "gelu_pytorch_tanh"
    activation_key = "hidden_activation"
    tied_by_default = True
    left_out = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
    layer_tensors = (
        *(tensor for tensor in DENSE_LAYER if tensor.gguf != "ffn_norm.weight"),
        Tensor("attn_q_norm.weight", "self_attn.q_norm.weight", ("head_dim",)),
        Tensor("attn_k_norm.weight", "self_attn.k_norm.weight", ("head_dim",)),
        Tensor("post_attention_norm.weight", "post_attention_layernorm.weight", ("hidden",)),
        Tensor("ffn_norm.weight", "pre_feedforward_layernorm.weight", ("hidden",)),
        Tensor("post_ffw_norm.weight", "post_feedforward_layernorm.weight", ("hidden",)),
    )

    def text_config(self, config: Config) -> Config:
        """The object text_config, if there is one, merged over the rest."""
        nested = config.values.get("text_config")
        values = dict(config.values)
        if nested is not None:
            if not isinstance(nested, dict):
                raise config.wrong("text_config", nested, "an object")
            ids = {key: value for key, value in values.items() if key.endswith("_token_id") and value is not None}
            values = NESTED_DEFAULTS | values | {k: v for k, v in nested.items() if v is not None} | ids
        return Config(values, config.path)

    def hf_name(self, name: str) -> str:
        """Without the text model's prefix: "language_model.model." in transformers 4, "model.language_model." in 5."""
        return super().hf_name(name.replace("language_model.", "", 1))

    def default_head_dim(self, hidden: int, num_heads: int) -> int:
        """256, if config.json does not set it."""
        return 256

    def has_bias(self, part: str, config: Config) -> bool:
        """Biases of attention depend on a switch."""
        return part.startswith("attn") and config.boolean("attention_bias", False)

    def check(self, config: Config) -> list[str]:
        """Refuses the bidirectional attention of embedding models."""
        if config.values.get("use_bidirectional_attention"):
            raise config.error(
                UnsupportedError, "use_bidirectional_attention", "is set, and lowbit supports only causal attention"
            )
        return super().check(config)

    def config_windows(self, config: Config) -> tuple[int, ...]:
        """sliding_window in all layers except every sixth, unless layer_types or sliding_window_pattern differ."""
        num_layers = self.sizes(config).layers
        pattern = config.integer("sliding_window_pattern", PATTERN)
        sliding = sliding_layers(config, num_layers, lambda i: (i + 1) % pattern > 0)
        window = config.integer("sliding_window") if any(sliding) else 0
        return tuple(window * is_sliding for is_sliding in sliding)

    def scaled_rope(self, config: Config) -> Config:
        """The rotary embedding of the layers with full attention."""
        return self._ropes(config)[0]

    def rope_metadata(self, config: Config) -> dict[str, Any]:
        """The usual keys for layers with full attention, a separate base for the others."""
        local = self._ropes(config)[1]
        if local.values["rope_type"] != "default":
            raise local.error(UnsupportedError, "rope_type", f"{local.values['rope_type']!r} in layers with a window")
        return {**super().rope_metadata(config), "rope.freq_base_swa": local.number("rope_theta")}

    def _ropes(self, config: Config) -> tuple[Config, Config]:
        """Rotary embeddings of the layers with full attention and of the others.

        transformers 5 has both in rope_parameters; 4 has rope_theta with an optional rope_scaling, and
        rope_local_base_freq. rope_scaling is for the layers with full attention, also with rope_parameters.
        """
        both = config.values.get("rope_parameters") or {}
        if not isinstance(both, dict) or not both.keys() <= {"full_attention", "sliding_attention"}:
            raise config.wrong("rope_parameters", both, "full_attention and sliding_attention", 60)
        ropes = []
        for kind, theta, default in (
            ("full_attention", "rope_theta", GLOBAL_THETA),
            ("sliding_attention", "rope_local_base_freq", LOCAL_THETA),
        ):
            parts = [both.get(kind) or {}]
            if kind == "full_attention":
                parts.append(config.values.get("rope_scaling") or {})
            if not all(isinstance(part, dict) for part in parts):
                raise config.error(FormatError, "rope_parameters", f"of {kind}:", expected="an object")
            rope = {key: value for part in parts for key, value in part.items()}
            values = {"rope_parameters": rope, "rope_theta": config.number(theta, default)}
            values["max_position_embeddings"] = config.integer("max_position_embeddings")
            ropes.append(Config(values, config.path, kind).rope())
        return ropes[0], ropes[1]

    def late_metadata(self, config: Config) -> dict[str, Any]:
        """The window, and the pattern of layers and scale of attention if they differ from the reference's defaults."""
        keys: dict[str, Any] = {}
        for key in SOFT_CAPS:
            if config.values.get(key):
                keys[f"gemma3.{key}"] = config.number(key)
        sizes, windows = self.sizes(config), self.config_windows(config)
        if window := max(windows):
            keys["gemma3.attention.sliding_window"] = window
            if windows != usual_windows(window, sizes.layers):
                keys["gemma3.attention.sliding_window_pattern"] = np.array(windows) > 0
        scalar = config.number("query_pre_attn_scalar", 256)
        if scalar != usual_scalar(sizes.layers, sizes.hidden, sizes.num_heads, sizes.head_dim):
            keys["gemma3.attention.scale"] = scalar**-0.5
        return keys

    def fix_up(self, tensor: TensorSource, config: Config) -> TensorSource:
        """Adds one to the norms: Hugging Face stores them minus one."""
        return PlusOne(tensor.name, tensor) if tensor.name.endswith("norm.weight") else tensor

    def restore(self, tensor: TensorSource, config: Config) -> TensorSource:
        """Subtracts one from the norms."""
        return MinusOne(tensor.name, tensor) if tensor.name.endswith("norm.weight") else tensor

    def hf_config(self, metadata: Mapping[str, Any], tensors: Mapping[str, TensorSource]) -> dict[str, Any]:
        """As in every architecture, plus the caps and scales of `late_metadata`."""
        get = Keys(metadata, self.name)
        config = super().hf_config(metadata, tensors)
        config["model_type"] = "gemma3_text"
        sizes = self.sizes(Config(config, "config.json"))
        usual = usual_scalar(sizes.layers, sizes.hidden, sizes.num_heads, sizes.head_dim)
        config["query_pre_attn_scalar"] = usual
        if f"{self.name}.attention.scale" in metadata:
            scalar = get.number("attention.scale") ** -2
            config["query_pre_attn_scalar"] = round(scalar) if abs(scalar - round(scalar)) < 1e-3 else scalar
        for key in SOFT_CAPS:
            if f"{self.name}.{key}" in metadata:
                config[key] = hf_values.decimal(get.number(key))
        return config

    def hf_windows(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """The inverse of `config_windows`; by default every sixth layer has full attention."""
        get = Keys(metadata, self.name)
        window = get.integer("attention.sliding_window", 0, minimum=0)
        if f"{self.name}.attention.sliding_window_pattern" not in metadata:
            windows = usual_windows(window, get.integer("block_count", maximum=MAX_LAYERS))
            metadata = {**metadata, f"{self.name}.attention.sliding_window_pattern": [seen > 0 for seen in windows]}
        return {"sliding_window": window or None, "layer_types": hf_values.layer_types(metadata, self.name, window)}

    def hf_rope(self, metadata: Mapping[str, Any], tensors: Mapping[str, TensorSource]) -> dict[str, Any]:
        """Both bases: rope_parameters of transformers 5, and the keys of 4."""
        rope = super().hf_rope(metadata, tensors)
        local = hf_values.decimal(Keys(metadata, self.name).number("rope.freq_base_swa", LOCAL_THETA))
        both = {
            "full_attention": rope["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        }
        return {**rope, "rope_parameters": both, "rope_local_base_freq": local}

    def embedding_scale(self, hidden: int) -> float:
        """The square root of the hidden size."""
        return math.sqrt(hidden)

    def attention_scale(self, get: Keys, head_dim: int) -> float:
        """attention.scale, or the reference's default."""
        hidden, num_heads = get.integer("embedding_length"), get.integer("attention.head_count")
        scalar = usual_scalar(get.integer("block_count"), hidden, num_heads, head_dim)
        return get.number("attention.scale", scalar**-0.5)

    def windows(self, get: Keys, num_layers: int) -> tuple[int, ...]:
        """By attention.sliding_window_pattern, or the reference's default."""
        if f"{self.name}.attention.sliding_window_pattern" in get.metadata:
            return super().windows(get, num_layers)
        return usual_windows(get.integer("attention.sliding_window", 0, minimum=0), num_layers)

    def ropes(
        self, get: Keys, tensors: Tensors, *, dim: int, windows: tuple[int, ...]
    ) -> tuple[tuple[Rope, ...], tuple[int, ...]]:
        """The usual table for layers with full attention, an unscaled one with a separate base for the others."""
        magnitude = get.number("rope.scaling.attn_factor", 1.0)  # llama.cpp applies it to all layers
        local = plain_rope(get.number("rope.freq_base_swa", LOCAL_THETA), dim, magnitude)
        return (rope_of(get, tensors, dim), local), tuple(int(window > 0) for window in windows)


def usual_windows(window: int, num_layers: int) -> tuple[int, ...]:
    """The windows of a gemma3 file without attention.sliding_window_pattern."""
    return tuple(window * ((i + 1) % PATTERN > 0) for i in range(num_layers))


def usual_scalar(num_layers: int, hidden: int, num_heads: int, head_dim: int) -> int:
    """query_pre_attn_scalar of a gemma3 file that has no attention.scale: the 27B model's, of 62 layers, is special."""
    return hidden // num_heads if num_layers == 62 else head_dim


ARCHITECTURE = Gemma3()
