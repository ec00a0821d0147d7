"""Names of weights in the graphs of language models, as names of GGUF tensors.

| graph | node or initializer | GGUF tensor |
| --- | --- | --- |
| of `lowbit.export_onnx` | blk.0.attn_q.weight, blk.0.attn_q.weight_codes | blk.0.attn_q.weight |
| of onnxruntime-genai's builder | /model/layers.0/attn/q_proj/MatMul_Q4 | blk.0.attn_q.weight |
| | model.layers.0.input_layernorm.weight | blk.0.attn_norm.weight |
"""

from __future__ import annotations

import re

from lowbit.arch.base import Architecture

#: The product of queries, keys and values, which the builder fuses, and its parts in order.
QKV = "attn_qkv"
QKV_PARTS = ("attn_q", "attn_k", "attn_v")
#: The product of the feed-forward network that some architectures have in one, which the builder splits, and its parts.
GATE_UP = "ffn_up"
GATE_UP_PARTS = ("gate", "up")
_OURS = re.compile(r"((?:blk\.\d{1,4}\.)?[a-z_]+\.(?:weight|bias|scale))(?:_[a-z_]+)?")
_BUILDER = re.compile(r"/?model[./]layers\.(\d{1,4})[./](.+)")


class GraphNames:
    """GGUF names of a network's weights. num_layers: of the network, whose last norm the builder counts as a layer."""

    def __init__(self, arch: Architecture, num_layers: int) -> None:
        self._names = {hf: gguf for hf, (_, gguf) in arch.table(num_layers).items()}
        self._num_layers = num_layers
        #: Whether the architecture has separate queries, keys and values.
        self.splits_qkv = f"blk.0.{QKV}.weight" not in self._names.values()
        #: Whether the architecture has gate and up in one matrix.
        self.joins_gate_up = "blk.0.ffn_gate.weight" not in self._names.values()

    def of(self, name: str) -> str | None:
        """The GGUF name for a node with a weight, or for an initializer; None for others."""
        if match := _OURS.fullmatch(name):
            return match[1]
        part = name.replace("/", ".").strip(".")
        if re.match(r"(?:model\.)?lm_head\b", part):
            return "output.weight"
        if part.startswith("model.embed_tokens"):
            return "token_embd.weight"
        match = _BUILDER.fullmatch(part) or _BUILDER.fullmatch(name)
        return None if match is None else self._of_layer(int(match[1]), match[2].replace("/", "."))

    def _of_layer(self, layer: int, part: str) -> str | None:
        if layer == self._num_layers:
            return "output_norm.weight" if part.startswith("final_norm") else None
        kind = "bias" if ".Add" in part or part.endswith(".bias") else "weight"
        part = re.sub(r"\.(MatMul|Add|layernorm|weight|bias).*", "", part)
        part = re.sub(r"^attn\.", "self_attn.", part)
        if part == "self_attn.qkv_proj" and self.splits_qkv:
            return f"blk.{layer}.{QKV}.{kind}"
        if self.joins_gate_up and part in ("mlp.gate_proj", "mlp.up_proj"):
            return f"blk.{layer}.{part.removeprefix('mlp.').removesuffix('_proj')}.{kind}"
        return self._names.get(f"model.layers.{layer}.{part}.{kind}")
