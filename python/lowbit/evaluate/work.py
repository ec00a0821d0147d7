"""What a step of a model costs at least: bytes that it reads and multiply-adds that it computes.

The measured speed, times these, is compared with the machine's limits (`lowbit.machine_limits`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from lowbit.engine.model import Model

__all__ = ["cache_bytes", "multiply_adds", "step_bytes", "weight_bytes"]

_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"


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
    spec, element = model.spec, 4 if model.compute == "f32" else 2
    return sum(_reached(model, length)) * 2 * spec.num_kv_heads * spec.head_dim * element


def multiply_adds(model: Model, tokens: int, *, start: int = 0) -> int:
    """Multiply-adds of a step that reads `tokens` tokens of one sequence after `start` others.

    Counts the matrix products of all tokens, the output matrix for the last token alone, and in the attention the
    products with the keys and values that a token may attend to.
    """
    spec = model.spec
    output = model.weights[_OUTPUT if _OUTPUT in model.weights else _EMBEDDING]
    layers = sum(
        math.prod(weight.shape)
        for name, weight in model.weights.items()
        if len(weight.shape) == 2 and name not in (_EMBEDDING, _OUTPUT)
    )
    attended = sum(sum(_reached(model, start + i + 1)) for i in range(tokens))
    return tokens * layers + math.prod(output.shape) + attended * 2 * spec.num_heads * spec.head_dim


def _reached(model: Model, length: int) -> Iterator[int]:
    """Tokens that the newest of `length` attends to, itself included, in each layer."""
    return (min(length, window) if window else length for window in model.spec.windows)
