"""Layout "genai": the operators of com.microsoft that onnxruntime-genai and ONNX Runtime are made for.

GroupQueryAttention has the cache in one buffer, which past and present may share, and rotates queries and keys with
tables of cosines and sines. Lengths come from attention_mask: right padding, as the operator needs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit.arch.model_spec import Rope
from lowbit.base.errors import UnsupportedError
from lowbit.export.decoder import Decoder, past_name, present_name
from lowbit.export.positions import rotation, token_positions
from lowbit.onnx.block_matrix import MICROSOFT
from lowbit.onnx.dtypes import Bytes, pack
from lowbit.onnx.tensor import InPieces, Tensor
from lowbit.tensors.source import row_ranges

#: GroupQueryAttention's head sizes are multiples of this; if it rotates, of the second number.
_HEAD, _ROTATED_HEAD = 8, 16
#: If a part of a head rotates, its pairs are a multiple of this.
_PAIRS = 8
#: Bytes of a table for contexts of millions of tokens are not worth their place.
_MOST_TABLE_BYTES = 1 << 27
#: Rows of a table that are computed at a time.
_TABLE_ROWS = 1 << 14


class GenaiDecoder(Decoder):
    """The graph with operators of com.microsoft."""

    def begin(self) -> None:
        """Lengths for GroupQueryAttention."""
        graph, dim = self.graph, self.spec.head_dim
        if dim % _HEAD:
            raise UnsupportedError(
                f"layout genai: GroupQueryAttention with {dim} values per head:",
                expected=f"a multiple of {_HEAD}",
                found=dim,
                rest="; use layout standard",
            )
        tokens = graph.node("ReduceSum", ["attention_mask", graph.integers(1)], "lengths", keepdims=0)
        last = graph.node("Sub", [tokens, graph.integer(1)], "lengths/last")
        graph.cast(last, np.int32, "seqlens_k")
        shape = graph.node("Shape", ["attention_mask"], "attention_mask/shape")
        total = graph.node("Gather", [shape, graph.integer(1)], "total_length")
        graph.cast(total, np.int32, "total_sequence_length")
        if not self._rotates_inside:
            self._begin_rotation()

    @cached_property
    def _rotates_inside(self) -> bool:
        """Whether GroupQueryAttention rotates. Else RotaryEmbedding does, with cosines of the tokens at hand: for head
        sizes that GroupQueryAttention cannot rotate, for tables that depend on the length (LongRoPE), and for tables
        that are too large."""
        spec = self.spec
        is_whole = spec.rope_dim == spec.head_dim or spec.rope_dim // 2 % _PAIRS == 0
        is_long = any(rope.long_frequencies for rope in spec.ropes)
        is_large = spec.context_length * (spec.rope_dim // 2) * self.graph.dtype.itemsize > _MOST_TABLE_BYTES
        return spec.head_dim % _ROTATED_HEAD == 0 and is_whole and not is_long and not is_large

    def norm(self, x: str, weight: str, name: str) -> str:
        """RMSNormalization of ai.onnx: ONNX Runtime's SimplifiedLayerNormalization is in no domain that onnx knows."""
        return self.graph.node("RMSNormalization", [x, weight], name, axis=-1, epsilon=self.spec.norm_eps)

    def add_and_norm(self, x: str, branch: str, name: str) -> tuple[str, str]:
        """SkipSimplifiedLayerNormalization."""
        weight = self.vector(f"{name}.weight")
        if not branch:
            return x, self.norm(x, weight, name)
        total, eps = f"{name}/sum", self.spec.norm_eps
        normed = self.graph.node(
            "SkipSimplifiedLayerNormalization",
            [x, branch, weight],
            name,
            more=["", "", total],
            domain=MICROSOFT,
            epsilon=eps,
        )
        return total, normed

    def gelu_tanh(self, x: str, name: str) -> str:
        """Gelu of ai.onnx."""
        return self.graph.node("Gelu", [x], name, approximate="tanh")

    def attention(self, layer: int, queries: str, keys: str, values: str) -> str:
        """GroupQueryAttention."""
        spec, name = self.spec, f"blk.{layer}.attention"
        rope = spec.layer_ropes[layer]
        caches: list[str] = []
        if spec.rope_dim and self._rotates_inside:
            caches = [self._table(rope, part) for part in ("cos", "sin")]
        elif spec.rope_dim:
            queries = self._rotated(queries, rope, spec.num_heads, f"{name}/queries")
            keys = self._rotated(keys, rope, spec.num_kv_heads, f"{name}/keys")
        past = [past_name(layer, part) for part in ("key", "value")]
        return self.graph.node(
            "GroupQueryAttention",
            [queries, keys, values, *past, "seqlens_k", "total_sequence_length", *caches],
            name,
            more=[present_name(layer, part) for part in ("key", "value")],
            domain=MICROSOFT,
            num_heads=spec.num_heads,
            kv_num_heads=spec.num_kv_heads,
            scale=spec.attention_scale,
            local_window_size=spec.windows[layer] or None,
            softcap=spec.attention_softcap or None,
            do_rotary=int(bool(caches)),
            rotary_interleaved=int(spec.rope_interleaved) if caches else None,
        )

    # --- rotation

    def _table(self, rope: int, part: str) -> str:
        """Cosines or sines of all positions."""
        graph, spec = self.graph, self.spec
        shape = (spec.context_length, spec.rope_dim // 2)
        name = f"{part}_cache" if len(spec.ropes) == 1 else f"{part}_cache.{rope}"
        pieces = partial(_table_pieces, spec.ropes[rope], part, spec.context_length, graph.dtype)
        return graph.tensor(Tensor(name, graph.dtype, shape, InPieces(pieces)))

    def _begin_rotation(self) -> None:
        """Cosines and sines of the tokens, one row for each, and the numbers of the rows."""
        graph, spec = self.graph, self.spec
        if not spec.rope_dim:
            return
        positions = token_positions(graph)
        flat = graph.node("Reshape", [positions, graph.integers(-1, 1)], "positions/flat")
        for rope in range(len(spec.ropes)):
            rotation(graph, spec, rope, flat, "total_length")
        count = graph.node("Size", ["input_ids"], "tokens/count")
        numbers = graph.node("Range", [graph.integer(0), count, graph.integer(1)], "tokens/numbers")
        shape = graph.node("Shape", ["input_ids"], "tokens/shape")
        graph.node("Reshape", [numbers, shape], "token_numbers")

    def _rotated(self, x: str, rope: int, num_heads: int, name: str) -> str:
        spec = self.spec
        is_part = spec.rope_dim != spec.head_dim
        return self.graph.node(
            "RotaryEmbedding",
            [x, "token_numbers", f"cos.{rope}", f"sin.{rope}"],
            name,
            domain=MICROSOFT,
            interleaved=int(spec.rope_interleaved),
            num_heads=num_heads,
            rotary_embedding_dim=spec.rope_dim if is_part else 0,
        )


def _table_pieces(rope: Rope, part: str, length: int, dtype: np.dtype[Any]) -> Iterator[Bytes]:
    """The bytes of the cosines or sines of the positions 0 to `length` - 1, in pieces: (length, pairs)."""
    function = np.cos if part == "cos" else np.sin
    frequencies = np.array(rope.frequencies, np.float32)
    for start, stop in row_ranges(0, length, 1, _TABLE_ROWS):
        angles: npt.NDArray[np.float32] = np.arange(start, stop, dtype=np.float32)[:, None] * frequencies
        yield pack((function(angles) * np.float32(rope.magnitude)).astype(dtype))
