"""Speeds: what is run and counted, with times that are given; work: against what the model's products are fed."""

from __future__ import annotations

import json
import math
import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import make_checkpoint

import lowbit
from lowbit.evaluate import bench as benches
from lowbit.evaluate import limits, work
from lowbit.evaluate.llama_bench import LlamaBench, program_of

BARD = Path(lowbit.__file__).parent / "data" / "bard"


@pytest.fixture(autouse=True)
def known_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benches, "read_rate", lambda threads: 1e9 * threads)


def load(folder: Path, family: str, **options: Any) -> lowbit.Model:
    return lowbit.load(make_checkpoint(folder / family, family, **options), threads=1, max_sequences=3)


# --- Work ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_the_embedding_table_counts_if_it_is_the_output_matrix(tied: bool, tmp_path: Path) -> None:
    model = load(tmp_path, "qwen3", tied=tied)
    names = {name for name in model.weights if tied or name != "token_embd.weight"}
    assert ("output.weight" in names) is not tied
    assert work.weight_bytes(model) == sum(model.weights[name].nbytes for name in names)


@pytest.mark.parametrize(("family", "layers"), [("qwen3", 2), ("gemma3", 7)])
def test_products_are_those_that_the_model_computes(family: str, layers: int, tmp_path: Path) -> None:
    model = load(tmp_path, family, layers=layers)
    seen: list[int] = []
    for tokens, start in ((5, 0), (3, 5)):
        seen.clear()
        model.observe(lambda name, x: seen.append(len(x) * math.prod(model.weights[name].shape)))
        positions = np.arange(start, start + tokens)
        model.forward(np.zeros(tokens, int), positions, np.zeros(tokens, int), wants_logits=positions == positions[-1])
        model.observe(None)
        # Row i of the mask: what token i attends to.
        attended = 0
        for window in model.spec.windows:
            distance = positions[:, None] - np.arange(start + tokens)[None, :]
            attended += int(((distance >= 0) & ((distance < window) if window else True)).sum())
        products = 2 * attended * model.spec.num_heads * model.spec.head_dim
        assert work.multiply_adds(model, tokens, start=start) == sum(seen) + products


def test_cached_bytes_end_at_the_window(tmp_path: Path) -> None:
    model = load(tmp_path, "gemma3", layers=7)
    window = max(model.spec.windows)
    assert 0 < window < 100
    assert model.spec.windows.count(0) == 1
    of_a_token = 2 * model.spec.num_kv_heads * model.spec.head_dim * 2  # keys and values in float16
    assert work.cache_bytes(model, 1) == 7 * of_a_token
    assert work.cache_bytes(model, 100) == (6 * window + 100) * of_a_token
    assert work.step_bytes(model, [1, 100]) == work.weight_bytes(model) + (7 + 6 * window + 100) * of_a_token


def test_exact_caches_have_twice_the_bytes(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m")
    sizes = [work.cache_bytes(lowbit.load(folder, threads=1, compute=compute), 10) for compute in ("int8", "f32")]
    assert sizes[1] == 2 * sizes[0] > 0


# --- Limits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", lowbit.simd.targets())
def test_limits_are_those_of_the_target_and_the_threads(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BUFFER_BYTES", 4 << 20)
    monkeypatch.setattr(limits, "PASSES", 1)
    with lowbit.simd.force(target):
        found = lowbit.machine_limits(2)
    assert (found.simd, found.threads) == (target, 2)
    rates = [found.read_bytes_per_s, found.read_huge_pages_bytes_per_s, found.int8_per_s, found.bf16_per_s]
    # No machine of today does 1e15 of these a second: a loop that the compiler removed would.
    assert all(0 < rate < 1e15 for rate in [*rates, found.f32_per_s])


def test_limits_check_their_arguments() -> None:
    for threads in (0, 1025, 1.5):
        with pytest.raises(lowbit.InputError, match="threads: expected"):
            lowbit.machine_limits(threads)  # type: ignore[arg-type]
    for arguments in ((0, False, 1, 1), (1, False, 0, 1), (1, False, 1, 0)):
        with pytest.raises(lowbit.InputError, match="expected"):
            lowbit._core.read_rate(*arguments)
    with pytest.raises(lowbit.InputError, match="expected int8, bf16 or f32, got int3"):
        lowbit._core.multiply_add_rate("int3", 1, 1)


# --- Runs ---------------------------------------------------------------------------------------------------------


class Recorded:
    """A model that remembers the calls of `forward` and `truncate`."""

    def __init__(self, model: lowbit.Model) -> None:
        self._model = model
        self.calls: list[tuple[list[int], list[int]]] = []
        self.lengths: dict[int, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(self, tokens: Any, positions: Any, sequences: Any, **options: Any) -> Any:
        self.calls.append(([*positions], [*sequences]))
        return self._model.forward(tokens, positions, sequences, **options)


def test_sequences_generate_together_at_their_depth(tmp_path: Path) -> None:
    model: Any = Recorded(load(tmp_path, "qwen3"))
    runs = benches.Runs(model, batch=2)
    steps = [([5, 5], [0, 1]), ([6, 6], [0, 1]), ([7, 7], [0, 1])]
    read = [([0, 1, 2, 3, 4], [sequence] * 5) for sequence in (0, 1)]
    assert runs.decode(3, 5) > 0
    assert model.calls == [*read, *steps]
    model.calls.clear()
    assert runs.prefill(4) > 0
    assert model.calls == [([0, 1, 2, 3], [2] * 4)]
    model.calls.clear()
    runs.decode(3, 5)
    assert model.calls == steps  # what comes before is read once
    model.calls.clear()
    runs.decode(1, 0)
    assert model.calls == [([0, 0], [0, 1])]


def test_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m")
    prefill, decode = iter([9.0, 1.0, 2.0, 4.0]), iter([9.0, 3.0, 2.0, 1.0])
    monkeypatch.setattr(benches.Runs, "prefill", lambda self, tokens: next(prefill))
    monkeypatch.setattr(benches.Runs, "decode", lambda self, new_tokens, depth: next(decode))
    found = lowbit.bench(folder, prompt_tokens=8, new_tokens=4, depth=2, batch=3, threads=2)
    assert (found.prompt_tokens, found.new_tokens, found.depth, found.batch) == (8, 4, 2, 3)
    assert (found.prefill_tokens_per_s, found.prefill_spread) == (4.0, 1.5)
    assert (found.decode_tokens_per_s, found.decode_spread) == (6.0, 1.0)
    model = lowbit.load(folder, threads=1)
    read = [work.step_bytes(model, [length] * 3) for length in (3, 4, 5, 6)]
    assert found.step_bytes == sum(read) / 4
    assert found.read_bytes_per_s == found.step_bytes * 2  # two steps a second
    assert found.read_limit_bytes_per_s == 2e9
    assert found.read_share == found.read_bytes_per_s / 2e9
    assert found.compared is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": -1}, "depth: expected at least 0, got -1"),
        ({"batch": 0}, "batch: expected 1 to 65535, got 0"),
        ({"depth": 1000, "new_tokens": 25}, r"1000 \+ 25 tokens: expected at most 1024"),
        ({"compare": "openvino=/x"}, "expected llama-bench=PATH, got openvino=/x"),
        ({"compare": "llama-bench="}, "expected llama-bench=PATH"),
        ({"compare": "llama-bench=/no/such/program"}, "/no/such/program: no such file"),
        ({"compare": f"llama-bench={sys.executable}"}, "bard: llama-bench reads GGUF files only"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(lowbit.InputError, match=message):
        lowbit.bench(BARD, repetitions=1, threads=1, **options)


# --- llama-bench --------------------------------------------------------------------------------------------------


def program(folder: Path, body: str) -> Path:
    """A program that prints --n-depth for --help, and else runs `body` with `seconds` of the test."""
    path = folder / "llama-bench"
    path.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        "if sys.argv[1:] == ['--help']: sys.exit(print('-d, --n-depth <n>'))\n"
        f"open({str(folder / 'calls')!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
        "seconds = int(sys.argv[sys.argv.index('-p') + 1]) + 10 * int(sys.argv[sys.argv.index('-n') + 1])\n" + body
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


RESULT = "print(json.dumps([{'samples_ns': [seconds * 10**9]}]))"


def test_llama_bench_runs_in_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bard_gguf: Path) -> None:
    path, calls = program(tmp_path, RESULT), []
    prefill, decode = iter([9.0, 4.0, 2.0, 1.0]), iter([9.0, 10.0, 20.0, 30.0])

    def run(kind: str, times: Any) -> float:
        done = (tmp_path / "calls").read_text().count("\n") if (tmp_path / "calls").exists() else 0
        calls.append((kind, done))
        return next(times)

    monkeypatch.setattr(benches.Runs, "prefill", lambda self, tokens: run("prefill", prefill))
    monkeypatch.setattr(benches.Runs, "decode", lambda self, new_tokens, depth: run("decode", decode))
    found = lowbit.bench(bard_gguf, prompt_tokens=8, new_tokens=4, depth=2, threads=1, compare=f"llama-bench={path}")
    assert calls == [(kind, i) for i, kind in enumerate(["prefill", "decode"] * 4)]
    common = ["-m", str(bard_gguf), "-t", "1", "-r", "1", "-o", "json"]
    tests = [["-p", "8", "-n", "0"], ["-p", "0", "-n", "4", "-d", "2"]]
    written = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert written == [common + test for test in tests * 4]
    peer = found.compared
    assert peer is not None
    assert (peer.program, peer.prefill_tokens_per_s, peer.decode_tokens_per_s) == (str(path), 1.0, 0.1)
    assert (peer.prefill_ratio, peer.decode_ratio) == (4.0, 2.0)  # medians of 8/4, 8/2, 8/1 and of 40/10, 40/20, 40/30
    assert peer.prefill_spread == 0


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ("print('no JSON')", lowbit.FormatError, "expected the JSON of llama-bench, found no JSON"),
        ("print(json.dumps([{'samples_ns': []}]))", lowbit.FormatError, "expected the JSON of llama-bench"),
        ("print(json.dumps([{'samples_ns': [0]}]))", lowbit.FormatError, "expected a time above 0"),
        ("print('[' * 100000)", lowbit.FormatError, "expected the JSON of llama-bench"),
        ("sys.exit('cannot\\nload it')", lowbit.Error, "exit status 1: load it"),
    ],
)
def test_a_program_that_fails(body: str, kind: type[Exception], message: str, tmp_path: Path) -> None:
    path = program(tmp_path, body)
    with pytest.raises(kind, match=message) as raised:
        LlamaBench(path, "m.gguf", 1).prefill(4)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_a_program_that_is_another(tmp_path: Path) -> None:
    with pytest.raises(lowbit.FormatError, match="expected llama-bench, with the option --n-depth"):
        LlamaBench(sys.executable, "m.gguf", 1)
    plain = tmp_path / "plain"
    plain.write_text("text")
    with pytest.raises(lowbit.FileError, match="cannot be started"):
        LlamaBench(plain, "m.gguf", 1)
    assert program_of(f"llama-bench={plain}") == str(plain)
