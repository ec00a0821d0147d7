"""Writes a table into docs/models.md: which keys of config.json transformers obeys, and what lowbit makes of each.

    python docs/make_config_table.py [FAMILY ...]

For each family a tiny random network is made. One key of its config.json is changed at a time: transformers' logits
show whether it obeys the key, and lowbit's are compared with them. Exits with 1 if lowbit accepts a change and computes
other logits than transformers, if it accepts what transformers refuses, or if a key of transformers' class is not
tried. Needs the extra `oracle`. With families named, the table is printed instead.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

import lowbit

DOCS = Path(__file__).resolve().parent
BEGIN, END = "<!-- written by docs/make_config_table.py -->", "<!-- end of the keys -->"
BARD = Path(str(files("lowbit") / "data" / "bard"))

NUM_LAYERS, NUM_TOKENS, CONTEXT, HEAD_DIM = 3, 40, 64, 16
#: Logits that differ by less, of their range, are equal.
EQUAL = 1e-4
MISSING = object()
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2", "swish")

PLAIN: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
SIZES: dict[str, Any] = {
    "vocab_size": 2048,  # bard's, whose tokenizer goes with them
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 2046,
    "eos_token_id": 2046,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "rope_parameters": PLAIN,
}


class Family(NamedTuple):
    """A class of transformers, and how its config.json differs from SIZES."""

    model_type: str
    hf_class: str
    config: dict[str, Any]
    text_config: bool = False  #: the text model's settings are an object of their own; rotary embeddings are not tried


GEMMA = {
    "head_dim": HEAD_DIM,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "rope_parameters": {"full_attention": {**PLAIN, "rope_theta": 1e6}, "sliding_attention": PLAIN},
    "tie_word_embeddings": True,
}
ONLINE = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
FAMILIES = {
    "llama": Family("llama", "LlamaForCausalLM", {}),
    "mistral": Family("mistral", "MistralForCausalLM", {"sliding_window": None}),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", {}),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", {"head_dim": HEAD_DIM}),
    "gemma3": Family("gemma3_text", "Gemma3ForCausalLM", GEMMA),
    "gemma3 in text_config": Family("gemma3", "Gemma3ForConditionalGeneration", GEMMA, text_config=True),
    "phi3": Family("phi3", "Phi3ForCausalLM", {"original_max_position_embeddings": CONTEXT}),
    "bitnet": Family("bitnet", "BitNetForCausalLM", {"hidden_act": "relu2", "quantization_config": ONLINE}),
}


def scaling(kind: str, **more: Any) -> dict[str, Any]:
    """Settings of a rotary embedding of that type, those that it needs and `more`."""
    pairs = HEAD_DIM // 2
    needed = {
        "linear": {"factor": 3.0},
        "dynamic": {"factor": 3.0},
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
        "llama3": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
        "longrope": {
            "short_factor": [1 + 0.1 * i for i in range(pairs)],
            "long_factor": [1 + 0.5 * i for i in range(pairs)],
            "original_max_position_embeddings": 16,
        },
        "su": {
            "short_factor": [1 + 0.1 * i for i in range(pairs)],
            "long_factor": [1 + 0.5 * i for i in range(pairs)],
            "original_max_position_embeddings": 16,
        },
        "proportional": {"factor": 2.0, "partial_rotary_factor": 0.5},
    }.get(kind, {})
    return {"rope_type": kind, "rope_theta": 10000.0, **needed, **more}


def old(values: dict[str, Any]) -> dict[str, Any]:
    """rope_scaling of transformers 4."""
    return {"type" if key == "rope_type" else key: value for key, value in values.items() if key != "rope_theta"}


#: rope_parameters: label -> value. The label names the type and the key that is changed.
ROPES: dict[str, dict[str, Any]] = {
    "rope_theta": scaling("default", rope_theta=500.0),
    "rope_type unknown": scaling("ntk"),
    **{kind: scaling(kind) for kind in ("linear", "dynamic", "yarn", "llama3", "longrope", "su", "proportional")},
    "linear, attention_factor": scaling("linear", attention_factor=1.5),
    "yarn, attention_factor": scaling("yarn", attention_factor=1.5),
    "yarn, attn_factor": scaling("yarn", attn_factor=1.5),
    "yarn, extrapolation_factor": scaling("yarn", extrapolation_factor=0.5),
    "yarn, beta_fast": scaling("yarn", beta_fast=4.0),
    "yarn, beta_slow": scaling("yarn", beta_slow=0.25),
    "yarn, beta_fast 0": scaling("yarn", beta_fast=0),
    "yarn, mscale": scaling("yarn", mscale=2.0),
    "yarn, mscale and mscale_all_dim": scaling("yarn", mscale=2.0, mscale_all_dim=0.5),
    "yarn, truncate false": scaling("yarn", truncate=False),
    "yarn, factor null": scaling("yarn", factor=None),
    "yarn, no original_max_position_embeddings": {
        key: value for key, value in scaling("yarn").items() if key != "original_max_position_embeddings"
    },
    "llama3, factor": scaling("llama3", factor=2.0),
    "llama3, low_freq_factor": scaling("llama3", low_freq_factor=0.5),
    "llama3, high_freq_factor": scaling("llama3", high_freq_factor=16.0),
    "llama3, no original_max_position_embeddings": {
        key: value for key, value in scaling("llama3").items() if key != "original_max_position_embeddings"
    },
    "longrope, factor": scaling("longrope", factor=9.0),
    "longrope, attention_factor": scaling("longrope", attention_factor=1.5),
    "mrope_section": scaling("default", mrope_section=[2, 3, 3]),
    **{
        f"{kind}, partial_rotary_factor": scaling(kind, partial_rotary_factor=0.5)
        for kind in ("default", "linear", "yarn", "llama3")
    },
}
WINDOWS: list[dict[str, Any]] = [
    {"sliding_window": 8},
    {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1},
    {"sliding_window": 8, "use_sliding_window": True},
    {"sliding_window": None, "use_sliding_window": True, "max_window_layers": 0},
    {"max_window_layers": 1},
    {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "full_attention"]},
    {
        "sliding_window": 8,
        "use_sliding_window": True,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
    {"sliding_window": 8, "layer_types": ["chunked_attention", "full_attention", "full_attention"]},
    {"sliding_window_pattern": 2},
    {"sliding_window_pattern": 2, "layer_types": MISSING},
    {"layer_types": MISSING},
]
#: config.json of a model that also sees, beside text_config.
VISION: dict[str, Any] = {
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
    "mm_tokens_per_image": 4,
}
#: Label of a case -> families where lowbit differs from transformers 5 on purpose, and the cell of the table.
NULL = "obeyed: as if missing; transformers 5 refuses null"
OLD_TYPE = "obeyed, as by transformers 4; 5 ignores `type` here"
DELIBERATE = {
    "`num_key_value_heads` null": (("mistral", "gemma3", "gemma3 in text_config"), NULL),
    "`attn_logit_softcapping` 1.0": (("gemma3", "gemma3 in text_config"), "obeyed; transformers 5 ignores it"),
    "`final_logit_softcapping` 1.0": (("gemma3 in text_config",), "obeyed, as in the text model alone"),
    **{f"`rope_scaling`: {kind}": (("gemma3",), OLD_TYPE) for kind in ("linear", "yarn", "llama3")},
}
#: Keys of transformers' classes that say nothing of a text model.
UNTRIED = {
    *("architectures", "text_config", "vision_config", "mm_tokens_per_image", "image_token_index"),
    *("boi_token_index", "eoi_token_index", "return_dict", "rope_parameters"),
}
#: Other keys, and keys that only work together.
CASES: list[dict[str, Any]] = [
    {"vocab_size": 2047},
    {"hidden_size": 128},
    {"intermediate_size": 64},
    {"num_hidden_layers": 2, "layer_types": MISSING},
    {"num_attention_heads": 2, "head_dim": MISSING},
    {"num_key_value_heads": 1},
    {"num_key_value_heads": 4},
    {"num_key_value_heads": None},
    {"num_key_value_heads": MISSING},
    {"head_dim": 8},
    {"head_dim": 32},
    {"head_dim": None},
    *({name: act} for name in ("hidden_act", "hidden_activation") for act in ACTIVATIONS),
    {"max_position_embeddings": 4096},
    {"rms_norm_eps": 0.1},
    {"rms_norm_eps": MISSING},
    {"attention_bias": True},
    {"mlp_bias": True},
    {"tie_word_embeddings": True},
    {"tie_word_embeddings": False},
    {"tie_word_embeddings": MISSING},
    {"rope_theta": 500.0},
    {"rope_theta": 500.0, "rope_parameters": MISSING},
    {"rope_parameters": MISSING},
    {"rope_theta": 500.0, "rope_scaling": old(scaling("linear"))},
    {"rope_local_base_freq": 500.0},
    {"rope_local_base_freq": 500.0, "rope_parameters": MISSING},
    {"partial_rotary_factor": 0.5},
    {"original_max_position_embeddings": 8, "rope_parameters": scaling("yarn")},
    {"original_max_position_embeddings": MISSING, "rope_parameters": scaling("longrope")},
    {"rope_interleaved": True},
    {"no_rope_layers": [0, 1, 0]},
    {"no_rope_layer_interval": 2},
    *WINDOWS,
    {"query_pre_attn_scalar": 64},
    {"attn_logit_softcapping": 1.0},
    {"final_logit_softcapping": 1.0},
    {"use_bidirectional_attention": True},
    {"is_causal": False},
    {"is_decoder": False},
    {"attention_multiplier": 0.5},
    {"residual_multiplier": 0.5},
    {"embedding_multiplier": 2.0},
    {"logits_scaling": 2.0},
    {"per_layer_config": {"1": {"intermediate_size": 64}}},
    {"pretraining_tp": 2},
    {"attention_dropout": 0.5},
    {"resid_pdrop": 0.5},
    {"embd_pdrop": 0.5},
    {"pad_token_id": 5},
    {"bos_token_id": 7},
    {"eos_token_id": [7, 8]},
    {"dtype": "float16"},
    {"torch_dtype": "float16"},
    {"initializer_range": 0.5},
    {"use_cache": False},
    {"chunk_size_feed_forward": 4},
    {"is_encoder_decoder": True},
    {"output_hidden_states": True},
    {"id2label": {"0": "a"}, "label2id": {"a": 0}},
    {"problem_type": "regression"},
    {"transformers_version": "4.0.0"},
]


class Case(NamedTuple):
    """A change of config.json, or of the tensors."""

    label: str
    changes: dict[str, Any]
    names: tuple[str, ...] = ()  #: of which a refusal must have one
    without: str = ""  #: a tensor that the file lacks
    biased: str = ""  #: a matrix that has a bias in the file, whatever config.json says


def cases(family: Family) -> Iterator[Case]:
    """What is tried with a family."""
    for changes in CASES:
        names = (*changes, "rope_type") if "rope_scaling" in changes else tuple(changes)
        yield Case(shown(changes), changes, names)
    tied = {"tie_word_embeddings": True}
    yield Case(f"{shown(tied)}, no lm_head.weight", tied, tuple(tied), without="lm_head.weight")
    for part in ("self_attn.q_proj", "mlp.up_proj"):
        yield Case(f"{part}.bias without a switch", {}, biased=part)
    if not family.text_config:
        yield from rope_cases(family.config.get("rope_parameters", PLAIN))


def rope_cases(usual: dict[str, Any]) -> Iterator[Case]:
    """Rotary embeddings. usual: the family's rope_parameters."""
    by_layers = "full_attention" in usual
    for label, rope in ROPES.items():
        names = ("rope_type", "original_max_position_embeddings", *label.replace(",", "").split())
        value = {**usual, "full_attention": rope} if by_layers else rope
        yield Case(f"`rope_parameters`: {label}", {"rope_parameters": value}, names)
        if "," in label:
            continue
        if by_layers:
            value = {**usual, "sliding_attention": rope}
            yield Case(f"`rope_parameters` of sliding_attention: {label}", {"rope_parameters": value}, names)
        changes = {"rope_parameters": MISSING, "rope_theta": rope["rope_theta"], "rope_scaling": old(rope)}
        yield Case(f"`rope_scaling`: {label}", changes, names)
    if not by_layers:
        value = {"full_attention": scaling("linear"), "sliding_attention": PLAIN}
        yield Case("`rope_parameters` by types of layers", {"rope_parameters": value}, ("rope_parameters",))
    value = {key: value for key, value in scaling("linear").items() if key != "rope_theta"}
    yield Case("`rope_parameters` and `rope_scaling`", {"rope_scaling": value}, ("rope_type",))


def shown(changes: dict[str, Any]) -> str:
    """A change as the table has it."""
    parts = []
    for key, value in changes.items():
        if value is MISSING:
            parts.append(f"no `{key}`")
        elif isinstance(value, (dict, list)):
            text = value.get("rope_type", "") if isinstance(value, dict) else ", ".join(map(str, value))
            parts.append(f"`{key}` {text}".rstrip())
        else:
            parts.append(f"`{key}` {json.dumps(value).strip(chr(34))}")
    return ", ".join(parts)


class Network:
    """A family's network, of which config.json changes."""

    def __init__(self, family: Family, folder: Path) -> None:
        self.family = family
        self.folder = folder
        self.config = SIZES | family.config
        self.tensors: dict[str, torch.Tensor] = {}
        self.base, error = self.logits(Case("", {}))
        assert self.base is not None, error

    def write(self, case: Case) -> Path:
        """The checkpoint with that change, with all tensors that transformers wants for it."""
        config = {key: value for key, value in {**self.config, **case.changes}.items() if value is not MISSING}
        head = {"architectures": [self.family.hf_class], "model_type": self.family.model_type}
        if self.family.text_config:
            config = {"text_config": {"model_type": "gemma3_text", **config}, **VISION}
        path = self.folder / "config.json"
        path.write_text(json.dumps({**head, **config}))
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(BARD / file, self.folder)
        model_class = getattr(transformers, self.family.hf_class)
        with torch.device("meta"):
            wanted = model_class(model_class.config_class.from_pretrained(self.folder)).state_dict()
        if {**self.config, **case.changes}["tie_word_embeddings"] is True and self.config["tie_word_embeddings"]:
            del wanted["lm_head.weight"]
        for name in [name for name in wanted if name.endswith(f"layers.0.{case.biased}.weight")]:
            wanted[name.removesuffix("weight") + "bias"] = wanted[name][:, 0]
        for name, meta in wanted.items():
            if name not in self.tensors or self.tensors[name].shape != meta.shape:
                self.tensors[name] = drawn(name, meta.shape, self.family)
        kept = {name: self.tensors[name] for name in wanted if name != case.without}
        save_file(kept, self.folder / "model.safetensors", {"format": "pt"})
        return self.folder

    def logits(self, case: Case) -> tuple[np.ndarray | None, str]:
        """transformers' logits with that change of config.json, or its error."""
        try:
            folder = self.write(case)
            network = getattr(transformers, self.family.hf_class).from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager"
            )
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                return np.stack([network.eval()(ids[None]).logits[0].numpy() for ids in self.prompts()]), ""
        except Exception as error:  # of any kind: transformers has no type for what it refuses
            return None, f"{type(error).__name__}: {error}"

    def lowbit_logits(self) -> np.ndarray:
        """lowbit's logits of the checkpoint that lies there."""
        model = lowbit.load(self.folder, compute="f32")
        return np.stack([model.logits(ids.numpy()) for ids in self.prompts()])

    def prompts(self) -> Iterator[torch.Tensor]:
        """Token ids. With activations of 8 bits, equal networks compute other logits now and then: then several."""
        is_rounded = self.family.hf_class.startswith("BitNet")
        for seed in range(8 if is_rounded else 1):
            random = torch.Generator().manual_seed(seed)
            yield torch.randint(2046, (NUM_TOKENS // (4 if is_rounded else 1),), generator=random)

    def verdict(self, case: Case) -> str:
        """A cell of the table. Begins with ** where lowbit is wrong."""
        theirs, error = self.logits(case)
        assert self.base is not None
        obeys = theirs is not None and not equal(theirs, self.base)
        try:
            ours = self.lowbit_logits()
        except lowbit.Error as refusal:
            if theirs is None:
                return "refused by both"
            if obeys and not any(name in str(refusal) for name in case.names):
                return f"**refused without its name: {refusal}**"
            return "refused" if obeys else "refused, ignored by transformers"
        if theirs is None:
            return f"**accepted, not by transformers: {error[:200]}**"
        if not equal(ours, theirs):
            return f"**{'ignored' if equal(ours, self.base) else 'differs'}**"
        return "obeyed" if obeys else "no effect"


def drawn(name: str, shape: torch.Size, family: Family) -> torch.Tensor:
    """Random weights, the same for the same name. Norms and biases are of use only where they are not one and zero."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if "norm" in name:
        return 0.3 * values + (0.0 if "Gemma" in family.hf_class else 1.0)
    return values * (0.3 if name.endswith("bias") else 0.2)


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether logits of at least one prompt are equal in float32."""
    if a.shape != b.shape:
        return False
    return any(np.abs(x - y).max() <= EQUAL * np.ptp(y, axis=1).min() for x, y in zip(a, b, strict=True))


def verdicts(name: str) -> dict[str, str]:
    """Label of each case -> a family's cell of the table."""
    family = FAMILIES[name]
    torch.set_num_threads(1)
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = Network(family, Path(folder))
        found = {case.label: network.verdict(case) for case in cases(family)}
    for label, (families, words) in DELIBERATE.items():
        if name in families:
            found[label] = words if found[label].startswith("**") else f"**no longer: {words}**"
    tried = {key for changes in CASES for key in changes}
    fields = dataclasses.fields(getattr(transformers, family.hf_class).config_class)
    return found | {f.name: "**not tried**" for f in fields if f.name not in tried | UNTRIED}


def page(columns: dict[str, dict[str, str]]) -> str:
    """The table."""
    lines = ["| change | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for label in dict.fromkeys(label for column in columns.values() for label in column):
        lines.append(f"| {label} | " + " | ".join(column.get(label, "") for column in columns.values()) + " |")
    return "\n".join(lines)


def main(names: list[str]) -> int:
    """Makes the page, or prints the table of some families. Returns how many cells are wrong."""
    columns = {name: verdicts(name) for name in names or FAMILIES}
    if names:
        print(page(columns))
    else:
        path = DOCS / "models.md"
        before, rest = path.read_text().split(BEGIN)
        path.write_text("".join([before, BEGIN, "\n\n", page(columns), "\n\n", END, rest.split(END)[1]]))
    wrong = [f"{name}: {label}: {v}" for name, c in columns.items() for label, v in c.items() if v.startswith("**")]
    print("\n".join(wrong), file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
