"""config.json of what GGUF metadata says: the way back that `lowbit export hf` takes.

GGUF keeps numbers as float32; here they become the shortest decimals that round to the same float32, which is how
their makers wrote them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lowbit.arch.keys import Keys
from lowbit.arch.rope_keys import ROPE_FREQS, YARN_KEYS, llama3_factors
from lowbit.base.errors import FormatError, UnsupportedError
from lowbit.hf.config import MOST_FLOAT32, Config
from lowbit.tensors.source import Renamed, TensorSource, read
from lowbit.tokenizer.special import checked_special, id_key

if TYPE_CHECKING:
    from lowbit.arch.base import Sizes, Tensor

#: The most layers of a network.
MAX_LAYERS = 4096
#: The most pairs of dimensions that a head rotates.
MAX_ROTATED = 1 << 16


class WayBack:
    """What an Architecture knows of a GGUF file's way back into a checkpoint."""

    if TYPE_CHECKING:
        name: ClassVar[str]
        hf_names: ClassVar[tuple[str, ...]]
        hidden_act: ClassVar[str]
        activation_key: ClassVar[str]

        def sizes(self, config: Config) -> Sizes: ...  # noqa: D102
        def extra_tensors(self, config: Config) -> Iterable[TensorSource]: ...  # noqa: D102
        def table(self, num_layers: int) -> dict[str, tuple[Tensor, str]]: ...  # noqa: D102

    def hf_config(self, metadata: Mapping[str, Any], tensors: Mapping[str, TensorSource]) -> dict[str, Any]:
        """config.json of a GGUF file: the way back from `metadata`. tensors: the file's, by GGUF name."""
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
        """Which layers attend to a window of which length: the way back from `config_windows`. Here none has one."""
        return {}

    def hf_rope(self, metadata: Mapping[str, Any], tensors: Mapping[str, TensorSource]) -> dict[str, Any]:
        """The rotary embedding's settings in config.json: the way back from `rope_metadata`."""
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
        """A tensor of a GGUF file as the checkpoint has it: the way back from `fix_up`, and still its GGUF name."""
        return tensor

    def hf_format(self, tensor: TensorSource, dtype: str) -> str:
        """The type that a tensor of `hf_tensors` has in a checkpoint of that dtype, as safetensors calls it."""
        return dtype

    def hf_tensors(self, tensors: Mapping[str, TensorSource], config: Config) -> list[TensorSource]:
        """The tensors of a GGUF file as a checkpoint with that config.json has them, ordered by name.

        Raises FormatError for tensors that are missing or have another shape, UnsupportedError for those that the
        checkpoint has no place for.
        """
        sizes = self.sizes(config)
        if sizes.layers > len(tensors):
            raise FormatError(
                f"{self.name}.block_count is {sizes.layers}, but there are only {len(tensors)} tensors",
                key=f"{self.name}.block_count",
            )
        computed = {tensor.name: tensor for tensor in self.extra_tensors(config)}
        places = {gguf: (entry, name) for name, (entry, gguf) in self.table(sizes.layers).items()}
        if missing := sorted(gguf for gguf, (entry, _) in places.items() if entry.required and gguf not in tensors):
            raise FormatError(f"{len(missing)} tensors are missing: {', '.join(missing[:4])}", tensor=missing[0])
        found: list[TensorSource] = []
        for gguf_name, source in tensors.items():
            if gguf_name in computed and same(computed[gguf_name], source):
                continue
            if gguf_name not in places:
                raise UnsupportedError(
                    f"tensor {gguf_name}: a {config.text('model_type')} checkpoint cannot hold it", tensor=gguf_name
                )
            entry, name = places[gguf_name]
            shape = tuple(sizes.named[size] for size in entry.shape)
            if source.shape != shape:
                raise FormatError(
                    f"tensor {gguf_name} has shape {list(source.shape)}, the metadata asks for {list(shape)}",
                    tensor=gguf_name,
                )
            found.append(Renamed(name, self.restore(source, config)))
        return sorted(found, key=lambda tensor: tensor.name)


def decimal(value: Any) -> float:
    """A float32 as the shortest decimal that rounds to it. Raises FormatError for what JSON has no number for."""
    if not abs(value) <= MOST_FLOAT32:
        raise FormatError(expected="a finite number", found=value)
    return float(str(np.float32(value)))


def has_biases(tensors: Mapping[str, TensorSource], parts: tuple[str, ...]) -> bool:
    """Whether the layers have these biases, all of them or none, as one switch in config.json has it."""
    names = [f"blk.0.{part}.bias" for part in parts]
    there = [name for name in names if name in tensors]
    if there and len(there) != len(names):
        missing = next(name for name in names if name not in tensors)
        raise UnsupportedError(
            f"tensor {there[0]} is there and {missing} is not, which config.json cannot say", tensor=there[0]
        )
    return bool(there)


def token_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    """bos_token_id, eos_token_id and pad_token_id, as far as the file names them and tokens have them."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    count = len(tokens) if isinstance(tokens, list) else 0
    found: dict[str, int] = {}
    for role in ("bos", "eos", "pad"):
        if (value := metadata.get(id_key(role))) is not None:
            token_id = checked_special(id_key(role), value, count)
            found |= {} if token_id is None else {f"{role}_token_id": token_id}
    return found


def llama3_parameters(factors: TensorSource, theta: float) -> dict[str, Any]:
    """The settings that make the factors of rope_freqs.weight, float32 (head_dim / 2,).

    Only the ratio of low_freq_factor, high_freq_factor and the original context shows in the factors. Every model so
    far has 1, 4 and a power of two, so those are tried. Raises UnsupportedError if none gives the same bits.
    """
    if len(factors.shape) != 1 or not 0 < factors.shape[0] <= MAX_ROTATED or factors.dtype != np.float32:
        raise FormatError(
            f"tensor {factors.name}: {factors.dtype} {list(factors.shape)}",
            tensor=factors.name,
            expected="a factor a pair",
        )
    wanted = read(factors)
    factor = decimal(wanted.max())
    for exponent in range(4, 25):
        settings = (factor, 1.0, 4.0, float(1 << exponent))
        if np.array_equal(llama3_factors(2 * len(wanted), theta, *settings), wanted):
            names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
            return {"rope_type": "llama3", **dict(zip(names, settings, strict=True)), names[-1]: 1 << exponent}
    raise UnsupportedError(
        f"tensor {factors.name} is no scaling of Llama 3 that config.json could say", tensor=factors.name
    )


def layer_types(metadata: Mapping[str, Any], arch: str, window: int) -> list[str]:
    """layer_types in config.json: attention.sliding_window_pattern, or a window in every layer if there is one."""
    get = Keys(metadata, arch)
    num_layers = get.integer("block_count", maximum=MAX_LAYERS)
    key = "attention.sliding_window_pattern"
    pattern = metadata.get(f"{arch}.{key}")
    if pattern is None:
        pattern = [window > 0] * num_layers
    elif isinstance(pattern, (int, np.integer)):  # every layer but each n-th; 0: every layer
        period = get.integer(key, minimum=0)
        pattern = [period == 0 or (i + 1) % period > 0 for i in range(num_layers)]
    if not isinstance(pattern, (list, np.ndarray)) or len(pattern) != num_layers:
        name = f"{arch}.{key}"
        raise FormatError(f"{name}:", key=name, expected=f"a value for each of {num_layers} layers")
    return ["sliding_attention" if has_window else "full_attention" for has_window in pattern]


def rope_parameters(rope: dict[str, Any], theta: float) -> dict[str, Any]:
    """The rotary embedding in both forms: transformers 5 reads rope_parameters, 4 the other two.

    A reader that knows one form only would take its default in silence otherwise.
    """
    scaling = None if rope["rope_type"] == "default" else rope
    return {"rope_parameters": {**rope, "rope_theta": theta}, "rope_theta": theta, "rope_scaling": scaling}


def same(a: TensorSource, b: TensorSource) -> bool:
    """Whether two small tensors are equal, bit for bit."""
    return a.shape == b.shape and read(a).tobytes() == read(b).tobytes()
