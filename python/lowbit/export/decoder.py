"""The order of a decoder's parts, which all layouts share: src/engine/layer.cc as a graph.

Values between layers are (batch, tokens, width). Names of initializers are those of GGUF tensors; nodes are called like
the weight that they use.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from lowbit.arch.model_spec import ModelSpec
from lowbit.export.building import GraphBuilder
from lowbit.export.weights import Matrix
from lowbit.onnx.graph import Model, Value
from lowbit.onnx.tensor import Tensor

#: From -128 to 127 of BitNet's activations; smaller magnitudes count as this.
_LEAST_MAGNITUDE = 1e-5


class Decoder(ABC):
    """Builds the graph of a network. Layouts implement the methods whose operators differ.

    vectors: norms, biases and factors by GGUF name, float32. matrices: by GGUF name.
    """

    def __init__(
        self,
        spec: ModelSpec,
        vectors: Mapping[str, np.ndarray],
        matrices: Mapping[str, Matrix],
        graph: GraphBuilder,
    ) -> None:
        self.spec = spec
        self.vectors = vectors
        self.matrices = matrices
        self.graph = graph

    def model(self, producer: str) -> Model:
        """The whole graph."""
        spec, graph = self.spec, self.graph
        self.begin()
        x, branch = self._embeddings(), ""
        for layer in range(spec.num_layers):
            prefix = f"blk.{layer}."
            x, normed = self.add_and_norm(x, branch, f"{prefix}attn_norm")
            x, normed = self.add_and_norm(x, self._attention_branch(layer, normed), f"{prefix}ffn_norm")
            branch = self._feed_forward_branch(prefix, normed)
        _, normed = self.add_and_norm(x, branch, "output_norm")
        self._logits(normed)
        caches = [(part, i) for i in range(spec.num_layers) for part in ("key", "value")]
        past, total = self._cache_shape("past_sequence_length"), self._cache_shape("total_sequence_length")
        inputs = [
            Value.of("input_ids", np.int64, ("batch_size", "sequence_length")),
            Value.of("attention_mask", np.int64, ("batch_size", "total_sequence_length")),
            *(Value.of(past_name(i, part), graph.dtype, past) for part, i in caches),
        ]
        outputs = [
            Value.of("logits", np.float32, ("batch_size", "sequence_length", spec.vocab_size)),
            *(Value.of(present_name(i, part), graph.dtype, total) for part, i in caches),
        ]
        return graph.model(inputs, outputs, producer)

    def _cache_shape(self, length: str) -> tuple[int | str, ...]:
        return "batch_size", self.spec.num_kv_heads, length, self.spec.head_dim

    # --- what differs between layouts

    @abstractmethod
    def begin(self) -> None:
        """Adds what all layers use: lengths, positions, masks. Raises UnsupportedError for a network that the layout's
        operators cannot compute."""

    @abstractmethod
    def norm(self, x: str, weight: str, name: str) -> str:
        """The RMS norm along the last axis."""

    @abstractmethod
    def add_and_norm(self, x: str, branch: str, name: str) -> tuple[str, str]:
        """The sum of x and a branch's result ("" before the first layer), and its norm with the weight of this name."""

    @abstractmethod
    def attention(self, layer: int, queries: str, keys: str, values: str) -> str:
        """Rotates queries and keys, extends the cache, and attends: all (batch, tokens, heads * head_dim)."""

    @abstractmethod
    def gelu_tanh(self, x: str, name: str) -> str:
        """GELU in the form with tanh."""

    # --- what they share

    def _embeddings(self) -> str:
        rows = self.matrices["token_embd.weight"].gather(self.graph, "input_ids", "token_embd")
        if self.spec.embedding_scale == 1:
            return rows
        return self.graph.node("Mul", [rows, self.graph.number(self.spec.embedding_scale)], "token_embd/scaled")

    def _attention_branch(self, layer: int, normed: str) -> str:
        spec, prefix = self.spec, f"blk.{layer}."
        q_dim, kv_dim = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        if f"{prefix}attn_qkv.weight" in self.matrices:
            whole = self._linear([f"{prefix}attn_qkv"], normed)[0]
            names = [f"{prefix}attn_{part}" for part in "qkv"]
            queries, keys, values = self._split(whole, names, [q_dim, kv_dim, kv_dim])
        else:
            queries, keys, values = self._linear([f"{prefix}attn_{part}" for part in "qkv"], normed)
        queries = self._norm_heads(queries, f"{prefix}attn_q_norm", spec.num_heads)
        keys = self._norm_heads(keys, f"{prefix}attn_k_norm", spec.num_kv_heads)
        attended = self.attention(layer, queries, keys, values)
        attended = self._optional_norm(attended, f"{prefix}attn_sub_norm")
        return self._optional_norm(self._linear([f"{prefix}attn_output"], attended)[0], f"{prefix}post_attention_norm")

    def _feed_forward_branch(self, prefix: str, normed: str) -> str:
        graph, inner = self.graph, self.spec.intermediate_size
        if f"{prefix}ffn_gate.weight" in self.matrices:
            gate, up = self._linear([f"{prefix}ffn_gate", f"{prefix}ffn_up"], normed)
        else:
            whole = self._linear([f"{prefix}ffn_up"], normed)[0]
            gate, up = self._split(whole, [f"{prefix}ffn_gate", f"{prefix}ffn_up/up"], [inner, inner])
        gated = graph.node("Mul", [self._activation(gate, f"{prefix}ffn_act"), up], f"{prefix}ffn_gated")
        gated = self._optional_norm(gated, f"{prefix}ffn_sub_norm")
        return self._optional_norm(self._linear([f"{prefix}ffn_down"], gated)[0], f"{prefix}post_ffw_norm")

    def _activation(self, x: str, name: str) -> str:
        graph = self.graph
        if self.spec.activation == "gelu_tanh":
            return self.gelu_tanh(x, name)
        if self.spec.activation == "relu2":
            positive = graph.node("Relu", [x], f"{name}/relu")
            return graph.node("Mul", [positive, positive], name)
        return graph.node("Mul", [x, graph.node("Sigmoid", [x], f"{name}/sigmoid")], name)

    def _logits(self, normed: str) -> None:
        graph = self.graph
        name = "output" if "output.weight" in self.matrices else "token_embd"
        last = f"{name}/logits"
        logits = self._biased(self.matrices[f"{name}.weight"].multiply(graph, normed, last), name, last)
        if cap := self.spec.logit_softcap:
            logits = graph.capped(logits, cap, last)
        graph.cast(logits, np.float32, "logits")  # runtimes remove it if it changes nothing

    def _linear(self, names: list[str], x: str) -> list[str]:
        """scale * weights * x + bias of layers' matrices with the same input."""
        graph = self.graph
        factor = ""
        if self.spec.int8_activations:
            x, factor = self._rounded(x, names[0])
        results = []
        for name in names:
            result = self.matrices[f"{name}.weight"].multiply(graph, x, name)
            if factor:
                result = graph.node("Mul", [result, factor], f"{name}/of_codes")
            results.append(self._biased(result, name, name))
        return results

    def _biased(self, product: str, weight: str, name: str) -> str:
        graph = self.graph
        if f"{weight}.scale" in self.vectors:
            product = graph.node("Mul", [product, self.vector(f"{weight}.scale")], f"{name}/scaled")
        if f"{weight}.bias" in self.vectors:
            product = graph.node("Add", [product, self.vector(f"{weight}.bias")], f"{name}/biased")
        return product

    def _rounded(self, x: str, name: str) -> tuple[str, str]:
        """Codes from -128 to 127 for each token, and the factor that makes values of them."""
        graph = self.graph
        magnitudes = graph.node("Abs", [x], f"{name}/magnitudes")
        most = graph.reduced("ReduceMax", magnitudes, f"{name}/most")
        bounded = graph.node("Max", [most, graph.number(_LEAST_MAGNITUDE)], f"{name}/bounded")
        steps = graph.node("Div", [graph.number(127), bounded], f"{name}/steps")
        scaled = graph.node("Mul", [x, steps], f"{name}/in_steps")
        whole = graph.node("Round", [scaled], f"{name}/whole")
        codes = graph.node("Clip", [whole, graph.number(-128), graph.number(127)], f"{name}/codes")
        return codes, graph.node("Div", [graph.number(1), steps], f"{name}/step")

    def _split(self, x: str, names: list[str], sizes: list[int]) -> list[str]:
        self.graph.node("Split", [x, self.graph.integers(*sizes)], names[0], more=names[1:], axis=-1)
        return names

    def _optional_norm(self, x: str, name: str) -> str:
        return self.norm(x, self.vector(f"{name}.weight"), name) if f"{name}.weight" in self.vectors else x

    def _norm_heads(self, x: str, name: str, num_heads: int) -> str:
        """The norm of each head, if the network has one."""
        if f"{name}.weight" not in self.vectors:
            return x
        graph, dim = self.graph, self.spec.head_dim
        heads = graph.node("Reshape", [x, graph.integers(0, 0, num_heads, dim)], f"{name}/heads")
        normed = self.norm(heads, self.vector(f"{name}.weight"), name)
        return graph.node("Reshape", [normed, graph.integers(0, 0, num_heads * dim)], f"{name}/joined")

    def vector(self, name: str) -> str:
        """A vector as an initializer."""
        return self.graph.tensor(Tensor.of(name, self.vectors[name].astype(self.graph.dtype)))


def past_name(layer: int, part: str) -> str:
    """The input with a layer's cache before. part: "key" or "value"."""
    return f"past_key_values.{layer}.{part}"


def present_name(layer: int, part: str) -> str:
    """The output with a layer's cache after."""
    return f"present.{layer}.{part}"
