"""Layout "standard": operators of ai.onnx only.

| opset | norms | rotation | attention |
| --- | --- | --- | --- |
| 23 to 25 | RMSNormalization | RotaryEmbedding | Attention |
| 17 to 22 | Pow, ReduceMean, Sqrt, Div | Split, Mul, Concat | MatMul, Softmax |

One mask for each window says which keys a token sees: those before it, in its window, and not masked in attention_mask.
Distances are those of positions, so padding may be anywhere.
"""

from __future__ import annotations

import numpy as np

from lowbit.export.decoder import Decoder, past_name, present_name
from lowbit.export.positions import rotation, token_positions

#: The first opset with the operators of language models.
_OPERATORS = 23
#: The first opset with Gelu.
_GELU = 20


class StandardDecoder(Decoder):
    """The graph with operators of ai.onnx."""

    @property
    def _has_operators(self) -> bool:
        return self.graph.opset >= _OPERATORS

    def begin(self) -> None:
        """Cosines and sines of the tokens, (batch, tokens, pairs), and the masks."""
        graph, spec = self.graph, self.spec
        shape = graph.node("Shape", ["attention_mask"], "attention_mask/shape")
        total = graph.node("Gather", [shape, graph.integer(1)], "total_length")
        positions = token_positions(graph)
        if spec.rope_dim:
            last = graph.node("Unsqueeze", [positions, graph.integers(-1)], "positions/column")
            for rope in sorted({*spec.layer_ropes}):
                rotation(graph, spec, rope, last, total)
                if not self._has_operators:
                    axes = graph.integers(1, -1) if spec.rope_interleaved else graph.integers(1)
                    for part in ("cos", "sin"):
                        graph.node("Unsqueeze", [f"{part}.{rope}", axes], f"{part}.{rope}/heads")
        keys = graph.node("Unsqueeze", ["positions/all", graph.integers(1)], "mask/keys")
        queries = graph.node("Unsqueeze", [positions, graph.integers(-1)], "mask/queries")
        distances = graph.node("Sub", [queries, keys], "mask/distances")
        before = graph.node("GreaterOrEqual", [distances, graph.integer(0)], "mask/causal")
        given = graph.cast("attention_mask", np.bool_, "mask/given")
        given = graph.node("Unsqueeze", [given, graph.integers(1)], "mask/given_keys")
        seen = graph.node("And", [before, given], "mask/seen")
        self._masks = {window: self._mask(seen, distances, window) for window in sorted({*spec.windows})}

    def _mask(self, seen: str, distances: str, window: int) -> str:
        """Which keys each token sees, (batch, 1, tokens, keys): a bool, or what is added to scores."""
        graph, name = self.graph, f"mask.{window}"
        if window:
            near = graph.node("Less", [distances, graph.integer(window)], f"{name}/near")
            seen = graph.node("And", [seen, near], f"{name}/seen")
        mask = graph.node("Unsqueeze", [seen, graph.integers(1)], name)
        if self._has_operators:
            return mask
        least = graph.number(np.finfo(graph.dtype).min)
        return graph.node("Where", [mask, graph.number(0), least], f"{name}/added")

    def norm(self, x: str, weight: str, name: str) -> str:
        """RMSNormalization, or its parts."""
        graph, eps = self.graph, self.spec.norm_eps
        if self._has_operators:
            return graph.node("RMSNormalization", [x, weight], name, axis=-1, epsilon=eps)
        floats = x if graph.dtype == np.float32 else graph.cast(x, np.float32, f"{name}/floats")
        squares = graph.node("Pow", [floats, graph.number(2, np.float32)], f"{name}/squares")
        mean = graph.reduced("ReduceMean", squares, f"{name}/mean")
        shifted = graph.node("Add", [mean, graph.number(eps, np.float32)], f"{name}/shifted")
        root = graph.node("Sqrt", [shifted], f"{name}/root")
        normed = graph.node("Div", [floats, root], f"{name}/normed")
        if graph.dtype != np.float32:
            normed = graph.cast(normed, graph.dtype, f"{name}/cast")
        return graph.node("Mul", [normed, weight], name)

    def add_and_norm(self, x: str, branch: str, name: str) -> tuple[str, str]:
        """Add and norm."""
        if branch:
            x = self.graph.node("Add", [x, branch], f"{name}/sum")
        return x, self.norm(x, self.vector(f"{name}.weight"), name)

    def gelu_tanh(self, x: str, name: str) -> str:
        """Gelu, or its parts."""
        graph = self.graph
        if graph.opset >= _GELU:
            return graph.node("Gelu", [x], name, approximate="tanh")
        square = graph.node("Mul", [x, x], f"{name}/square")
        cubic = graph.node("Mul", [square, graph.number(0.044715)], f"{name}/cubic")
        factor = graph.node("Add", [cubic, graph.number(1)], f"{name}/factor")
        inner = graph.node("Mul", [x, factor], f"{name}/inner")
        inner = graph.node("Mul", [inner, graph.number((2 / np.pi) ** 0.5)], f"{name}/scaled")
        tanh = graph.node("Tanh", [inner], f"{name}/tanh")
        share = graph.node("Add", [tanh, graph.number(1)], f"{name}/share")
        half = graph.node("Mul", [x, graph.number(0.5)], f"{name}/half")
        return graph.node("Mul", [half, share], name)

    def attention(self, layer: int, queries: str, keys: str, values: str) -> str:
        """Attention, or its parts."""
        name, rope = f"blk.{layer}.attention", self.spec.layer_ropes[layer]
        if not self._has_operators:
            return self._attention_parts(layer, queries, keys, values, name)
        spec = self.spec
        if spec.rope_dim:
            queries = self._rotated(queries, rope, spec.num_heads, f"{name}/queries")
            keys = self._rotated(keys, rope, spec.num_kv_heads, f"{name}/keys")
        past = [past_name(layer, part) for part in ("key", "value")]
        return self.graph.node(
            "Attention",
            [queries, keys, values, self._masks[spec.windows[layer]], *past],
            name,
            more=[present_name(layer, part) for part in ("key", "value")],
            q_num_heads=spec.num_heads,
            kv_num_heads=spec.num_kv_heads,
            scale=spec.attention_scale,
            softcap=spec.attention_softcap or None,
        )

    def _rotated(self, x: str, rope: int, num_heads: int, name: str) -> str:
        spec = self.spec
        return self.graph.node(
            "RotaryEmbedding",
            [x, f"cos.{rope}", f"sin.{rope}"],
            name,
            interleaved=int(spec.rope_interleaved),
            num_heads=num_heads,
            rotary_embedding_dim=spec.rope_dim if spec.rope_dim != spec.head_dim else None,
        )

    # --- without the operators of language models

    def _attention_parts(self, layer: int, queries: str, keys: str, values: str, name: str) -> str:
        """Scores of the query heads of one key head are rows of one matrix: keys are not repeated."""
        graph, spec = self.graph, self.spec
        heads, kv_heads, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        queries = self._heads(queries, heads, f"{name}/queries", spec.layer_ropes[layer])
        keys = self._heads(keys, kv_heads, f"{name}/keys", spec.layer_ropes[layer])
        values = self._heads(values, kv_heads, f"{name}/values", None)
        for part, new in (("key", keys), ("value", values)):
            graph.node("Concat", [past_name(layer, part), new], present_name(layer, part), axis=2)
        rows = graph.integers(0, kv_heads, -1, dim)
        queries = graph.node("Reshape", [queries, rows], f"{name}/query_rows")
        queries = graph.node("Mul", [queries, graph.number(spec.attention_scale)], f"{name}/scaled")
        columns = graph.node("Transpose", [present_name(layer, "key")], f"{name}/key_columns", perm=[0, 1, 3, 2])
        scores = graph.node("MatMul", [queries, columns], f"{name}/scores")
        if cap := spec.attention_softcap:
            scores = graph.capped(scores, cap, name)
        by_head = graph.node("Reshape", [scores, graph.integers(0, heads, -1, 0)], f"{name}/by_head")
        masked = graph.node("Add", [by_head, self._masks[spec.windows[layer]]], f"{name}/masked")
        shares = graph.node("Softmax", [masked], f"{name}/shares", axis=-1)
        shares = graph.node("Reshape", [shares, graph.integers(0, kv_heads, -1, 0)], f"{name}/share_rows")
        attended = graph.node("MatMul", [shares, present_name(layer, "value")], f"{name}/attended")
        attended = graph.node("Reshape", [attended, graph.integers(0, heads, -1, dim)], f"{name}/heads")
        tokens = graph.node("Transpose", [attended], f"{name}/tokens", perm=[0, 2, 1, 3])
        return graph.node("Reshape", [tokens, graph.integers(0, 0, heads * dim)], name)

    def _heads(self, x: str, num_heads: int, name: str, rope: int | None) -> str:
        """(batch, heads, tokens, head_dim), rotated."""
        graph, spec = self.graph, self.spec
        parts = graph.node("Reshape", [x, graph.integers(0, 0, num_heads, spec.head_dim)], f"{name}/parts")
        heads = graph.node("Transpose", [parts], f"{name}/heads", perm=[0, 2, 1, 3])
        if rope is None or not spec.rope_dim:
            return heads
        rest = spec.head_dim - spec.rope_dim
        if rest:
            heads, kept = self._split(heads, [f"{name}/first", f"{name}/kept"], [spec.rope_dim, rest])
        rotated = self._rotated_parts(heads, rope, name)
        return graph.node("Concat", [rotated, kept], f"{name}/whole", axis=-1) if rest else rotated

    def _rotated_parts(self, x: str, rope: int, name: str) -> str:
        """Rotates pairs: the halves of the last axis, or the rows of two that it consists of."""
        graph, pairs = self.graph, self.spec.rope_dim // 2
        interleaved = self.spec.rope_interleaved
        if interleaved:
            x = graph.node("Reshape", [x, graph.integers(0, 0, 0, pairs, 2)], f"{name}/pairs")
        a, b = self._split(x, [f"{name}/a", f"{name}/b"], [1, 1] if interleaved else [pairs, pairs])
        cos, sin = f"cos.{rope}/heads", f"sin.{rope}/heads"
        products = {
            f"{left}{part}": graph.node("Mul", [left, factor], f"{left}_{part}")
            for left in (a, b)
            for factor, part in ((cos, "cos"), (sin, "sin"))
        }
        first = graph.node("Sub", [products[f"{a}cos"], products[f"{b}sin"]], f"{name}/rotated_a")
        second = graph.node("Add", [products[f"{a}sin"], products[f"{b}cos"]], f"{name}/rotated_b")
        joined = graph.node("Concat", [first, second], f"{name}/rotated", axis=-1)
        if not interleaved:
            return joined
        return graph.node("Reshape", [joined, graph.integers(0, 0, 0, 2 * pairs)], f"{name}/flat")
