"""Hugging Face checkpoints of a few hundred thousand random weights, written without torch.

The weights come from NumPy's RandomState, whose streams never change, so that stored results stay valid.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import lowbit
from lowbit.conversion.open import OpenedCheckpoint, Origin, open_checkpoint
from lowbit.tokenizer.byte_level import BYTES
from lowbit.tokenizer.naming import GPT4O, LLAMA3, QWEN2

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
FLOAT8 = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
WORDS = ["th", "the", "Ġt", "Ġthe", "an", "and", "Ġa", "Ġand", "in", "ing", "er", "Ġs", "re", "on", "Ġw", "ou"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
#: How fast Phi 3's factors grow.
LONGROPE_STEPS = {"short": 0.01, "long": 0.5}


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    names = {np.dtype(dtype): name for name, dtype in (DTYPES | FLOAT8).items()} | {np.dtype(np.uint8): "U8"}
    at = 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in tensors.values():
            file.write(array.tobytes())


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def edit_json(path: Path, changes: Mapping[str, Any]) -> None:
    """Sets values of the object in a file."""
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **changes})


def byte_level_tokenizer(pattern: str, special: list[str], bos: str | None) -> dict[str, Any]:
    """A tokenizer.json with the byte alphabet, a few words and special tokens after them."""
    alphabet = sorted(BYTES, key=lambda c: BYTES[c])
    vocab = {text: i for i, text in enumerate([*alphabet, *WORDS])}
    merges = []
    for word in WORDS:
        cut = next(i for i in range(1, len(word)) if word[:i] in vocab and word[i:] in vocab)
        merges.append([word[:cut], word[cut:]])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": len(vocab) + i, "content": text, **flags, "special": text != "<tool>"} for i, text in enumerate(special)
    ]
    processor: dict[str, Any] = {
        "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True,
    }  # fmt: skip
    if bos:
        first, second = ({"SpecialToken": {"id": bos, "type_id": number}} for number in (0, 1))
        a, b = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
        template = {
            "type": "TemplateProcessing",
            "single": [first, a],
            "pair": [first, a, second, b],
            "special_tokens": {bos: {"id": bos, "ids": [len(vocab) + special.index(bos)], "tokens": [bos]}},
        }
        processor = {"type": "Sequence", "processors": [processor, template]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": processor,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pattern == LLAMA3,
            "vocab": vocab,
            "merges": merges,
        },
    }


def _field(number: int, wire: int, payload: bytes) -> bytes:
    return bytes([number << 3 | wire]) + payload


def sentencepiece_model(pieces: list[tuple[str, float, int]]) -> bytes:
    """The bytes of a tokenizer.model: (text, score, type) of each piece, lengths below 128."""
    out = b""
    for text, score, kind in pieces:
        data = text.encode()
        piece = (
            _field(1, 2, bytes([len(data)]) + data)
            + _field(2, 5, struct.pack("<f", score))
            + _field(3, 0, bytes([kind]))
        )
        out += _field(1, 2, bytes([len(piece)]) + piece)
    trainer = _field(3, 0, b"\x02") + b"\x98\x02\x01"  # model_type (field 3) = BPE, byte_fallback (field 35) = true
    return out + _field(2, 2, bytes([len(trainer)]) + trainer)


def sentencepiece_pieces() -> list[tuple[str, float, int]]:
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    words = ["\u2581", "t", "h", "e", "a", "n", "d", "th", "the", "\u2581t", "\u2581the", "an", "and", "\u2581and"]
    return pieces + [(word, -float(i), 1) for i, word in enumerate(words)]


def write_tokenizer(folder: Path, kind: str) -> None:
    """kind: "qwen2", "gpt-4o", "llama-bpe" (starts with a special token), "smaug-bpe" (does not), "spm", or "phi-3" (as
    "spm", with more tokens in tokenizer.json)."""
    if kind in ("spm", "phi-3"):
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(sentencepiece_pieces()))
        write_json(folder / "added_tokens.json", {"<|assistant|>": 273})
        added = {i: {"content": text, "special": True} for i, text in enumerate(["<unk>", "<s>", "</s>"])}
        config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "add_prefix_space": True}
        config |= {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": added}
        if kind == "phi-3":
            more = [("<|end|>", True), ("<|user|>", False), ("a\u2581b", False)]
            entries = [{"id": 274 + i, "content": text, "special": special} for i, (text, special) in enumerate(more)]
            write_json(folder / "tokenizer.json", {"added_tokens": entries, "model": {}})
    elif kind == "gpt-4o":
        special = ["<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>"]
        write_json(folder / "tokenizer.json", byte_level_tokenizer(GPT4O, special, None))
        config = {"bos_token": special[0], "eos_token": special[0], "tokenizer_class": "GPT2Tokenizer"}
    elif kind == "qwen2":
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>"]
        write_json(folder / "tokenizer.json", byte_level_tokenizer(QWEN2, special, None))
        config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": "Qwen2Tokenizer"}
    else:
        special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
        bos = special[0] if kind == "llama-bpe" else None
        write_json(folder / "tokenizer.json", byte_level_tokenizer(LLAMA3, special, bos))
        config = {"eos_token": "<|end_of_text|>", "tokenizer_class": "PreTrainedTokenizerFast"}
        config |= {"bos_token": bos} if bos else {}
    write_json(folder / "tokenizer_config.json", {**config, "chat_template": TEMPLATE, "model_max_length": 128})


def opened_tokenizer(folder: Path) -> OpenedCheckpoint:
    """A folder that holds a tokenizer alone, as an open checkpoint."""
    return OpenedCheckpoint({}, [], [], (), Origin(folder, None, [], []))


class Family(NamedTuple):
    """What a family's checkpoint has beside the dense decoder's tensors, and how its config.json differs."""

    hf_class: str
    config: dict[str, Any] = {}  # noqa: RUF012
    tied: bool = False
    tokenizer: str = "qwen2"
    head_norms: bool = False  #: norms of queries and keys
    biases: bool = False  #: of queries, keys and values
    post_norms: bool = False  #: norms after both branches
    fused: bool = False  #: queries, keys and values in one matrix, gate and up in another
    sub_norms: bool = False  #: norms inside both branches
    packed: bool = False  #: four ternary weights in a byte


BITNET: dict[str, Any] = {
    "hidden_act": "relu2",
    "quantization_config": {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "offline",
    },
}
FAMILIES = {
    "llama": Family("LlamaForCausalLM", tokenizer="llama-bpe"),
    "mistral": Family("MistralForCausalLM", {"sliding_window": 24}, tokenizer="spm"),
    "qwen2": Family("Qwen2ForCausalLM", {"use_sliding_window": False}, tied=True, biases=True),
    "qwen3": Family("Qwen3ForCausalLM", tied=True, head_norms=True),
    "gemma3": Family(
        "Gemma3ForCausalLM",
        {"sliding_window": 24, "query_pre_attn_scalar": 64, "hidden_activation": "gelu_pytorch_tanh"},
        tied=True,
        tokenizer="spm",
        head_norms=True,
        post_norms=True,
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        {"sliding_window": 200, "original_max_position_embeddings": 64},
        tokenizer="phi-3",
        fused=True,
    ),
    "bitnet": Family("BitNetForCausalLM", BITNET, tied=True, tokenizer="llama-bpe", sub_norms=True, packed=True),
    "bitnet-bf16": Family(
        "BitNetForCausalLM",
        {**BITNET, "quantization_config": {**BITNET["quantization_config"], "quantization_mode": "online"}},
        tied=True,
        tokenizer="llama-bpe",
        sub_norms=True,
    ),
}


def rope_config(arch: str, old: bool, num_pairs: int) -> dict[str, Any]:
    """Settings of the rotary embedding as transformers 4 (old) or 5 writes them."""
    if arch == "gemma3" and old:
        return {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None, "sliding_window_pattern": 6}
    if arch == "gemma3":
        bases = {"full_attention": 1e6, "sliding_attention": 1e4}
        return {"rope_parameters": {kind: {"rope_type": "default", "rope_theta": t} for kind, t in bases.items()}}
    scaling: dict[str, Any] | None = LLAMA3_ROPE if arch == "llama" else None
    if arch == "phi3":
        scaling = {f"{name}_factor": [1 + step * i for i in range(num_pairs)] for name, step in LONGROPE_STEPS.items()}
        scaling["type" if old else "rope_type"] = "longrope"
    if old:
        return {"rope_theta": 10000.0, "rope_scaling": scaling}
    return {"rope_parameters": {"rope_theta": 10000.0, **(scaling or {"rope_type": "default"})}}


def make_checkpoint(
    folder: Path,
    arch: str = "qwen3",
    *,
    seed: int = 0,
    dtype: str = "BF16",
    layers: int = 2,
    hidden: int = 256,
    ffn: int = 512,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 64,
    vocab: int = 288,
    tied: bool | None = None,
    shards: int = 1,
    tokenizer: str | None = None,
    old_config: bool = False,
    scale: float = 0.05,
    config: dict[str, Any] | None = None,
    nested: str | None = None,
    biases: bool | None = None,
) -> Path:
    """Writes a checkpoint and returns its folder.

    arch: a name in FAMILIES; "llama" has a scaled rotary embedding. old_config: as transformers 4 writes config.json.
    config: further keys of config.json, over the family's. nested: "4" or "5", the text model inside one that also
    sees, in that version of transformers' names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    family = FAMILIES[arch]
    tied = family.tied if tied is None else tied
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab,
    }
    values: dict[str, Any] = {
        "architectures": [family.hf_class],
        "model_type": {"gemma3": "gemma3_text", "bitnet-bf16": "bitnet"}.get(arch, arch),
        **sizes,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        **({} if "hidden_activation" in family.config else {"hidden_act": "silu"}),
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        **family.config,
        **rope_config(arch, old_config, int(head_dim * (config or {}).get("partial_rotary_factor", 1)) // 2),
        **({"torch_dtype": "bfloat16"} if old_config else {}),
        **(config or {}),
    }
    write_json(folder / "config.json", values if nested is None else seeing_config(values))
    write_tokenizer(folder, tokenizer or family.tokenizer)
    draw = Draw(np.random.RandomState(seed), DTYPES[dtype], scale)
    tensors = network_tensors(draw, family, sizes, tied, family.biases if biases is None else biases)
    if nested is not None:
        tensors = seeing_tensors(tensors, nested)
    if family.fused:
        tensors = fused(tensors)
    write_shards(folder, packed(tensors) if family.packed else tensors, shards)
    return folder


class Draw(NamedTuple):
    """Random weights."""

    random: np.random.RandomState
    dtype: Any
    scale: float

    def matrix(self, rows: int, columns: int) -> np.ndarray:
        return (self.scale * self.random.standard_normal((rows, columns))).astype(self.dtype)

    def norm(self, size: int) -> np.ndarray:
        return (1 + 0.1 * self.random.standard_normal(size)).astype(self.dtype)


def network_tensors(
    draw: Draw, family: Family, sizes: Mapping[str, int], tied: bool, biases: bool
) -> dict[str, np.ndarray]:
    """The tensors of a network under Hugging Face's names. sizes: as config.json calls them."""
    hidden, ffn, vocab = sizes["hidden_size"], sizes["intermediate_size"], sizes["vocab_size"]
    heads, kv_heads, head_dim = sizes["num_attention_heads"], sizes["num_key_value_heads"], sizes["head_dim"]
    tensors = {"model.embed_tokens.weight": draw.matrix(vocab, hidden), "model.norm.weight": draw.norm(hidden)}
    if not tied:
        tensors["lm_head.weight"] = draw.matrix(vocab, hidden)
    for i in range(sizes["num_hidden_layers"]):
        layer = {
            "input_layernorm.weight": draw.norm(hidden),
            "post_attention_layernorm.weight": draw.norm(hidden),
            "self_attn.q_proj.weight": draw.matrix(heads * head_dim, hidden),
            "self_attn.k_proj.weight": draw.matrix(kv_heads * head_dim, hidden),
            "self_attn.v_proj.weight": draw.matrix(kv_heads * head_dim, hidden),
            "self_attn.o_proj.weight": draw.matrix(hidden, heads * head_dim),
            "mlp.gate_proj.weight": draw.matrix(ffn, hidden),
            "mlp.up_proj.weight": draw.matrix(ffn, hidden),
            "mlp.down_proj.weight": draw.matrix(hidden, ffn),
        }
        norms: dict[str, int] = {}
        if family.head_norms:
            norms |= {"self_attn.q_norm.weight": head_dim, "self_attn.k_norm.weight": head_dim}
        if biases:
            counts = {"q": heads, "k": kv_heads, "v": kv_heads}
            norms |= {f"self_attn.{name}_proj.bias": count * head_dim for name, count in counts.items()}
        if family.post_norms:
            norms |= {f"{when}_feedforward_layernorm.weight": hidden for when in ("pre", "post")}
        if family.sub_norms:
            norms |= {"self_attn.attn_sub_norm.weight": heads * head_dim, "mlp.ffn_sub_norm.weight": ffn}
        layer |= {name: draw.norm(size) for name, size in norms.items()}
        tensors |= {f"model.layers.{i}.{name}": array for name, array in layer.items()}
    return tensors


def seeing_config(text: dict[str, Any]) -> dict[str, Any]:
    """config.json of Gemma 3 with eyes: the text model's settings in text_config."""
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "eos_token_id": [1, 106]}
    inner = {key: value for key, value in text.items() if key not in ("architectures", "tie_word_embeddings")}
    return {**config, "text_config": inner, "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 8}}


def seeing_tensors(text: dict[str, np.ndarray], version: str) -> dict[str, np.ndarray]:
    """Tensors of Gemma 3 with eyes, under the names of transformers 4 or 5."""
    if version == "4":
        tensors, outer = {f"language_model.{name}": tensor for name, tensor in text.items()}, ""
    else:
        tensors, outer = {name.replace("model.", "model.language_model.", 1): t for name, t in text.items()}, "model."
    zeros = np.zeros((8, 8), DTYPES["F32"])
    names = (
        "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
        "multi_modal_projector.mm_input_projection_weight",
    )
    return {**tensors, **{outer + name: zeros for name in names}}


def fused(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same network with queries, keys and values in one matrix, and gate and up."""
    parts = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    result: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        whole = next((whole for whole, names in parts.items() if name.split(".")[-2] == names[0]), None)
        if whole:
            matrices = [tensors[name.replace(parts[whole][0], part)] for part in parts[whole]]
            result[name.replace(parts[whole][0], whole)] = np.concatenate(matrices)
        elif not any(name.split(".")[-2] in names for names in parts.values()):
            result[name] = array
    return result


def packed(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same network with the layers' matrices as BitNet's checkpoints have them: four ternary weights in a byte."""
    result: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        if name.endswith("_proj.weight"):
            weights = array.astype(np.float32)
            scale = np.abs(weights).mean()
            codes = (np.clip(np.rint(weights / scale), -1, 1) + 1).astype(np.uint8).reshape(4, -1, array.shape[1])
            result[name] = codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6
            result[f"{name}_scale"] = scale.reshape(1).astype(array.dtype)
        else:
            result[name] = array
    return result


def write_shards(folder: Path, tensors: dict[str, np.ndarray], shards: int) -> None:
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return
    names = list(tensors)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        write_safetensors(folder / file, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def write_imatrix(path: Path, folder: Path, chunks: int = 4) -> dict[str, np.ndarray]:
    """Writes an importance matrix for a checkpoint's layers, as llama-imatrix would, and returns what it says."""
    random = np.random.RandomState(1)
    tensors, values = {}, {}
    for tensor in open_checkpoint(folder).tensors:
        if len(tensor.shape) == 2 and tensor.name != "token_embd.weight":
            sums = random.uniform(0.01, 9.0, tensor.shape[1]).astype(np.float32)
            tensors |= {f"{tensor.name}.in_sum2": sums, f"{tensor.name}.counts": np.float32([7])}
            values[tensor.name] = sums / np.float32(7)
    metadata = {"general.type": "imatrix", "imatrix.datasets": ["text.txt"], "imatrix.chunk_count": chunks}
    lowbit.gguf.write(path, {**metadata, "imatrix.chunk_size": 512}, tensors)
    return values


#: The checkpoints of data/converted/: folder name -> arguments of make_checkpoint; the embedded one has none.
CONVERSIONS: dict[str, dict[str, Any]] = {
    "bard": {},
    "tiny-qwen3": {"arch": "qwen3", "layers": 1, "vocab": 280},
    "tiny-qwen3-f32": {"arch": "qwen3", "layers": 1, "dtype": "F32", "shards": 3, "seed": 1},
    "tiny-llama-f16": {"arch": "llama", "layers": 2, "dtype": "F16", "shards": 2, "old_config": True, "seed": 2},
    "Tiny-Smaug-7B-Chat-v1.5": {"arch": "llama", "layers": 1, "tied": True, "tokenizer": "smaug-bpe", "seed": 3},
    "tiny-spm": {"arch": "llama", "layers": 1, "tokenizer": "spm", "seed": 4},
    "tiny-phi3.5": {"arch": "phi3", "kv_heads": 4, "seed": 6},
    "tiny-phi4-mini": {
        "arch": "phi3",
        "layers": 1,
        "dtype": "F32",
        "shards": 2,
        "tied": True,
        "tokenizer": "gpt-4o",
        "config": {"partial_rotary_factor": 0.75},
        "old_config": True,
        "seed": 7,
    },
    "tiny-narrow": {"arch": "llama", "layers": 2, "hidden": 96, "ffn": 176, "head_dim": 24, "seed": 5},
}


def conversion_source(folder: Path, name: str) -> Path:
    """The checkpoint of that name in CONVERSIONS, written into `folder` unless the package has it."""
    if name == "bard":
        return Path(lowbit.__file__).parent / "data" / "bard"
    return make_checkpoint(folder / name, **CONVERSIONS[name])
