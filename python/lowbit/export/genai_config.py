"""genai_config.json: how onnxruntime-genai 0.18 runs a model.

| key | without it |
| --- | --- |
| model.type, context_length, vocab_size, decoder.filename, decoder.head_size | an error |
| model.eos_token_id | a text ends at pad_token_id; without that, at token 0 |
| search.past_present_share_buffer | false: each token copies the caches; graphs that join the caches need that |
| search.max_length | context_length |
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lowbit.arch.model_spec import ModelSpec

#: GGUF architecture -> a type that genai knows. The type matters only to LongRoPE: a phi3 model computes the caches
#: again when a text becomes longer than the original context.
TYPES = {"gemma3": "gemma3_text", "llama": "llama", "phi3": "phi3", "qwen2": "qwen2", "qwen3": "qwen3"}
_ANY_TYPE = "decoder"
#: The keys without which genai refuses a folder: type and meaning.
REQUIRED: dict[str, tuple[type, str]] = {
    "model.type": (str, "the name of a kind of model"),
    "model.context_length": (int, "the most tokens of a text"),
    "model.vocab_size": (int, "the number of logits"),
    "model.decoder.filename": (str, "the model's file"),
    "model.decoder.head_size": (int, "the number of values of a head"),
}
#: Key of genai -> default of `search`. generation_config.json has the same names.
_SEARCH = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
}
#: Key of model.decoder.inputs and .outputs -> name in the graph, with the layer's number.
_INPUTS = {
    "input_ids": "input_ids",
    "attention_mask": "attention_mask",
    "position_ids": "position_ids",
    "past_key_names": "past_key_values.%d.key",
    "past_value_names": "past_key_values.%d.value",
}
_OUTPUTS = {
    "logits": "logits",
    "present_key_names": "present.%d.key",
    "present_value_names": "present.%d.value",
}


class GraphFacts(NamedTuple):
    """What the files beside a model say about it.

    file: the model's file. inputs, outputs: names of the graph. shares_cache: whether the caches before and after a run
    may be the same buffer.
    """

    file: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    shares_cache: bool


def genai_config(
    spec: ModelSpec,
    generation: Mapping[str, Any],
    graph: GraphFacts,
    provider: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """The content of genai_config.json.

    spec: the network. generation: the content of generation_config.json (`conversion.export_hf.generation_config`).
    provider: name of an execution provider -> its options; None: the CPU's.
    """
    return {
        "model": {
            "type": TYPES.get(spec.architecture, _ANY_TYPE),
            "context_length": spec.context_length,
            "vocab_size": spec.vocab_size,
            **_token_ids(generation, spec.vocab_size),
            "decoder": {
                "filename": graph.file,
                "hidden_size": spec.hidden_size,
                "head_size": spec.head_dim,
                "num_attention_heads": spec.num_heads,
                "num_key_value_heads": spec.num_kv_heads,
                "num_hidden_layers": spec.num_layers,
                "inputs": _names(_INPUTS, graph.inputs),
                "outputs": _names(_OUTPUTS, graph.outputs),
                "session_options": {"provider_options": [] if provider is None else [provider]},
            },
        },
        "search": {
            **{key: generation.get(key, default) for key, default in _SEARCH.items()},
            "max_length": spec.context_length,
            "past_present_share_buffer": graph.shares_cache,
        },
    }


def _token_ids(generation: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """Ids that have logits; others are refused. Texts of different lengths in a batch need a token for padding."""
    ends = [i for i in generation.get("eos_token_id") or [] if i < vocab_size]
    ids = {key: generation.get(key) for key in ("bos_token_id", "pad_token_id")}
    if ids["pad_token_id"] is None and ends:
        ids["pad_token_id"] = ends[0]
    kept = {key: int(i) for key, i in ids.items() if i is not None and i < vocab_size}
    return {**kept, "eos_token_id": ends} if ends else kept


def _names(names: Mapping[str, str], found: Sequence[str]) -> dict[str, str]:
    """The names that the graph has."""
    first = {re.sub(r"\.0\.", ".%d.", name) for name in found}
    return {key: name for key, name in names.items() if name in first}
