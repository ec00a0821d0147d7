"""Checkpoints with the shapes of released models and random weights, written in seconds and without torch.

`checkpoint.py MODEL DIR` writes the folder that `lowbit convert` takes: config.json as released, a byte-level
tokenizer of the released size, and bfloat16 shards. What a conversion costs depends on shapes and types, not on
what the weights mean; a block of random numbers repeats, so that a disk is what writing waits for.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lowbit.arch import hf_classes
from lowbit.hf.config import Config

SHARD_BYTES = 2 << 30
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.0 + 0.5 * i for i in range(48)]}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}

QWEN = {"max_position_embeddings": 40960, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "vocab_size": 151936}
PHI = {
    "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "sliding_window": 262144,
    "rms_norm_eps": 1e-5, "rope_theta": 1e4, "rope_scaling": LONGROPE,
}  # fmt: skip
GEMMA = {
    "max_position_embeddings": 32768, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256, "sliding_window_pattern": 6, "hidden_activation": "gelu_pytorch_tanh",
    "model_type": "gemma3_text",
}  # fmt: skip

#: name -> class, (hidden, feed-forward, layers, heads, key-value heads, head size), whether tied, what else differs.
MODELS: dict[str, tuple[str, tuple[int, int, int, int, int, int], bool, dict[str, Any]]] = {
    "SmolLM2-135M": (
        "LlamaForCausalLM", (576, 1536, 30, 9, 3, 64), True,
        {"vocab_size": 49152, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 1e5},
    ),
    "TinyLlama-1.1B": (
        "LlamaForCausalLM", (2048, 5632, 22, 32, 4, 64), False,
        {"vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 1e4},
    ),
    "Llama-3.2-3B": (
        "LlamaForCausalLM", (3072, 8192, 28, 24, 8, 128), True,
        {"vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
         "rope_scaling": {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 8192}},
    ),
    "Mistral-7B": (
        "MistralForCausalLM", (4096, 14336, 32, 32, 8, 128), False,
        {"vocab_size": 32000, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 1e4},
    ),
    "Qwen2.5-1.5B": ("Qwen2ForCausalLM", (1536, 8960, 28, 12, 2, 128), True, QWEN),
    "Qwen3-0.6B": ("Qwen3ForCausalLM", (1024, 3072, 28, 16, 8, 128), True, QWEN),
    "Qwen3-4B": ("Qwen3ForCausalLM", (2560, 9728, 36, 32, 8, 128), True, QWEN),
    "gemma-3-1b": (
        "Gemma3ForCausalLM", (1152, 6912, 26, 4, 1, 256), True, {**GEMMA, "vocab_size": 262144, "sliding_window": 512},
    ),
    "gemma-3-4b": (
        "Gemma3ForCausalLM", (2560, 10240, 34, 8, 4, 256), True,
        {**GEMMA, "vocab_size": 262208, "sliding_window": 1024, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
    "Phi-3.5-mini": ("Phi3ForCausalLM", (3072, 8192, 32, 32, 32, 96), False, {**PHI, "vocab_size": 32064}),
    "Phi-4-mini": (
        "Phi3ForCausalLM", (3072, 8192, 32, 24, 8, 128), True,
        {**PHI, "vocab_size": 200064, "partial_rotary_factor": 0.75},
    ),
    "bitnet-b1.58-2B-4T": (
        "BitNetForCausalLM", (2560, 6912, 30, 20, 5, 128), True,
        {"vocab_size": 128256, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
         "hidden_act": "relu2",
         "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear",
                                 "quantization_mode": "offline"}},
    ),
}  # fmt: skip


def config(model: str) -> dict[str, Any]:
    """config.json of a model."""
    name, sizes, tied, others = MODELS[model]
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return {
        "architectures": [name],
        "model_type": name.removesuffix("ForCausalLM").lower(),
        **dict(zip((*keys, "head_dim"), sizes, strict=True)),
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 1,
        **others,
    }


def tokenizer(num_tokens: int) -> dict[str, Any]:
    """A byte-level tokenizer.json: the bytes, then pairs, then longer ones, each with its merge."""
    from lowbit.tokenizer.byte_level import BYTES
    from lowbit.tokenizer.naming import QWEN2

    alphabet = sorted(BYTES)
    words = itertools.chain.from_iterable(itertools.product(alphabet, repeat=length) for length in (2, 3))
    pieces = list(itertools.islice(words, num_tokens - 2 - len(alphabet)))
    tokens = [*alphabet, *map("".join, pieces)]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    splits = [
        {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": text, **special} for i, text in enumerate(["<bos>", "<eos>"])],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splits},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {"<bos>": 0, "<eos>": 1, **{token: i + 2 for i, token in enumerate(tokens)}},
            "merges": [["".join(piece[:-1]), piece[-1]] for piece in pieces],
        },
    }


def tensors(model: str) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, type and shape of each tensor."""
    values = config(model)
    arch = hf_classes()[values["architectures"][0]]
    parsed = Config(values, model)
    sizes = arch.sizes(parsed)
    for name, (entry, gguf_name) in arch.table(sizes.layers).items():
        if name.endswith("_scale"):
            continue  # beside its matrix, below
        wanted = entry.required or (gguf_name == "output.weight" and not values["tie_word_embeddings"])
        if wanted or (arch.name == "qwen2" and gguf_name.endswith(("attn_q.bias", "attn_k.bias", "attn_v.bias"))):
            shape = tuple(sizes.named[size] for size in entry.shape)
            if arch.name == "bitnet" and name.endswith("_proj.weight"):  # four ternary weights to a byte
                yield name, "U8", (shape[0] // 4, *shape[1:])
                yield f"{name}_scale", "BF16", (1,)
            else:
                yield name, "BF16", shape


def write(model: str, folder: Path, seed: int = 0) -> None:
    """Writes the checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(model), indent=1))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(config(model)["vocab_size"])))
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names, indent=1))
    shards: list[list[tuple[str, str, tuple[int, ...]]]] = [[]]
    size = 0
    for tensor in tensors(model):
        if size > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += num_bytes(tensor)
    random = np.random.default_rng(seed)
    blocks = {
        "BF16": (0.02 * random.standard_normal(16 << 20, np.float32)).astype(ml_dtypes.bfloat16).view(np.uint8),
        # Ternary weights plus one, two bits each.
        "U8": (random.integers(0, 3, (4, 16 << 20), np.uint8) << np.uint8([[0], [2], [4], [6]])).sum(0, dtype=np.uint8),
    }
    blocks["BF16"][:2] = np.ones(1, ml_dtypes.bfloat16).view(np.uint8)  # the whole of each weight_scale
    weight_map = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        write_shard(folder / file, shard, blocks)
        weight_map.update(dict.fromkeys((name for name, _, _ in shard), file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def num_bytes(tensor: tuple[str, str, tuple[int, ...]]) -> int:
    _, dtype, shape = tensor
    return math.prod(shape) * {"BF16": 2, "U8": 1}[dtype]


def write_shard(path: Path, shard: list[tuple[str, str, tuple[int, ...]]], blocks: dict[str, np.ndarray]) -> None:
    header, at = {}, 0
    for tensor in shard:
        name, dtype, shape = tensor
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + num_bytes(tensor)]}
        at += num_bytes(tensor)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in shard:
            left, block = num_bytes(tensor), blocks[tensor[1]]
            while left:
                left -= file.write(memoryview(block)[: min(left, block.size)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS, metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("folder", type=Path, metavar="DIR", help="written, made if it is not there")
    options = parser.parse_args()
    write(options.model, options.folder)


if __name__ == "__main__":
    main()
