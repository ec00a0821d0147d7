"""Shared by all architectures: shapes, tensors, metadata and spec of a dense decoder, and the config.json of a file.

An architecture's file has the names of its Hugging Face classes and its differences. Tensors have the order of the
checkpoint (file, then name), extra ones first, as the reference converter writes them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from lowbit.arch.hf_values import decimal, has_biases, layer_types, llama3_parameters, rope_parameters, token_ids
from lowbit.arch.keys import Keys
from lowbit.arch.model_spec import ModelSpec, Rope
from lowbit.arch.pooling import pooling_config
from lowbit.arch.rope import Tensors, original_context, rope_of
from lowbit.arch.rope_keys import ROPE_FREQS, YARN_KEYS, rope_metadata, rope_tensors
from lowbit.arch.table import CONFIG_KEYS, DENSE_GLOBAL, DENSE_LAYER, MAX_LAYERS, Sizes, Tensor, layer_of
from lowbit.base.errors import FormatError, UnsupportedError
from lowbit.gguf.reading import strings
from lowbit.hf.checkpoint import Checkpoint
from lowbit.hf.config import Config
from lowbit.tensors.source import AsFloat32, Renamed, TensorSource
from lowbit.tokenizer.rules import TokenizerRules

#: Buffers in old checkpoints that no program reads.
IGNORED_SUFFIXES = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")
#: The core's limit, far above any model. It is checked here because rotary tables are built before the core checks.
MAX_HEAD_DIM = 4096


#: Counts in GGUF files of features that lowbit lacks.
UNSUPPORTED_COUNTS = {
    "expert_count": "mixtures of experts",
    "nextn_predict_layers": "layers that predict several tokens",
}


class Architecture:
    """One GGUF architecture. Subclasses set the class attributes and override the differences."""

    name: ClassVar[str]  #: in GGUF: general.architecture and the prefix of its keys
    hf_names: ClassVar[tuple[str, ...]]  #: "architectures" in config.json
    rope_interleaved: ClassVar[bool]
    hidden_act: ClassVar[str] = "silu"  #: the activation in config.json that the graph has
    activation_key: ClassVar[str] = "hidden_act"  #: its key in config.json
    engine_reads_rope_freqs: ClassVar[bool] = False  #: whether llama.cpp's graph has rope_freqs.weight
    tied_by_default: ClassVar[bool] = False  #: tie_word_embeddings if config.json does not set it
    left_out: ClassVar[tuple[str, ...]] = ()  #: prefixes of checkpoint tensors outside the text model
    #: values of quantization_config.quant_method whose stored tensors it reads itself
    quant_methods: ClassVar[tuple[str, ...]] = ()
    #: formats that keep the layers' matrices exactly, if only some formats do
    exact_formats: ClassVar[tuple[str, ...]] = ()
    keeps_pooling: ClassVar[bool] = False  #: the reference writes ARCH.pooling_type
    int8_activations: ClassVar[bool] = False  #: inputs of the layers' matrices are rounded to 8 bits
    tokenizer_rules: ClassVar[TokenizerRules] = TokenizerRules()
    global_tensors: ClassVar[tuple[Tensor, ...]] = DENSE_GLOBAL
    layer_tensors: ClassVar[tuple[Tensor, ...]] = DENSE_LAYER

    def text_config(self, config: Config) -> Config:
        """config.json for the methods below: one flat object with the text model's keys."""
        return config

    def hf_name(self, name: str) -> str:
        """A checkpoint tensor's name as in the tables: base models omit the prefix."""
        return name if name.startswith(("model.", "lm_head.")) else f"model.{name}"

    def default_head_dim(self, hidden: int, num_heads: int) -> int:
        """Size of a head if config.json does not set it."""
        return hidden // num_heads

    def sizes(self, config: Config) -> Sizes:
        """Reads and checks the sizes."""
        hidden = config.integer("hidden_size")
        num_heads = config.integer("num_attention_heads")
        num_kv_heads = config.integer("num_key_value_heads", num_heads)
        if num_heads % num_kv_heads:
            raise config.error(
                FormatError,
                "num_attention_heads",
                f"is {num_heads}",
                expected=f"a multiple of num_key_value_heads {num_kv_heads}",
                found=num_heads,
            )
        head_dim = config.integer("head_dim", self.default_head_dim(hidden, num_heads))
        if head_dim % 2:
            raise config.wrong("head_dim", head_dim, "an even number")
        return Sizes(
            layers=config.integer("num_hidden_layers"),
            context=config.integer("max_position_embeddings"),
            hidden=hidden,
            ffn=config.integer("intermediate_size"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab=config.integer("vocab_size"),
            norm_eps=config.number("rms_norm_eps"),
        )

    def check(self, config: Config) -> list[str]:
        """Raises UnsupportedError for settings that the architecture's graph cannot express. Returns notes on settings
        that GGUF cannot represent."""
        key = self.activation_key
        if (activation := config.text(key, self.hidden_act)) != self.hidden_act:
            raise config.error(
                UnsupportedError,
                key,
                f"is {activation!r}",
                expected=f"{self.hidden_act} in the {self.name} architecture",
                found=activation,
            )
        if not config.boolean("is_causal", True):
            raise config.error(UnsupportedError, "is_causal", "is false, and lowbit supports only causal attention")
        if config.values.get("per_layer_config"):
            raise config.error(
                UnsupportedError, "per_layer_config", "is set, and all layers of a GGUF file have the same settings"
            )
        if config.values.get("layer_types") is not None:
            sliding = sliding_layers(config, self.sizes(config).layers, lambda i: False)
            windows = self.config_windows(config)
            if sliding != [window > 0 for window in windows]:
                raise config.error(
                    UnsupportedError,
                    "layer_types",
                    f"has {sliding.count(True)} layers of sliding_attention, but other settings of {config.hf_class} "
                    f"give a window to {len(windows) - windows.count(0)} layers",
                )
        if self.scaled_rope(config).values["rope_type"] == "llama3" and not self.engine_reads_rope_freqs:
            return [f"rope_type llama3 becomes the tensor {ROPE_FREQS}, with which llama.cpp refuses {self.name} files"]
        return []

    def has_bias(self, part: str, config: Config) -> bool:
        """Whether transformers reads a bias of that part (attn_q, ffn_up, ...) with this config.json."""
        return True

    def config_windows(self, config: Config) -> tuple[int, ...]:
        """The attention window of each layer in positions (0: unlimited), as transformers reads config.json."""
        return (0,) * self.sizes(config).layers

    def first_metadata(self, config: Config) -> dict[str, Any]:
        """Keys that the reference writes before all but general.architecture."""
        return {}

    def metadata(self, config: Config) -> dict[str, Any]:
        """The keys under the architecture's name, in the reference's order."""
        sizes = self.sizes(config)
        result: dict[str, Any] = {
            "block_count": sizes.layers,
            "context_length": sizes.context,
            "embedding_length": sizes.hidden,
            "feed_forward_length": sizes.ffn,
            "attention.head_count": sizes.num_heads,
            "attention.head_count_kv": sizes.num_kv_heads,
            **self.rope_metadata(config),
            "attention.layer_norm_rms_epsilon": sizes.norm_eps,
            "attention.key_length": sizes.head_dim,
            "attention.value_length": sizes.head_dim,
        }
        return {f"{self.name}.{key}": value for key, value in result.items()}

    def scaled_rope(self, config: Config) -> Config:
        """The rotary embedding that the keys rope.scaling.* and rope_freqs.weight scale."""
        return config.rope()

    def rope_metadata(self, config: Config) -> dict[str, Any]:
        """Keys of the rotary embedding, without the architecture's name."""
        return rope_metadata(self.scaled_rope(config), self.sizes(config).context)

    def late_metadata(self, config: Config) -> dict[str, Any]:
        """Keys that the reference writes after general.file_type, then keys of windows, which it does not write."""
        return window_metadata(self.name, self.config_windows(config))

    def extra_tensors(self, config: Config) -> Iterable[TensorSource]:
        """Tensors computed from config.json. They come first in the file."""
        return rope_tensors(self.scaled_rope(config), self.sizes(config).head_dim)

    def fix_up(self, tensor: TensorSource, config: Config) -> TensorSource:
        """A tensor under its GGUF name, with GGUF's values. Called before norms and biases become float32."""
        return tensor

    def is_tied(self, config: Config) -> bool:
        """Whether config.json ties output and embeddings."""
        return config.boolean("tie_word_embeddings", self.tied_by_default)

    def tensors(self, checkpoint: Checkpoint, config: Config) -> list[TensorSource]:
        """Every tensor of the file, checked against config.json, in file order."""
        sizes = self.sizes(config)
        if sizes.layers > len(checkpoint.tensors):
            raise FormatError(
                f"num_hidden_layers is {sizes.layers}, but there are only {len(checkpoint.tensors)} tensors",
                path=config.path,
            )
        table = self.table(sizes.layers)
        tied = self.is_tied(config)
        names = {
            self.hf_name(name): name
            for name in checkpoint.tensors
            if not name.endswith(IGNORED_SUFFIXES) and not name.startswith(self.left_out)
        }
        if tied and "model.embed_tokens.weight" not in names and "lm_head.weight" in names:
            names["model.embed_tokens.weight"] = names.pop("lm_head.weight")
        found: dict[str, TensorSource] = {}
        for name, stored_name in sorted(names.items(), key=lambda item: _position(checkpoint, item[1])):
            if name not in table:
                raise self._foreign(stored_name, name, config, sizes.layers)
            entry, gguf_name = table[name]
            stored = checkpoint.tensors[stored_name]
            shape = tuple(sizes.named[size] for size in entry.shape)
            if stored.shape != shape:
                keys = ", ".join(dict.fromkeys(CONFIG_KEYS[size] for size in entry.shape if size in CONFIG_KEYS))
                raise stored.error(
                    FormatError,
                    f" has shape {list(stored.shape)}",
                    expected=f"{list(shape)} from config.json ({keys})",
                    found=list(stored.shape),
                )
            if entry.gguf.endswith(".bias") and not self.has_bias(entry.gguf.removesuffix(".bias"), config):
                raise UnsupportedError(
                    f"attention_bias or mlp_bias is not set, so transformers ignores tensor {stored_name!r}",
                    path=config.path,
                    tensor=stored_name,
                )
            source = self.fix_up(Renamed(gguf_name, stored), config)
            found[gguf_name] = AsFloat32(gguf_name, source) if stays_float32(source) else source
        headless = tied or config.hf_class.endswith("Model") or pooling_config(checkpoint.folder) is not None
        required = {gguf for entry, gguf in table.values() if entry.required} | (
            set() if headless else {"output.weight"}
        )
        if missing := sorted(required - found.keys()):
            hf_names = {gguf: name for name, (_, gguf) in table.items()}
            listed = ", ".join(hf_names[name] for name in missing[:4])
            layers = {layer_of(name) for name in found} - {-1}
            if layers and max(layers) + 1 < sizes.layers and all(layer_of(name) > max(layers) for name in missing):
                listed += f"; num_hidden_layers is {sizes.layers}, but the tensors have {max(layers) + 1} layers"
            raise FormatError(
                f"{len(missing)} tensors are missing: {listed}", path=checkpoint.folder, tensor=hf_names[missing[0]]
            )
        return [*self.extra_tensors(config), *found.values()]

    def _foreign(self, stored_name: str, name: str, config: Config, num_layers: int) -> FormatError:
        """The error for a tensor outside the table."""
        match = re.fullmatch(r"model\.layers\.(\d{1,6})\.(.+)", name)
        if match and int(match[1]) >= num_layers and any(tensor.hf == match[2] for tensor in self.layer_tensors):
            return FormatError(
                f"num_hidden_layers is {num_layers}, but there are tensors of more layers: {stored_name!r}; use the "
                "config.json of these weights",
                path=config.path,
                key="num_hidden_layers",
                tensor=stored_name,
            )
        return FormatError(f"tensor {stored_name!r} is not part of the {self.name} architecture", tensor=stored_name)

    def table(self, num_layers: int) -> dict[str, tuple[Tensor, str]]:
        """Hugging Face name -> (entry, GGUF name), for every layer."""
        table = {tensor.hf: (tensor, tensor.gguf) for tensor in self.global_tensors}
        for i in range(num_layers):
            for tensor in self.layer_tensors:
                table[f"model.layers.{i}.{tensor.hf}"] = (tensor, f"blk.{i}.{tensor.gguf}")
        return table

    def hf_config(self, metadata: Mapping[str, Any], tensors: Mapping[str, TensorSource]) -> dict[str, Any]:
        """config.json of a GGUF file: the inverse of `metadata`. tensors: of the file, by GGUF name."""
        get = Keys(metadata, self.name)
        hidden, num_heads = get.integer("embedding_length"), get.integer("attention.head_count")
        head_dim = get.integer("attention.key_length", hidden // num_heads)
        embeddings = tensors.get("token_embd.weight")
        if embeddings is None:
            raise FormatError("tensor token_embd.weight is missing", tensor="token_embd.weight")
        return {
            "architectures": [self.hf_names[0]],
            "model_type": self.name,
            "vocab_size": embeddings.shape[0],
            "hidden_size": hidden,
            "intermediate_size": get.integer("feed_forward_length"),
            "num_hidden_layers": get.integer("block_count"),
            "num_attention_heads": num_heads,
            "num_key_value_heads": get.integer("attention.head_count_kv", num_heads),
            "head_dim": head_dim,
            self.activation_key: self.hidden_act,
            "max_position_embeddings": get.integer("context_length"),
            "rms_norm_eps": decimal(get.number("attention.layer_norm_rms_epsilon")),
            **self.hf_rope(metadata, tensors),
            **self.hf_windows(metadata),
            **self.hf_biases(tensors),
            "tie_word_embeddings": "output.weight" not in tensors,
            **token_ids(metadata),
        }

    def hf_biases(self, tensors: Mapping[str, TensorSource]) -> dict[str, bool]:
        """Which linear maps have biases."""
        return {
            "attention_bias": has_biases(tensors, ("attn_q", "attn_k", "attn_v", "attn_output")),
            "mlp_bias": has_biases(tensors, ("ffn_gate", "ffn_up", "ffn_down")),
        }

    def hf_windows(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """The attention window of each layer: the inverse of `config_windows`. By default there is none."""
        return {}

    def hf_rope(self, metadata: Mapping[str, Any], tensors: Mapping[str, TensorSource]) -> dict[str, Any]:
        """The rotary embedding's settings in config.json: the inverse of `rope_metadata`."""
        get = Keys(metadata, self.name)
        rope: dict[str, Any] = {"rope_type": get.text("rope.scaling.type", "none")}
        theta = decimal(get.number("rope.freq_base", 10000.0))
        if rope["rope_type"] == "none":
            rope["rope_type"] = "default"
        else:
            rope["factor"] = decimal(get.number("rope.scaling.factor"))
        if rope["rope_type"] == "yarn":
            rope["original_max_position_embeddings"] = get.integer("rope.scaling.original_context_length")
            for key, gguf_key in YARN_KEYS:
                if f"{self.name}.rope.scaling.{gguf_key}" in metadata:
                    rope[key] = decimal(get.number(f"rope.scaling.{gguf_key}"))
        factors = tensors.get(ROPE_FREQS)
        return rope_parameters(rope if factors is None else llama3_parameters(factors, theta), theta)

    def restore(self, tensor: TensorSource, config: Config) -> TensorSource:
        """A tensor of a GGUF file with the checkpoint's values, still under its GGUF name: the inverse of `fix_up`."""
        return tensor

    def hf_format(self, tensor: TensorSource, dtype: str) -> str:
        """The safetensors type of a tensor of `hf_tensors` in a checkpoint of this dtype."""
        return dtype

    def activation(self, get: Keys) -> str:
        """The gate's activation, as named in ModelSpec."""
        return {"gelu_pytorch_tanh": "gelu_tanh"}.get(self.hidden_act, self.hidden_act)

    def embedding_scale(self, hidden: int) -> float:
        """Factor of the embeddings."""
        return 1.0

    def attention_scale(self, get: Keys, head_dim: int) -> float:
        """Factor of the products of queries and keys."""
        return get.number("attention.scale", 1.0 / math.sqrt(head_dim))

    def windows(self, get: Keys, num_layers: int) -> tuple[int, ...]:
        """The attention window of each layer in tokens, including the token itself; 0: unlimited. By default
        attention.sliding_window, for all layers or those in attention.sliding_window_pattern."""
        window = get.integer("attention.sliding_window", 0, minimum=0)
        kinds = layer_types(get.metadata, get.arch, window)
        return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)

    def ropes(
        self, get: Keys, tensors: Tensors, *, dim: int, windows: tuple[int, ...]
    ) -> tuple[tuple[Rope, ...], tuple[int, ...]]:
        """The tables of the rotary embedding, and each layer's index into them. By default one table for all layers."""
        return (rope_of(get, tensors, dim),), (0,) * len(windows)

    def spec(self, metadata: Mapping[str, Any], tensors: Tensors) -> ModelSpec:
        """The network of a GGUF file. `tensors`: at least the one-dimensional ones, by GGUF name.

        Defaults are those of GGUF: head_count_kv is head_count, key_length is embedding_length / head_count,
        rope.dimension_count is key_length, rope.freq_base is 10000, the vocabulary has the length of
        tokenizer.ggml.tokens.
        """
        get = Keys(metadata, self.name)
        hidden, num_heads = get.integer("embedding_length"), get.integer("attention.head_count")
        head_dim = get.integer("attention.key_length", hidden // num_heads, maximum=MAX_HEAD_DIM)
        for key in ("value_length", "key_length_swa", "value_length_swa"):
            if get.integer(f"attention.{key}", head_dim) != head_dim:
                raise get.error(UnsupportedError, f"attention.{key}", f"differs from key_length {head_dim}")
        for key, what in UNSUPPORTED_COUNTS.items():
            if get.integer(key, 0, minimum=0):
                raise get.error(UnsupportedError, key, f"is set, and lowbit does not run {what} yet")
        if not get.boolean("attention.causal", True):
            raise get.error(UnsupportedError, "attention.causal", "is false, and lowbit supports only causal attention")
        num_layers = get.integer("block_count", maximum=MAX_LAYERS)
        rope_dim = get.integer("rope.dimension_count", head_dim, maximum=head_dim)
        if get.integer("rope.dimension_count_swa", rope_dim) != rope_dim:
            raise get.error(
                UnsupportedError, "rope.dimension_count_swa", f"differs from rope.dimension_count {rope_dim}"
            )
        windows = self.windows(get, num_layers)
        ropes, layer_ropes = self.ropes(get, tensors, dim=rope_dim, windows=windows)
        tokens = strings(metadata, "tokenizer.ggml.tokens")
        return ModelSpec(
            architecture=self.name,
            vocab_size=get.integer("vocab_size", None if tokens is None else len(tokens)),
            context_length=get.integer("context_length"),
            hidden_size=hidden,
            intermediate_size=get.integer("feed_forward_length"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=get.integer("attention.head_count_kv", num_heads),
            head_dim=head_dim,
            norm_eps=get.number("attention.layer_norm_rms_epsilon"),
            attention_scale=self.attention_scale(get, head_dim),
            windows=windows,
            rope_dim=rope_dim,
            rope_interleaved=self.rope_interleaved,
            ropes=ropes,
            layer_ropes=layer_ropes,
            original_context=original_context(get, ropes),
            activation=self.activation(get),
            embedding_scale=self.embedding_scale(hidden),
            attention_softcap=get.number("attn_logit_softcapping", 0.0, minimum=0.0),
            logit_softcap=get.number("final_logit_softcapping", 0.0, minimum=0.0),
            int8_activations=self.int8_activations,
        )


def refuse_wide_heads(arch: str, config: Config, sizes: Sizes) -> None:
    """Raises UnsupportedError if the heads together are not as wide as the hidden state."""
    if sizes.num_heads * sizes.head_dim != sizes.hidden:
        raise config.error(
            UnsupportedError,
            "head_dim",
            f"is {sizes.head_dim}",
            expected=f"hidden_size / num_attention_heads = {sizes.hidden / sizes.num_heads:g} in {arch}",
            found=sizes.head_dim,
        )


def sliding_layers(config: Config, num_layers: int, default: Callable[[int], bool]) -> list[bool]:
    """Which layers have a window: layer_types in config.json, or `default` of a layer's index."""
    types = config.values.get("layer_types")
    if types is None:
        return [default(i) for i in range(num_layers)]
    known = ("sliding_attention", "full_attention")
    if not isinstance(types, list) or len(types) != num_layers or any(kind not in known for kind in types):
        raise config.wrong("layer_types", types, f"{' or '.join(known)} for each layer", 60)
    return [kind == "sliding_attention" for kind in types]


def window_metadata(arch: str, windows: tuple[int, ...]) -> dict[str, Any]:
    """attention.sliding_window, and attention.sliding_window_pattern (True: the layer has a window) unless all have
    one."""
    if not any(windows):
        return {}
    keys: dict[str, Any] = {f"{arch}.attention.sliding_window": max(windows)}
    if not all(windows):
        keys[f"{arch}.attention.sliding_window_pattern"] = np.array(windows) > 0
    return keys


def stays_float32(tensor: TensorSource) -> bool:
    """Whether GGUF stores the tensor as float32: norms, biases and all tensors of one axis."""
    return len(tensor.shape) <= 1 or tensor.name.endswith("_norm.weight")


def _position(checkpoint: Checkpoint, name: str) -> tuple[str, str]:
    return checkpoint.tensors[name].shard, name
