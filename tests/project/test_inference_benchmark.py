"""benchmarks/inference.py: which peers it finds and measures, in which order, and what it records."""

from __future__ import annotations

import argparse
import json
import stat
import sys
from pathlib import Path

import pytest
from benchmark_modules import benchmark_module

import lowbit
from lowbit.evaluate import work

harness, report, peers, inference = map(benchmark_module, ("harness", "report", "peers", "inference"))
engines = benchmark_module("engines")

LLAMA_BENCH = """
if sys.argv[1:] == ["--help"]: sys.exit(print("--n-depth"))
if sys.argv[1:] == ["--version"]: sys.exit(print("version: 7"))
print(json.dumps([{"samples_ns": [2 * 10**9]}]))
"""
BATCHED = """
tries = pathlib.Path(__file__ + ".tries")
tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
if len(tries.read_text()) % 2: sys.exit()
print("a line of a log")
print(json.dumps({"t_tg": 0.5, "speed_tg": 1.0}))
"""


def program(path: Path, body: str) -> None:
    """An executable that writes its arguments beside itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    calls = path.with_name(path.name + ".calls")
    start = f"#!{sys.executable}\nimport json, pathlib, sys\n"
    path.write_text(f"{start}open({str(calls)!r}, 'a').write(json.dumps(sys.argv[1:]) + chr(10))\n{body}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def calls(path: Path) -> list[list[str]]:
    return [json.loads(line) for line in path.with_name(path.name + ".calls").read_text().splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two builds, one of them with a second name."""
    for build in ("avx2", "native"):
        program(tmp_path / build / "bin" / "llama-bench", LLAMA_BENCH)
        program(tmp_path / build / "bin" / "llama-batched-bench", BATCHED)
    (tmp_path / "other").symlink_to(tmp_path / "native")
    return tmp_path


def test_builds_are_found_once(folder: Path) -> None:
    assert [build.build for build in peers.builds(folder)] == ["avx2", "native"]


def test_sequences_together_are_those_of_llama_batched_bench(folder: Path) -> None:
    (build,) = (build for build in peers.builds(folder) if build.build == "avx2")
    runner = peers.LlamaCpp(build, Path("m.gguf"), 3)
    assert (runner.name, runner.version) == ("llama.cpp avx2", "7")
    # The program prints nothing at its first run.
    assert runner.decode(4, 0, 8).wall_s == 0.5
    expected = "-m m.gguf --output-format jsonl -t 3 -c 2048 -npp 1 -ntg 4 -npl 8".split()  # noqa: SIM905
    assert calls(folder / "avx2/bin/llama-batched-bench") == [expected, expected]
    assert runner.decode(4, 16, 1).wall_s == 2
    assert runner.prefill(8).wall_s == 2
    found = calls(folder / "avx2/bin/llama-bench")[2:]
    assert [call[8:] for call in found] == [["-p", "0", "-n", "4", "-d", "16"], ["-p", "8", "-n", "0"]]
    assert runner.load().wall_s > 0
    assert "--no-warmup" in calls(folder / "avx2/bin/llama-bench")[-1]
    together = inference.Test("batch", "2", 4, batch=2)
    assert together.is_for(runner)
    (folder / "avx2/bin/llama-batched-bench").unlink()
    assert not together.is_for(peers.LlamaCpp(build, Path("m.gguf"), 3))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["inference.py", *map(str, arguments)])
    inference.main()


def test_all_parts_in_one_file(monkeypatch: pytest.MonkeyPatch, folder: Path, bard_gguf: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    common = ["--peers", folder, "--models", bard_gguf, "--threads", "1", "--pairs", "2", "--new", "2", "--json", out]
    small = ["--prompt", "8", "--depth", "5", "--batch", "1,2"]
    build, simd = ("avx2", "AVX2") if "AVX2" in lowbit.simd.targets() else ("native", lowbit.simd.current())
    run(monkeypatch, *common, *small, "--part", "prefill,depth,load", "--builds", build)
    record = json.loads(out.read_text())
    parts = [(row["part"], row["setting"]) for row in record["results"]]
    assert parts == [("prefill", "8"), ("depth", "5"), ("load", "with tokenizer")]
    assert {(row["opponent"], row["simd"], row["version"]) for row in record["results"]} == {
        (f"llama.cpp {build}", simd, "7")
    }
    prefill, depth, load = record["results"]
    assert len(prefill["ours"]["wall_s"]) == len(prefill["peer"]["wall_s"]) == 2
    assert prefill["peer"]["per_s"]["median"] == 4.0  # 8 tokens in 2 seconds
    assert prefill["limit_per_s"] * prefill["ours_share"] == pytest.approx(prefill["ours"]["per_s"]["median"])
    assert depth["peer_share"] * depth["limit_per_s"] == pytest.approx(1.0)
    assert depth["bound"] in ("memory", "arithmetic")
    assert "limit_per_s" not in load
    assert str(tmp_path) not in json.dumps(record)
    # Another part is added, and a part that is measured again takes its place.
    run(monkeypatch, *common, *small, "--part", "batch", "--builds", build)
    run(monkeypatch, *common, *small, "--part", "prefill", "--builds", build)
    again = json.loads(out.read_text())
    assert [row["name"] for row in again["results"][:3]] == [row["name"] for row in record["results"]]
    assert [(row["part"], row["setting"], row["work"]) for row in again["results"][3:]] == [
        ("batch", "1", 2),
        ("batch", "2", 4),
    ]
    assert again["results"][0]["ours"] != prefill["ours"]
    assert again["results"][1] == depth


def test_the_page(tmp_path: Path) -> None:
    sample = harness.Sample
    facts = {"file": "m", "simd": "AVX2", "version": "7"}
    rows = [
        harness.comparison(
            "a", 8, "tokens", [sample(2)], [sample(4)], part="batch", setting="2", opponent="x", **facts
        ),
        harness.comparison(
            "b", 8, "tokens", [sample(2)], [sample(1)], part="batch", setting="2", opponent="y", **facts
        ),
        harness.comparison(
            "c", 8, "tokens", [sample(1)], [sample(1)], part="batch", setting="4", opponent="y", **facts
        ),
        harness.comparison(
            "d", 1, "load", [sample(0.25)], [sample(1)], part="load", setting="s", opponent="x", **facts
        ),
    ]
    rows[0] |= {"bound": "memory", "limit_per_s": 16.0, "ours_share": 0.25, "peer_share": 0.125}
    machine = {**harness.machine(), "load_after": 0.0}
    record = {"benchmark": "inference", "command": "c", "settings": {"threads": 2, "pairs": 1}, "machine": machine}
    text = report.section(record | {"peer": {}, "results": rows})
    assert "; x 7; y 7." in text
    assert [line for line in text.splitlines() if line.startswith("|") and ":--" not in line] == [
        "| Sequences together, tokens/s in sum | lowbit | of limit | x | ratio | y | ratio |",
        "| m 2 AVX2 | 4 | 25% of memory | 2 | **2.00** (2.00 to 2.00) | 8 | **0.50** (0.50 to 0.50) |",
        "| m 4 AVX2 | 8 | - | - | - | 8 | **1.00** (1.00 to 1.00) |",
        "| Load and first token, seconds | lowbit | of limit | x | ratio |",
        "| m s AVX2 | 0.25 | - | 1 | **4.00** (4.00 to 4.00) |",
    ]
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    shown = report.rewritten("performance.md", page, [record | {"peer": {}, "results": rows}, {"benchmark": "onnx"}])
    assert shown.startswith(f"before\n{report.BEGIN}\n\n![")
    assert shown.endswith(f"(4.00 to 4.00) |\n\n{report.END}\nafter\n")
    assert report.rewritten("performance.md", shown, []) == f"before\n{report.BEGIN}\n\n{report.END}\nafter\n"


def test_a_file_of_another_machine_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    old = {"benchmark": "inference", "machine": {"cpu": "another"}, "results": []}
    path.write_text(json.dumps(old))
    with pytest.raises(SystemExit, match="has results of another, expected"):
        harness.Recorder("inference", argparse.Namespace(json=path), update=True)
    path.write_text(json.dumps(old | {"benchmark": "formats"}))
    with pytest.raises(SystemExit, match="has results of formats, expected inference"):
        harness.Recorder("inference", argparse.Namespace(json=path), update=True)


def test_no_peers(monkeypatch: pytest.MonkeyPatch, bard_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no peer"):
        run(monkeypatch, "--peers", tmp_path, "--models", bard_gguf)


def test_models_are_compared_with_exact_arithmetic(monkeypatch: pytest.MonkeyPatch, bard_gguf: Path) -> None:
    engine = engines.Lowbit(str(bard_gguf), 1)
    engine.open()
    figures = engine.check()
    layers = engine._model.spec.num_layers
    assert 0 < figures["decode_error"] < engines.allowed_error(layers) < 1
    assert figures["prefill_error"] == figures["decode_error"]  # a prompt is read with the arithmetic of a token
    monkeypatch.setattr(engines, "allowed_error", lambda num_layers: figures["decode_error"] / 2)
    with pytest.raises(RuntimeError, match=r"prefill: error"):
        engine.check()


def test_work_of_several_steps_and_sequences(bard_gguf: Path) -> None:
    engine = engines.Lowbit(str(bard_gguf), 1)
    engine.open()
    model = engine._model
    steps = [([6] * 3, 5), ([7] * 3, 6)]
    assert engine.work(tokens=2, depth=5, batch=3, prefill=False) == {
        "bytes": sum(work.step_bytes(model, lengths) for lengths, _ in steps),
        "multiply_adds": sum(3 * work.multiply_adds(model, 1, start=start) for _, start in steps),
    }
    assert engine.work(tokens=8, depth=0, batch=1, prefill=True) == {
        "bytes": work.weight_bytes(model),
        "multiply_adds": work.multiply_adds(model, 8),
    }


def test_an_engine_that_fails_ends_the_benchmark(bard_gguf: Path) -> None:
    with peers.Engine("lowbit", "lowbit", bard_gguf, 1) as engine:
        with pytest.raises(SystemExit, match="lowbit: decode: ContextFullError"):
            engine.decode(5000, 0, 1)
        assert engine.prefill(4).wall_s > 0
