"""What a step of a model costs at least: bytes that it reads and multiply-adds that it computes.

The measured speed, times these, is compared with the machine's limits (`lowbit.machine_limits`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lowbit.engine.model import Model

__all__ = ["Work", "cache_bytes", "multiply_adds", "stage_work", "step_bytes", "weight_bytes"]

_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"

#: The weights that each stage of a layer uses, as in their names between "blk.0." and ".weight". The stages are those
#: of `Model.stage_times`; attention uses the cache alone.
_LAYER_STAGES = {
    "query_key_value": ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_qkv"),
    "heads": ("attn_q_norm", "attn_k_norm"),
    "attention": (),
    "attention_output": ("attn_sub_norm", "attn_output", "post_attention_norm"),
    "gate_up": ("ffn_norm", "ffn_gate", "ffn_up"),
    "down": ("ffn_sub_norm", "ffn_down", "post_ffw_norm"),
}


@dataclass(frozen=True)
class Work:
    """What a stage reads at least, in bytes, and its multiply-adds."""

    bytes_read: int
    multiply_adds: int


def step_bytes(model: Model, lengths: list[int]) -> int:
    """Bytes that a step reads at least if it decodes one token of each sequence: the weights once, and the caches.

    lengths: tokens of each sequence after the step, the new one included.
    """
    return weight_bytes(model) + sum(cache_bytes(model, length) for length in lengths)


def weight_bytes(model: Model) -> int:
    """Bytes of all weights that a step reads, as they are in the file: everything but the embedding table.

    That counts only if it is also the output matrix; of a table of its own, a step reads one row a token.
    """
    embedding = model.weights[_EMBEDDING].nbytes if _OUTPUT in model.weights else 0
    return model.nbytes - embedding


def cache_bytes(model: Model, length: int) -> int:
    """Bytes of the keys and values that the newest of `length` tokens attends to, in all layers.

    A layer with a window reads at most the window. Elements have 2 bytes, with compute="f32" 4.
    """
    return sum(_reached(length, window) for window in model.spec.windows) * _cached_token_bytes(model)


def multiply_adds(model: Model, tokens: int, *, start: int = 0) -> int:
    """Multiply-adds of a step that reads `tokens` tokens of one sequence after `start` others.

    Counts the matrix products of all tokens, the output matrix for the last token alone, and in the attention the
    products with the keys and values that a token may attend to.
    """
    return sum(work.multiply_adds for work in stage_work(model, tokens, start=start).values())


def stage_work(model: Model, tokens: int, *, start: int = 0) -> dict[tuple[str, int | None], Work]:
    """The work of each stage and layer of the step that `multiply_adds` describes, in the stages' order.

    A stage reads its weights once, as they are in the file, and the embedding one row a token. Attention reads the keys
    and values that a token of the step attends to, once.
    """
    spec, embedding = model.spec, model.weights[_EMBEDDING]
    stages: dict[tuple[str, int | None], Work] = {}
    stages["embedding", None] = Work(tokens * embedding.nbytes // embedding.shape[0], 0)
    for i, window in enumerate(spec.windows):
        for stage, parts in _LAYER_STAGES.items():
            stages[stage, i] = _products(model, [f"blk.{i}.{part}" for part in parts], tokens)
        attended = sum(_reached(start + token + 1, window) for token in range(tokens))
        read = _reached(start + tokens, window + tokens - 1 if window else 0)
        products = attended * 2 * spec.num_heads * spec.head_dim
        stages["attention", i] = Work(read * _cached_token_bytes(model), products)
    output = "output" if _OUTPUT in model.weights else "token_embd"
    stages["logits", None] = _products(model, ["output_norm", output], 1)
    return stages


def _products(model: Model, parts: list[str], tokens: int) -> Work:
    """The work of the weights with these names, their biases and scales included, for some tokens."""
    names = [f"{part}.{kind}" for part in parts for kind in ("weight", "bias", "scale")]
    weights = [model.weights[name] for name in names if name in model.weights]
    products = sum(math.prod(weight.shape) for weight in weights if len(weight.shape) == 2)
    return Work(sum(weight.nbytes for weight in weights), tokens * products)


def _cached_token_bytes(model: Model) -> int:
    """Bytes of a token's key and value in one layer."""
    return 2 * model.spec.num_kv_heads * model.spec.head_dim * (4 if model.compute == "f32" else 2)


def _reached(length: int, window: int) -> int:
    """Tokens that the newest of `length` attends to, itself included. window: 0: all."""
    return min(length, window) if window else length
