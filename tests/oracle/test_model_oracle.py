"""Parity with transformers in float32, for tiny random checkpoints of every architecture and its variants."""

from __future__ import annotations

import copy
import shutil
from importlib.resources import files
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_checkpoint import make_checkpoint
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.integrations.bitnet import AutoBitLinear
from transformers.models.gemma3 import Gemma3ForCausalLM
from transformers.models.llama import LlamaForCausalLM
from transformers.models.mistral import MistralForCausalLM
from transformers.models.phi3 import Phi3ForCausalLM
from transformers.models.qwen2 import Qwen2ForCausalLM
from transformers.models.qwen3 import Qwen3ForCausalLM

import lowbit

pytestmark = pytest.mark.oracle
torch.set_num_threads(1)  # faster than many for networks as small as these

BARD = Path(str(files("lowbit") / "data" / "bard"))
SIZES = {
    "vocab_size": 2048,  # bard's, whose tokenizer goes with them
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 2046,
    "eos_token_id": 2046,
    "pad_token_id": None,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "attn_implementation": "eager",
}
PLAIN = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
LLAMA3 = {
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
}
LINEAR = {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}}
YARN = {
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 128,
    }
}
LLAMA, QWEN2, QWEN3, MISTRAL, GEMMA3, PHI3 = (
    (LlamaConfig, LlamaForCausalLM),
    (Qwen2Config, Qwen2ForCausalLM),
    (Qwen3Config, Qwen3ForCausalLM),
    (MistralConfig, MistralForCausalLM),
    (Gemma3TextConfig, Gemma3ForCausalLM),
    (Phi3Config, Phi3ForCausalLM),
)
GEMMA = {
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 16,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "tie_word_embeddings": True,
}


def longrope(partial: float, head_dim: int = 16) -> dict[str, Any]:
    """Phi's, switched at 64 tokens."""
    pairs = int(head_dim * partial) // 2
    return {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1 + 0.05 * i for i in range(pairs)],
            "long_factor": [1 + 2.0 * i for i in range(pairs)],
            "original_max_position_embeddings": 64,
            "partial_rotary_factor": partial,
        },
        "original_max_position_embeddings": 64,
        "partial_rotary_factor": partial,
    }


NETWORKS = {
    "llama": (LLAMA, PLAIN),
    "llama-tied": (LLAMA, {**PLAIN, "tie_word_embeddings": True}),
    "llama-all-heads": (LLAMA, {**PLAIN, "num_key_value_heads": 6}),
    "llama-one-key": (LLAMA, {**PLAIN, "num_key_value_heads": 1}),
    "llama-wide-heads": (LLAMA, {**PLAIN, "head_dim": 40}),
    "llama-biased": (LLAMA, {**PLAIN, "attention_bias": True, "mlp_bias": True}),
    "llama3": (LLAMA, LLAMA3),
    "llama3-tied-wide-heads": (LLAMA, {**LLAMA3, "tie_word_embeddings": True, "head_dim": 64}),
    "mistral": (MISTRAL, {**PLAIN, "sliding_window": None}),
    "mistral-window-wide-heads": (MISTRAL, {**PLAIN, "sliding_window": 16, "head_dim": 40}),
    "llama-linear": (LLAMA, LINEAR),
    "llama-yarn": (LLAMA, YARN),
    "llama-yarn-tuned": (
        LLAMA,
        {"rope_parameters": {**YARN["rope_parameters"], "beta_fast": 4.0, "beta_slow": 0.5, "attention_factor": 1.3}},
    ),
    "qwen2": (QWEN2, PLAIN),
    "qwen2-yarn": (QWEN2, {**YARN, "tie_word_embeddings": True}),
    "qwen2-window": (QWEN2, {**PLAIN, "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}),
    "gemma3": (GEMMA3, GEMMA),
    "gemma3-scaled": (
        GEMMA3,
        {
            **GEMMA,
            "query_pre_attn_scalar": 24,
            "head_dim": 32,
            "final_logit_softcapping": 8.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
    "gemma3-all-windows": (GEMMA3, {**GEMMA, "layer_types": ["sliding_attention"] * 3}),
    "gemma3-no-windows": (GEMMA3, {**GEMMA, "layer_types": ["full_attention"] * 3}),
    "gemma3-every-sixth": (
        GEMMA3,
        {
            **GEMMA,
            "num_hidden_layers": 7,
            "layer_types": [*["sliding_attention"] * 5, "full_attention", "sliding_attention"],
        },
    ),
    "phi3.5": (PHI3, {**longrope(1.0), "sliding_window": 200}),
    "phi4-mini": (PHI3, {**longrope(0.75), "tie_word_embeddings": True, "sliding_window": None}),
    "phi3-window": (PHI3, {**PLAIN, "sliding_window": 16}),
    "qwen3": (QWEN3, PLAIN),
    "qwen3-window": (
        QWEN3,
        {
            **PLAIN,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 24,
            "max_window_layers": 1,
        },
    ),
    "qwen3-wide-heads": (QWEN3, {**PLAIN, "head_dim": 128}),
    "qwen3-biased": (QWEN3, {**PLAIN, "attention_bias": True}),
    "qwen3-theta": (QWEN3, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rms_norm_eps": 1e-6}),
}


def make_network(name: str) -> PreTrainedModel:
    (config_class, model_class), options = NETWORKS[name]
    torch.manual_seed(len(name))
    model = model_class(config_class(**copy.deepcopy({**SIZES, **options}))).eval()
    # Fresh networks have norms of one and biases of zero, which would hide that they are missing.
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key or key.endswith("bias"):
                parameter += 0.3 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module", params=NETWORKS)
def network(request, tmp_path_factory) -> tuple[PreTrainedModel, Path, Path]:
    """transformers' network, its checkpoint, and the GGUF file that lowbit makes of it."""
    folder = tmp_path_factory.mktemp(request.param)
    model = make_network(request.param)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BARD / file, folder)
    gguf = folder / "model.gguf"
    lowbit.convert(folder, gguf, format="f32", verify=False, provenance=False)
    return model, folder, gguf


@pytest.fixture(params=["folder", "gguf"])
def source(request, network) -> Path:
    return network[1] if request.param == "folder" else network[2]


def random_ids(num: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SIZES["vocab_size"], num)


def oracle_logits(model: PreTrainedModel, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(ids)[None]).logits[0].numpy()


def oracle_greedy(model: PreTrainedModel, ids: np.ndarray, num: int) -> list[int]:
    """By transformers' own loop, which also decides when a sequence is computed anew."""
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        out = model.generate(torch.tensor(ids)[None], max_new_tokens=num, do_sample=False, pad_token_id=0)
    return out[0, len(ids) :].tolist()


def difference(logits: np.ndarray, expected: np.ndarray) -> float:
    """The largest, of the logits' range."""
    assert logits.shape == expected.shape
    return float(np.abs(logits - expected).max() / np.ptp(expected, axis=1).min())


def test_logits(network, source, record_property):
    """Whole, in pieces, and as several sequences in one batch, beyond the positions that llama3 was made for first."""
    model = lowbit.load(source, compute="f32")
    ids = [random_ids(num, seed=num) for num in (300, 70, 5)]
    expected = [oracle_logits(network[0], s) for s in ids]
    found = [difference(model.logits(s), e) for s, e in zip(ids, expected, strict=True)]
    at = 100  # sequences of our own, away from those that the model hands out
    model = lowbit.load(source, compute="f32", max_sequences=3)
    for a, b in pairwise([0, 1, 63, 64, 130, 300]):
        logits = model.forward(ids[0][a:b], np.arange(a, b), np.full(b - a, at), expected_length=300)
        found.append(difference(logits, expected[0][a:b]))
    model.truncate(at)
    order = sorted((position, i) for i, s in enumerate(ids) for position in range(len(s)))
    positions, sequences = (np.array(part) for part in zip(*order, strict=True))
    logits = model.forward([ids[i][position] for position, i in order], positions, at + sequences)
    found += [difference(logits[sequences == i], e) for i, e in enumerate(expected)]
    record_property("logits", max(found))
    assert max(found) < 1e-4


def test_greedy_tokens(network, source):
    model = lowbit.load(source, compute="f32")
    for num in (3, 90):
        ids = random_ids(num, seed=10 + num)
        tokens = list(model.tokens(ids, max_tokens=64, ignore_eos=True))
        assert tokens == oracle_greedy(network[0], ids, 64)


def test_positions_of_the_context_and_beyond(record_property):
    """bard at every position it was trained on, and at the next."""

    ids = random_ids(1100, seed=5)
    expected = oracle_logits(AutoModelForCausalLM.from_pretrained(BARD, dtype=torch.float32), ids)
    found = difference(lowbit.load(BARD, compute="f32", context=1100).logits(ids), expected)
    record_property("logits", found)
    assert found < 1e-4


def bitnet_inputs(network: torch.nn.Module) -> dict[str, np.ndarray]:
    """Where a BitNet of transformers will leave what goes into its matrices."""
    names = {"q_proj": "attn_q", "o_proj": "attn_output", "gate_proj": "ffn_gate", "down_proj": "ffn_down"}
    seen: dict[str, np.ndarray] = {}
    for path, module in network.named_modules():
        *_, layer, _, name = ["", "", "", *path.split(".")]
        if isinstance(module, AutoBitLinear) and name in names:
            key = f"blk.{layer}.{names[name]}.weight"
            module.register_forward_pre_hook(lambda _, x, key=key: seen.update({key: x[0][0].numpy().copy()}))
    return seen


def flips(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether 8-bit codes of equal activations differ, or may: where a value is on the edge between two, both sides'
    scaling in float32, which has two roundings, decides."""
    scaled = [127 * x.astype(np.float64) / np.abs(x).max(axis=1, keepdims=True) for x in (ours, theirs)]
    assert np.abs(scaled[0] - scaled[1]).max() < 1e-3
    differ = np.rint(scaled[0]) != np.rint(scaled[1])
    from_edge = np.abs(scaled[1] % 1 - 0.5)
    assert (from_edge[differ] < 1e-3).all()
    return bool(differ.any() or (from_edge < 2.0**-22 * np.abs(scaled[1])).any())


@pytest.fixture(scope="module", params=product(["bitnet", "bitnet-bf16"], ["folder", "gguf"]), ids="-".join)
def bitnet(request, tmp_path_factory):
    """A BitNet of transformers, and what lowbit loads."""
    form, kind = request.param
    path = tmp_path_factory.mktemp("bitnet")
    source = folder = make_checkpoint(path / "a", form, hidden=256, ffn=256, heads=4, kv_heads=2)
    if kind == "gguf":
        source = path / "a.gguf"
        lowbit.convert(folder, source, format="f32", verify=False, provenance=False)
    # transformers unpacks weights only where it loads them as bfloat16.
    dtype = torch.bfloat16 if form == "bitnet" else torch.float32
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    with torch.compiler.set_stance("force_eager"):  # else transformers' rounding needs a compiler, and its time
        yield torch.nn.Module.float(network).eval(), source


def test_bitnet_logits(bitnet, record_property):
    """Equal as long as all codes of activations are. Where one is on an edge, the order of a sum decides, and the rest
    of the sequence is another calculation: few sequences may have one."""
    network, source = bitnet
    theirs, ours = bitnet_inputs(network), dict[str, np.ndarray]()
    model = lowbit.load(source, compute="f32")
    model.observe(lambda name, x: ours.update({name: x.copy()}))
    found = []
    for seed in range(30):
        ids = np.random.RandomState(seed).randint(0, 288, 12)
        expected = oracle_logits(network, ids)
        model.truncate(0)
        logits = model.forward(ids, np.arange(12), np.zeros(12, int))
        assert len(theirs) == 8
        if not any(flips(ours[name], x) for name, x in theirs.items()):
            found.append(difference(logits, expected))
    record_property("logits", max(found))
    assert len(found) >= 15
    assert max(found) < 1e-4


@pytest.mark.parametrize("seed", [8, 11])
def test_bitnet_greedy_tokens(bitnet, seed):
    """Prompts after which the best token always leads by 0.3 % of the logits' range, codes on an edge or not."""
    network, source = bitnet
    ids = np.random.RandomState(seed).randint(0, 288, 8)
    tokens = list(lowbit.load(source, compute="f32").tokens(ids, max_tokens=64, ignore_eos=True))
    assert tokens == oracle_greedy(network, ids, 64)
