"""Parity with transformers in float32, for tiny random checkpoints of both architectures and their variants."""

from __future__ import annotations

import copy
import shutil
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, MistralConfig, PreTrainedModel, Qwen3Config
from transformers.models.llama import LlamaForCausalLM
from transformers.models.mistral import MistralForCausalLM
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
LLAMA, QWEN3, MISTRAL = (
    (LlamaConfig, LlamaForCausalLM),
    (Qwen3Config, Qwen3ForCausalLM),
    (MistralConfig, MistralForCausalLM),
)
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
    "qwen3": (QWEN3, PLAIN),
    "qwen3-tied": (QWEN3, {**PLAIN, "tie_word_embeddings": True}),
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
    lowbit.convert(folder, gguf, format="f32", progress=False)
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
    tokens = [*ids]
    with torch.no_grad():
        out = model(torch.tensor(ids)[None], use_cache=True)
        for _ in range(num):
            tokens.append(int(out.logits[0, -1].argmax()))
            out = model(torch.tensor([tokens[-1:]]), past_key_values=out.past_key_values, use_cache=True)
    return tokens[len(ids) :]


def check(logits: np.ndarray, expected: np.ndarray) -> None:
    """To 1e-4 of the logits' range."""
    assert logits.shape == expected.shape
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.ptp(expected, axis=1).min())


def test_logits(network, source):
    """Whole, in pieces, and as several sequences in one batch, beyond the positions that llama3 was made for first."""
    model = lowbit.load(source, compute="f32")
    ids = [random_ids(num, seed=num) for num in (300, 70, 5)]
    expected = [oracle_logits(network[0], s) for s in ids]
    for s, e in zip(ids, expected, strict=True):
        check(model.logits(s), e)
    at = 100  # sequences of our own, away from those that the model hands out
    model = lowbit.load(source, compute="f32", max_sequences=3)
    for a, b in pairwise([0, 1, 63, 64, 130, 300]):
        check(model.forward(ids[0][a:b], np.arange(a, b), np.full(b - a, at)), expected[0][a:b])
    model.truncate(at)
    order = sorted((position, i) for i, s in enumerate(ids) for position in range(len(s)))
    positions, sequences = (np.array(part) for part in zip(*order, strict=True))
    logits = model.forward([ids[i][position] for position, i in order], positions, at + sequences)
    for i, e in enumerate(expected):
        check(logits[sequences == i], e)


def test_greedy_tokens(network, source):
    model = lowbit.load(source, compute="f32")
    for num in (3, 90):
        ids = random_ids(num, seed=10 + num)
        tokens = list(model.tokens(ids, max_tokens=64, ignore_eos=True))
        assert tokens == oracle_greedy(network[0], ids, 64)


def test_all_positions_of_the_context():
    """bard at every position it was made for."""
    from transformers import AutoModelForCausalLM

    ids = random_ids(1024, seed=5)
    expected = oracle_logits(AutoModelForCausalLM.from_pretrained(BARD, dtype=torch.float32), ids)
    check(lowbit.load(BARD, compute="f32").logits(ids), expected)
