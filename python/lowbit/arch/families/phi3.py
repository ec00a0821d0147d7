"""phi3: Phi 3, Phi 3.5 and Phi 4 mini, with fused projections, partly rotated heads and factors for long contexts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lowbit.arch import hf_values
from lowbit.arch.base import Architecture, refuse_wide_heads
from lowbit.arch.keys import Keys
from lowbit.arch.table import Sizes, Tensor
from lowbit.base.errors import FormatError, UnsupportedError
from lowbit.hf.config import MAX_SIZE, Config
from lowbit.tensors.source import ArraySource, TensorSource, read
from lowbit.tokenizer.rules import TokenizerRules

ATTN_FACTOR = "phi3.rope.scaling.attn_factor"
#: original_max_position_embeddings of transformers' Phi3Config.
USUAL_CONTEXT = 4096
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


class Phi3(Architecture):
    """Rotates halves of the first part of each head, as Hugging Face does, so no tensor changes.

    The rows of attn_qkv are those of queries, keys and values; the rows of ffn_up are those of gate and up. With
    longrope, frequencies are divided by one of two vectors of factors: the short ones for sequences up to
    original_max_position_embeddings, the long ones for all tokens of a longer sequence.
    """

    name = "phi3"
    hf_names = ("Phi3ForCausalLM",)
    rope_interleaved = False
    tokenizer_rules = TokenizerRules(
        byte_level_classes=("GPT2Tokenizer",), tokens_as_spelled=True
    )  # Phi 4 mini's class
    layer_tensors = (
        Tensor("attn_norm.weight", "input_layernorm.weight", ("hidden",)),
        Tensor("attn_qkv.weight", "self_attn.qkv_proj.weight", ("qkv", "hidden")),
        Tensor("attn_output.weight", "self_attn.o_proj.weight", ("hidden", "heads")),
        Tensor("ffn_norm.weight", "post_attention_layernorm.weight", ("hidden",)),
        Tensor("ffn_up.weight", "mlp.gate_up_proj.weight", ("gate_up", "hidden")),
        Tensor("ffn_down.weight", "mlp.down_proj.weight", ("hidden", "ffn")),
    )

    def check(self, config: Config) -> list[str]:
        """Refuses a head size without a key, and settings that the graph cannot express."""
        refuse_wide_heads(self.name, config, self.sizes(config))
        return super().check(config)

    def first_metadata(self, config: Config) -> dict[str, Any]:
        """The factor of cosines and sines with longrope."""
        rope = config.rope()
        kind = rope.values["rope_type"]
        if kind == "default":
            return {}
        if kind not in ("longrope", "su"):
            raise rope.error(UnsupportedError, "rope_type", repr(kind), expected="default or longrope", found=kind)
        return {ATTN_FACTOR: _magnitude(config, rope)}

    def metadata(self, config: Config) -> dict[str, Any]:
        """The keys under the architecture's name."""
        sizes = self.sizes(config)
        return {
            "phi3.context_length": sizes.context,
            "phi3.rope.scaling.original_context_length": _original_context(config),
            "phi3.embedding_length": sizes.hidden,
            "phi3.feed_forward_length": sizes.ffn,
            "phi3.block_count": sizes.layers,
            "phi3.attention.head_count": sizes.num_heads,
            "phi3.attention.head_count_kv": sizes.num_kv_heads,
            "phi3.attention.layer_norm_rms_epsilon": sizes.norm_eps,
            "phi3.rope.dimension_count": _rope_dim(config, sizes),
            "phi3.rope.freq_base": config.rope().number("rope_theta"),
        }

    def config_windows(self, config: Config) -> tuple[int, ...]:
        """sliding_window, in every layer."""
        window = 0 if config.values.get("sliding_window") is None else config.integer("sliding_window")
        return (window,) * self.sizes(config).layers

    def late_metadata(self, config: Config) -> dict[str, Any]:
        """The window, also if there is none."""
        return {"phi3.attention.sliding_window": max(self.config_windows(config))}

    def extra_tensors(self, config: Config) -> Iterable[TensorSource]:
        """Factors of longrope. The reference writes them as tensors, the long ones first."""
        rope = config.rope()
        if rope.values["rope_type"] != "default":
            half = _rope_dim(config, self.sizes(config)) // 2
            for key, name in (("long_factor", LONG), ("short_factor", SHORT)):
                yield ArraySource(name, np.array(rope.numbers(key, half), np.float32))

    def hf_config(self, metadata: Mapping[str, Any], tensors: Mapping[str, TensorSource]) -> dict[str, Any]:
        """As in every architecture, plus the first context and the rotated part of a head."""
        get = Keys(metadata, self.name)
        config = super().hf_config(metadata, tensors)
        config["original_max_position_embeddings"] = get.integer("rope.scaling.original_context_length")
        head_dim = config.pop("head_dim")
        config["partial_rotary_factor"] = get.integer("rope.dimension_count", head_dim) / head_dim
        return config

    def hf_biases(self, tensors: Mapping[str, TensorSource]) -> dict[str, bool]:
        """None."""
        return {}

    def hf_windows(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """The inverse of `config_windows`."""
        return {"sliding_window": Keys(metadata, self.name).integer("attention.sliding_window", 0, minimum=0) or None}

    def hf_rope(self, metadata: Mapping[str, Any], tensors: Mapping[str, TensorSource]) -> dict[str, Any]:
        """The factors, from their tensors."""
        rope = super().hf_rope(metadata, tensors)
        if LONG not in tensors and SHORT not in tensors:
            return rope
        scaling: dict[str, Any] = {"type": "longrope"}
        for name, factors in (("long_factor", tensors.get(LONG)), ("short_factor", tensors.get(SHORT))):
            if factors is None or len(factors.shape) != 1 or factors.shape[0] > hf_values.MAX_ROTATED:
                raise FormatError(
                    f"tensors {LONG} and {SHORT}:", tensor=LONG, expected="both, with one factor for each rotated pair"
                )
            scaling[name] = [hf_values.decimal(factor) for factor in read(factors)]
        get = Keys(metadata, self.name)
        original = get.integer("rope.scaling.original_context_length")
        usual = usual_magnitude(get.integer("context_length") / original, original)
        if not math.isclose(magnitude := get.number("rope.scaling.attn_factor", 1.0), usual, rel_tol=1e-6):
            scaling["attention_factor"] = hf_values.decimal(magnitude)
        both = {**rope["rope_parameters"], **scaling, "rope_type": "longrope"}
        return {**rope, "rope_parameters": both, "rope_scaling": scaling}


def _original_context(config: Config) -> int:
    """The context length of the first training; config.json has it in one of two places.

    transformers 5 uses the one outside rope_parameters, and 4096 if it is missing.
    """
    key = "original_max_position_embeddings"
    if config.values.get(key) is not None:
        return config.integer(key)
    rope: Any = next(
        (config.values[name] for name in ("rope_scaling", "rope_parameters") if config.values.get(name)), {}
    )
    original = Config(rope, config.path, "rope_parameters").integer(key)
    if rope.get("rope_type", rope.get("type")) not in (None, "default") and original != USUAL_CONTEXT:
        raise config.error(
            UnsupportedError,
            key,
            f"is missing next to rope_parameters, so transformers uses {USUAL_CONTEXT}; rope_parameters has {original}",
        )
    return original


def _rope_dim(config: Config, sizes: Sizes) -> int:
    """Number of rotated values of a head."""
    partial = config.rope().number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    dim = int(sizes.head_dim * min(partial, MAX_SIZE))
    if dim % 2 or not 0 < dim <= sizes.head_dim:
        raise config.error(
            FormatError,
            "partial_rotary_factor",
            f"is {partial:g}, which rotates {dim} of {sizes.head_dim} values per head",
            expected="an even number",
            found=dim,
        )
    return dim


def _magnitude(config: Config, rope: Config) -> float:
    """Factor of cosines and sines: attention_factor, or a function of `factor`, the ratio of the two contexts."""
    context, original = config.integer("max_position_embeddings"), _original_context(config)
    scale = rope.number("factor", context / original)
    return rope.number("attention_factor", usual_magnitude(scale, original))


def usual_magnitude(scale: float, original: int) -> float:
    """Factor of cosines and sines if config.json does not set it."""
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1.0 and original > 1 else 1.0


ARCHITECTURE = Phi3()
