"""Models of many depths and head counts: data/mixes.json.xz says what llama-quantize does with each tensor."""

from __future__ import annotations

from typing import Any, NamedTuple

#: A letter for each format in data/mixes.json.xz.
LETTERS = {
    "F32": "f", "F16": "h", "BF16": "b", "Q4_0": "4", "Q4_1": "5", "Q5_0": "6", "Q5_1": "7", "Q8_0": "8", "Q2_K": "B",
    "Q3_K": "C", "Q4_K": "D", "Q5_K": "E", "Q6_K": "F", "IQ1_S": "s", "IQ1_M": "m", "IQ2_XXS": "x", "IQ2_XS": "y",
    "IQ2_S": "z", "IQ3_XXS": "X", "IQ3_S": "Z", "IQ4_NL": "N", "IQ4_XS": "S", "TQ1_0": "t", "TQ2_0": "T", "MXFP4": "M",
    "Q1_0": "1", "Q2_0": "2",
}  # fmt: skip


class Case(NamedTuple):
    arch: str
    layers: int
    heads: int = 8
    kv_heads: int = 4
    hidden: int = 256
    ffn: int = 256
    tied: bool = False
    imatrix: bool = False
    experts: int = 0


CASES = [
    *(Case("qwen3", layers, tied=layers % 2 == 0) for layers in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 28, 36, 64)),
    *(Case("llama", layers) for layers in (1, 22, 32, 40, 80)),
    *(Case("llama", 16, heads, kv) for heads, kv in ((8, 8), (9, 3), (8, 2), (32, 4), (16, 1))),
    Case("llama", 80, 64, 8),
    Case("llama", 80, 64, 64),
    Case("qwen3", 80, 64, 8),
    Case("llama", 30, 9, 3, hidden=576, ffn=1536, tied=True),  # SmolLM2-135M
    Case("qwen3", 24, 14, 2, hidden=896, ffn=4864, tied=True),
    Case("qwen2", 80, 64, 8),
    Case("llama", 80, 64, 8, imatrix=True),
    Case("llama", 4, hidden=96, ffn=160),
    Case("llama", 4, hidden=192, ffn=384, tied=True),
    Case("qwen3", 4, hidden=384, ffn=320, imatrix=True),
    Case("llama", 4, hidden=80, ffn=176, tied=True),
    Case("qwen3", 3, hidden=256, ffn=352),
    Case("llama", 32, 32, 8, imatrix=True),
    Case("qwen3", 28, 16, 8, tied=True, imatrix=True),
    Case("llama", 16, 32, 32, tied=True, imatrix=True),
    Case("llama", 32, 32, 8, experts=8),
    Case("llama", 17, 8, 8, experts=8, imatrix=True),
    Case("llama", 80, 64, 8, experts=8),
    Case("llama", 16, 8, 8, experts=4),
    Case("qwen3moe", 24, 32, 4, tied=True, experts=16),
    Case("qwen2moe", 24, 8, 8, experts=12, imatrix=True),
    Case("phi3", 32, 32, 8),
    Case("phi3", 16, 32, 32, tied=True, imatrix=True),
    Case("gemma3", 26, 4, 1, hidden=1152, tied=True),
    Case("gemma3n", 30, 8, 2, tied=True),
    Case("deepseek2", 20, 16, 16, experts=8, hidden=256, ffn=320),
    Case("bitnet", 30, 20, 5, tied=True),
]

#: Keys that the reference wants to see, beside those that all have.
KEYS: dict[str, dict[str, Any]] = {
    "gemma3n": {"attention.sliding_window": 32},
    "deepseek2": {"attention.q_lora_rank": 32, "attention.kv_lora_rank": 32, "expert_shared_count": 1,
                  "leading_dense_block_count": 1, "expert_feed_forward_length": 256, "expert_gating_func": 1},
}  # fmt: skip
#: Tensors of a layer by other names than the usual ones, or beside them.
RENAMED = {
    "phi3": {"attn_q": None, "attn_k": None, "attn_v": "attn_qkv", "ffn_gate": None},
    "deepseek2": {"attn_q": "attn_q_b", "attn_k": "attn_kv_a_mqa", "attn_v": "attn_kv_b"},
}
MORE = {
    "gemma3": ("post_attention_norm", "post_ffw_norm"),
    "gemma3n": ("altup_router", "inp_gate", "laurel_l", "post_norm"),
    "bitnet": ("attn_sub_norm", "ffn_sub_norm"),
}


def case_name(case: Case) -> str:
    return "-".join(str(value) for value in case)


def case_tensors(case: Case) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Metadata, and shapes by name in a quantized file's order. Matrices have two rows, which no rule looks at."""
    key = case.arch
    metadata = {
        "general.architecture": key,
        f"{key}.block_count": case.layers,
        f"{key}.context_length": 64,
        f"{key}.embedding_length": case.hidden,
        f"{key}.feed_forward_length": case.ffn,
        f"{key}.attention.head_count": case.heads,
        f"{key}.attention.head_count_kv": case.kv_heads,
        f"{key}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{key}.rope.dimension_count": 32,
        f"{key}.attention.key_length": 32,
        f"{key}.attention.value_length": 32,
        f"{key}.vocab_size": 2,
        "general.file_type": 32,
    }
    metadata |= {f"{key}.{name}": value for name, value in KEYS.get(key, {}).items()}
    if case.experts:
        metadata |= {f"{key}.expert_count": case.experts, f"{key}.expert_used_count": 2}
    hidden, ffn = case.hidden, case.ffn
    shapes: dict[str, tuple[int, ...]] = {} if case.tied else {"output.weight": (2, hidden)}
    shapes |= {"output_norm.weight": (hidden,), "token_embd.weight": (2, hidden)}
    if key == "gemma3n":
        shapes |= {"per_layer_token_embd.weight": (2, hidden), "per_layer_model_proj.weight": (2, hidden)}
    for i in range(case.layers):
        rows = {
            "attn_k": (2, hidden), "attn_k_norm": (32,), "attn_norm": (hidden,), "attn_output": (2, hidden),
            "attn_q": (2, hidden), "attn_q_norm": (32,), "attn_v": (2, hidden), "ffn_down": (2, ffn),
            "ffn_gate": (2, hidden), "ffn_norm": (hidden,), "ffn_up": (2, hidden),
        }  # fmt: skip
        rows |= {name: (hidden,) if name.endswith("norm") else (2, hidden) for name in MORE.get(key, ())}
        for usual, shape in rows.items():
            name = RENAMED.get(key, {}).get(usual, usual)
            if name and (key.startswith("qwen3") or name not in ("attn_k_norm", "attn_q_norm")):
                shapes[f"blk.{i}.{name}.weight"] = shape
        if case.experts:
            shapes |= _experts(case, i, shapes)
    return metadata, dict(sorted(shapes.items(), key=lambda item: (layer_of(item[0]), item[0])))


def _experts(case: Case, layer: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Feed-forward matrices of a layer turned into stacks, with a router; qwen2moe has an expert that all share."""
    result: dict[str, tuple[int, ...]] = {f"blk.{layer}.ffn_gate_inp.weight": (case.experts, case.hidden)}
    for name in ("ffn_down", "ffn_gate", "ffn_up"):
        rows, columns = shapes.pop(f"blk.{layer}.{name}.weight")
        result[f"blk.{layer}.{name}_exps.weight"] = (case.experts, rows, columns)
        if case.arch == "qwen2moe":
            result[f"blk.{layer}.{name}_shexp.weight"] = (rows, columns)
    return result


def layer_of(name: str) -> int:
    return int(name.split(".")[1]) if name.startswith("blk.") else -1
