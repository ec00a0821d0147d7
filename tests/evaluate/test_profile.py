"""The profile of a step: its stages, their work against what the products are fed, and figures of given times."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import make_checkpoint

import lowbit
from lowbit.evaluate import profile as profiles
from lowbit.evaluate import work

BARD = Path(lowbit.__file__).parent / "data" / "bard"
IN_A_LAYER = ["query_key_value", "heads", "attention", "attention_output", "gate_up", "down"]
#: Weights of each stage, by the ends of their names.
WEIGHTS = {
    "query_key_value": ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_qkv"),
    "heads": ("q_norm", "k_norm"),
    "attention": (),
    "attention_output": ("attn_output", "attention_norm", "attn_sub_norm"),
    "gate_up": ("ffn_norm", "ffn_gate", "ffn_up"),
    "down": ("ffn_down", "ffw_norm", "ffn_sub_norm"),
}


@pytest.fixture(autouse=True)
def known_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "read_rate", lambda threads: 1e9 * threads)


@pytest.fixture
def bard() -> lowbit.Model:
    return lowbit.load(BARD, threads=2, max_sequences=2)


def expected_stages(layers: int) -> list[tuple[str, int | None]]:
    inner = [(stage, layer) for layer in range(layers) for stage in IN_A_LAYER]
    return [("embedding", None), *inner, ("logits", None)]


# --- Times --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("family", "layers"), [("qwen3", 2), ("gemma3", 7), ("phi3", 2), ("bitnet", 2)])
def test_each_stage_of_each_layer_is_timed_once_a_step(family: str, layers: int, threads: int, tmp_path: Path) -> None:
    model = lowbit.load(make_checkpoint(tmp_path / "m", family, layers=layers), threads=threads)
    for ids, start in (([1], 0), ([1, 2, 3], 2), ([1, 2, 3, 4, 5], 0)):
        times = model.stage_times(ids, start=start)
        assert [(stage, layer) for stage, layer, _ in times] == expected_stages(layers)
        assert all(0 <= seconds < math.inf for *_, seconds in times)
    assert [*work.stage_work(model, 1)] == expected_stages(layers)


def test_a_long_step_has_its_stages_once_for_each_512_tokens(bard: lowbit.Model) -> None:
    times = bard.stage_times(np.zeros(600, int))
    once = expected_stages(4)
    assert [(stage, layer) for stage, layer, _ in times] == once[:-1] + once


def test_the_logits_have_the_same_bits(bard: lowbit.Model) -> None:
    ids = np.array([5, 6, 7, 8], np.int32)
    arguments: Any = ids, np.arange(4, dtype=np.int32)
    owners = [np.full(4, sequence, np.int32) for sequence in (0, 1)]
    wants = np.ones(4, bool)
    plain = bard._core.forward(*arguments, owners[0], wants)
    logits, times = bard._core.forward_profiled(*arguments, owners[1], wants)
    assert len(times) == len(expected_stages(4))
    assert logits.tobytes() == plain.tobytes()


def test_a_model_is_used_as_before_and_afterwards() -> None:
    one, other = (lowbit.load(BARD, threads=2, max_sequences=1) for _ in range(2))
    text = one.generate("To be", max_tokens=8, ignore_eos=True)
    lowbit.profile(one, tokens=2, depth=3, repetitions=2)
    assert one.generate("To be", max_tokens=8, ignore_eos=True) == text
    assert other.generate("To be", max_tokens=8, ignore_eos=True) == text


def test_an_observer_is_not_timed(bard: lowbit.Model) -> None:
    seen: list[str] = []
    bard.stage_times([1])
    bard.observe(lambda name, x: seen.append(name))
    with pytest.raises(lowbit.InputError, match="the model has an observer, whose time would count: end it first"):
        lowbit.profile(bard)
    assert seen == []
    bard.logits([1])  # the profile before is over: nothing is refused or recorded
    assert len(seen) == 4 * 7 + 1
    bard.observe(None)
    assert len(bard.stage_times([1])) == len(expected_stages(4))


def test_what_is_before_the_step_is_read_once(bard: lowbit.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def feed(self: Any, sequence: int, held: list[int], ids: list[int], *rest: Any, **options: Any) -> Any:
        read.append(len(ids))
        return original(self, sequence, held, ids, *rest, **options)

    original = lowbit.Model._feed
    monkeypatch.setattr(lowbit.Model, "_feed", feed)
    lowbit.profile(bard, tokens=3, depth=20, repetitions=4)
    assert read == [20]


# --- Work ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "layers", "options"),
    [
        ("qwen3", 2, {"tied": True}),
        ("qwen3", 2, {"tied": False}),
        ("gemma3", 7, {}),
        ("phi3", 2, {}),
        ("bitnet", 2, {}),
        ("qwen2", 2, {}),
    ],
)
@pytest.mark.parametrize(("tokens", "start"), [(1, 0), (1, 30), (5, 0), (3, 25)])
def test_work_of_each_stage(
    family: str, layers: int, options: dict[str, Any], tokens: int, start: int, tmp_path: Path
) -> None:
    model = lowbit.load(make_checkpoint(tmp_path / "m", family, layers=layers, **options), threads=1)
    fed: Counter[str] = Counter()
    model.forward(np.zeros(start, int), np.arange(start), np.zeros(start, int), wants_logits=np.zeros(start, bool))
    model.observe(lambda name, x: fed.update({name: len(x) * math.prod(model.weights[name].shape)}))
    positions = np.arange(start, start + tokens)
    model.forward(np.zeros(tokens, int), positions, np.zeros(tokens, int), wants_logits=positions == positions[-1])
    model.observe(None)
    found = work.stage_work(model, tokens, start=start)
    left = dict(model.weights)
    for layer, window in enumerate(model.spec.windows):
        for stage, ends in WEIGHTS.items():
            of_stage = [
                name
                for name in model.weights
                if name.startswith(f"blk.{layer}.") and name.rsplit(".", 1)[0].endswith(ends or "no weight")
                if not (stage != "heads" and name.rsplit(".", 1)[0].endswith(WEIGHTS["heads"]))
            ]
            bytes_read = sum(left.pop(name).nbytes for name in of_stage)
            products = sum(fed.pop(name, 0) for name in of_stage)
            if stage == "attention":
                # Row i of the mask: what token i attends to.
                distance = positions[:, None] - np.arange(start + tokens)[None, :]
                mask = (distance >= 0) & ((distance < window) if window else True)
                products = int(mask.sum()) * 2 * model.spec.num_heads * model.spec.head_dim
                bytes_read = int(mask.any(0).sum()) * 2 * model.spec.num_kv_heads * model.spec.head_dim * 2
            assert found[stage, layer] == work.Work(bytes_read, products), stage
    row = model.weights["token_embd.weight"][:1].nbytes
    assert found["embedding", None] == work.Work(tokens * row, 0)
    output = "output.weight" if "output.weight" in left else "token_embd.weight"
    read = left[output].nbytes + left.pop("output_norm.weight").nbytes
    assert found["logits", None] == work.Work(read, fed.pop(output))
    tables = sum(left.pop(name).nbytes for name in [*left] if name.startswith("rope_factors_"))  # read by `load`
    assert (left.keys() - {"token_embd.weight", "output.weight"}, +fed) == (set(), Counter())
    if tokens == 1:
        assert sum(part.bytes_read for part in found.values()) + tables == work.step_bytes(model, [start + 1]) + row


# --- Figures ------------------------------------------------------------------------------------------------------


def test_figures(bard: lowbit.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of factor f takes f seconds in each stage, in layer 3 the double."""
    factors = iter([50.0, 1.0, 4.0, 2.0])

    def stage_times(self: Any, ids: Any, *, start: int) -> list[tuple[str, int | None, float]]:
        assert (len(ids), start) == (12, 7)
        factor = next(factors)
        return [(*stage, factor * (2 if stage[1] == 3 else 1)) for stage in expected_stages(4)]

    monkeypatch.setattr(lowbit.Model, "stage_times", stage_times)
    found = lowbit.profile(bard, tokens=5, depth=7, repetitions=3)
    assert (found.tokens, found.depth, found.repetitions, found.threads) == (5, 7, 3, 2)
    assert (found.model, found.architecture, found.read_limit_bytes_per_s) == (str(BARD), "qwen3", 2e9)
    inner = 6 * 5  # stages of three layers, and of one that counts twice
    step = 2.0 * (2 + inner)
    expected = work.stage_work(bard, 5, start=7)
    assert [(part.stage, part.layer) for part in found.layers] == expected_stages(4)[1:-1]
    assert [part.stage for part in found.stages] == ["embedding", *IN_A_LAYER, "logits"]
    assert (found.step.stage, found.step.seconds, found.step.share) == ("step", step, 1.0)
    for part in [*found.layers, *found.stages, found.step]:
        of_part = [
            work
            for (stage, layer), work in expected.items()
            if part.stage in (stage, "step") and part.layer in (layer, None)
        ]
        assert part.bytes_read == sum(work.bytes_read for work in of_part)
        assert part.multiply_adds == sum(work.multiply_adds for work in of_part)
        assert part.read_bytes_per_s == part.bytes_read / part.seconds
        assert part.multiply_adds_per_s == part.multiply_adds / part.seconds
        assert part.share == part.seconds / step
    assert {(part.layer == 3, part.seconds) for part in found.layers} == {(False, 2.0), (True, 4.0)}
    assert [part.seconds for part in found.stages] == [2.0, *[10.0] * 6, 2.0]


def test_a_path_is_loaded_with_the_options() -> None:
    found = lowbit.profile(BARD, repetitions=1, threads=1, compute="f32")
    assert (found.threads, found.compute, found.tokens, found.depth) == (1, "f32", 1, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "tokens: expected at least 1, got 0"),
        ({"depth": -1}, "depth: expected at least 0, got -1"),
        ({"repetitions": 0}, "repetitions: expected at least 1, got 0"),
        ({"tokens": 25, "depth": 1000}, r"1000 \+ 25 tokens: expected at most 1024, the model's context"),
        ({"threads": 1}, "threads, compute, mmap and like are those of the Model"),
        ({"compute": "f32"}, "threads, compute, mmap and like are those of the Model"),
        ({"like": "x.gguf"}, "threads, compute, mmap and like are those of the Model"),
        ({"mmap": False}, "threads, compute, mmap and like are those of the Model"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str, bard: lowbit.Model) -> None:
    with pytest.raises(lowbit.InputError, match=message):
        lowbit.profile(bard, **options)


def test_wrong_ids(bard: lowbit.Model) -> None:
    for ids, start, message in (
        ([], 0, "ids: expected at least one token"),
        ([1], 1, "start: expected 0 to 0, got 1"),
        ([1, 10**6], 1, "token 0 is 1000000"),
    ):
        with pytest.raises(lowbit.InputError, match=message):
            bard.stage_times(ids, start=start)
    with pytest.raises(lowbit.ContextFullError):
        bard.stage_times(np.zeros(1025, int))
    assert len(bard.stage_times([1, 2], start=1)) == len(expected_stages(4))
