"""The benchmarks' arithmetic, what they record, and the page that shows it."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmark_modules import benchmark_module

import lowbit

ROOT = Path(__file__).resolve().parents[2]


harness, report = benchmark_module("harness"), benchmark_module("report")
Sample = harness.Sample


def test_both_take_turns_after_the_warm_up():
    order = []
    walls = iter(range(100))

    def run(name):
        order.append(name)
        return Sample(float(next(walls)))

    ours, peer = harness.alternate(lambda: run("a"), lambda: run("b"), pairs=3, warmups=2)
    assert "".join(order) == "ab" * 5
    assert [sample.wall_s for sample in ours] == [4, 6, 8]
    assert [sample.wall_s for sample in peer] == [5, 7, 9]


def test_ratios_are_of_neighbours():
    ours = [Sample(1.0, 2.0, 100), Sample(2.0, 1.0, 50), Sample(4.0, 4.0, 100)]
    peer = [Sample(8.0, 2.0, 300), Sample(2.0, 3.0, 100), Sample(2.0, 2.0, 100)]
    entry = harness.comparison("x", 16, "weights", ours, peer, format="Q8_0")
    assert entry["speedup"] == {"min": 0.5, "median": 1.0, "max": 8.0}
    assert entry["cpu_ratio"] == {"min": 0.5, "median": 1.0, "max": 3.0}
    assert entry["rss_ratio"] == {"min": 1.0, "median": 2.0, "max": 3.0}
    assert entry["ours"]["per_s"] == {"min": 4.0, "median": 8.0, "max": 16.0}
    assert entry["peer"]["wall_s"] == [8.0, 2.0, 2.0]
    assert entry["format"] == "Q8_0"


def test_what_is_not_known_is_left_out():
    entry = harness.comparison("x", 1, "tokens", [Sample(1.0, 1.0)], [Sample(2.0)])
    assert entry["speedup"]["median"] == 2.0
    assert not {"cpu_ratio", "rss_ratio"} & entry.keys()
    assert "cpu_s" in entry["ours"]
    assert "cpu_s" not in entry["peer"]


def test_samples_add_up():
    assert Sample(1.0, 2.0, 30) + Sample(2.0, 3.0, 20) == Sample(3.0, 5.0, 30)
    assert Sample(1.0, 2.0) + Sample(2.0) == Sample(3.0)


def test_a_command_is_charged_for_its_own_memory_and_time():
    ballast = np.ones(200 << 20, np.uint8)
    code = """
import time
x = bytearray(b'1') * (64 << 20)
end = time.process_time() + 0.2
while time.process_time() < end:
    pass
print('done')
"""
    sample, output = harness.run_command([sys.executable, "-c", code])
    assert output.strip() == "done"
    assert sample.wall_s >= sample.cpu_s * 0.9 >= 0.18
    assert 64 << 20 < sample.peak_rss < ballast.nbytes


def test_a_command_that_fails_says_why():
    with pytest.raises(harness.CommandError, match=r"(?s)-c.*no such thing"):
        harness.run_command([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_command_lines_keep_no_paths_of_this_machine():
    line = harness.command_line(["benchmarks/formats.py", "--peer", "/a/b/peer", "--json", "/tmp/out.json", "-n", "2"])
    assert line == "python benchmarks/formats.py --peer peer --json out.json -n 2"


def test_settings_are_numbers_and_words(tmp_path):
    options = argparse.Namespace(json=tmp_path / "x.json", sources=[tmp_path], threads=[1, 2], pairs=3, simd=None)
    recorder = harness.Recorder("convert", options, {})
    recorder.finish()
    assert json.loads(options.json.read_text())["settings"] == {"threads": [1, 2], "pairs": 3}


def _run_with_fake_peer(monkeypatch, path: Path, arguments: list[str]) -> dict:
    """formats.py with a peer that is ourselves."""
    formats = benchmark_module("formats")

    class Ours:
        def __init__(self, *_):
            pass

        def facts(self):
            return {"name": "ourselves", "build": "none", "version": lowbit.__version__}

        def can_decode(self, ggml_type):
            return True

        def encode(self, ggml_type, weights, importance, out):
            name = next(f.name for f in lowbit.formats() if f.ggml_type == ggml_type)
            out[:] = lowbit.quantize(weights, name, imatrix=importance).data

        def decode(self, ggml_type, data, out):
            name = next(f.name for f in lowbit.formats() if f.ggml_type == ggml_type)
            out[:] = lowbit.dequantize(data, name)

    monkeypatch.setattr(formats, "Peer", Ours)
    monkeypatch.setattr(formats, "Ggml", Ours)
    monkeypatch.setattr(formats, "CALL_SECONDS", 0.001)
    monkeypatch.setattr(sys, "argv", ["formats.py", "--peer", "x", "--json", str(path), *arguments])
    formats.main()
    return json.loads(path.read_text())


def test_a_benchmark_checks_times_and_records(monkeypatch, tmp_path):
    options = ["--formats", "F16,Q8_0", "--pairs", "2", "--seconds", "0.001", "--simd", lowbit.simd.current()]
    record = _run_with_fake_peer(monkeypatch, tmp_path / "out.json", options)
    assert record["schema"] == harness.SCHEMA
    assert record["settings"]["pairs"] == 2
    assert record["machine"]["simd"] == lowbit.simd.current()
    names = [entry["name"] for entry in record["results"]]
    operations = ["F16 encode", "F16 decode", "Q8_0 encode", "Q8_0 encode.imatrix", "Q8_0 decode"]
    assert names == [f"{name} {lowbit.simd.current()} x{threads}" for name in operations for threads in (1, 2)]
    assert all(("scaling" in entry) == (entry["threads"] == 2) for entry in record["results"])
    assert all(len(entry[side]["wall_s"]) == 2 for entry in record["results"] for side in ("ours", "peer"))
    assert str(tmp_path) not in json.dumps(record)
    assert "| Q8_0 |" in report.section(record)


def test_a_benchmark_ends_where_results_are_wrong(monkeypatch, tmp_path):
    quantize = lowbit.quantize
    monkeypatch.setattr(
        lowbit, "quantize", lambda weights, *rest, **options: quantize(weights * 1.05, *rest, **options)
    )
    with pytest.raises(SystemExit, match=r"Q8_0: \d+ blocks differ"):
        _run_with_fake_peer(monkeypatch, tmp_path / "out.json", ["--formats", "Q8_0", "--pairs", "1"])
    assert not (tmp_path / "out.json").exists()


BARD = Path(lowbit.__file__).parent / "data" / "bard"


def test_conversions_are_compared(tmp_path):
    convert = benchmark_module("convert")
    options = argparse.Namespace(threads=1, simd=None, peer_python=sys.executable)
    peer = argparse.Namespace(env={}, source=tmp_path, program=lambda name: name)
    conversion = convert.Conversion(options, peer, BARD, "Q8_0", tmp_path)
    command = [*conversion.commands[0]]
    command[command.index(str(conversion.target))] = str(conversion.peer_target)
    conversion.peer_commands = [command]
    facts = conversion.check()
    assert facts["file_bytes"] > facts["weights"] > 10**6
    assert conversion.verified().wall_s > 0
    assert not list(tmp_path.iterdir())
    command[command.index("Q8_0")] = "Q4_K_M"
    with pytest.raises(SystemExit, match=r"differ in \d+ tensors or keys: blk\.0"):
        conversion.check()


def test_loading_is_measured_by_stages(monkeypatch, tmp_path):
    benchmark, path = benchmark_module("loading"), tmp_path / "bard.gguf"
    lowbit.convert(BARD, path, "Q8_0", verify=False)
    options = ["--pairs", "2", "--threads", "1", "--json", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["loading.py", str(path), *options])
    benchmark.main()
    record = json.loads((tmp_path / "out.json").read_text())
    stages = {entry["stage"]: entry for entry in record["results"] if "stage" in entry}
    assert tuple(stages) == benchmark.STAGES
    assert all(len(entry["cpu_s"]) == len(entry["wall_s"]) == 2 for entry in stages.values())
    (program,) = (entry for entry in record["results"] if "program" in entry)
    assert len(program["peak_rss"]) == 2
    assert "| bard | 0." in report.section(record)
    command = [*benchmark.command(path, 1), "--stop", lowbit.load(path).generate("Hello", max_tokens=1)]
    monkeypatch.setattr(benchmark, "command", lambda path, threads: command)
    with pytest.raises(SystemExit, match="lowbit run gave"):
        benchmark.main()


def test_loaded_tokenizers_are_compared(monkeypatch, tmp_path):
    benchmark, path = benchmark_module("tokenizer"), tmp_path / "bard.gguf"
    lowbit.convert(BARD, path, "Q8_0", progress=False)
    options = ["--pairs", "1", "--json", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["tokenizer.py", str(path), *options])
    benchmark.main()
    record = json.loads((tmp_path / "out.json").read_text())
    assert [(entry["name"], entry["work"]) for entry in record["results"]] == [("bard", 2048)]
    assert "| bard | 2048 |" in report.section(record)
    monkeypatch.setattr(lowbit.Tokenizer, "encode", lambda *_: [])
    with pytest.raises(SystemExit, match=r"ids of '.*' differ"):
        benchmark.main()


def _entry(**facts) -> dict:
    return harness.comparison("model Q8_0", 10, "x", [Sample(1.0, 1.0, 10**8)], [Sample(3.0, 2.0, 10**9)], **facts)


@pytest.mark.parametrize(
    ("benchmark", "facts", "row"),
    [
        ("convert", {"format": "Q8_0"}, "| model Q8_0 | 1 | 3 | **3.00** (3.00 to 3.00) | 1 | 2 | 100 | 1000 |"),
        ("pages", {}, "| model Q8_0 | 10 | 3.33 | **3.00** (3.00 to 3.00) |"),
        ("sharing", {}, "| model Q8_0 | 10 | 3.33 | **3.00** (3.00 to 3.00) |"),
    ],
)
def test_tables(benchmark, facts, row):
    machine = {**harness.machine(), "load_after": 0.0}
    record = {"benchmark": benchmark, "command": "c", "settings": {"threads": 2, "pairs": 1}, "machine": machine}
    record |= {"peer": {"name": "p", "build": "b", "version": "v"}, "results": [_entry(**facts)]}
    assert report.section(record).endswith(row)


def test_the_page_shows_the_stored_results():
    records = [json.loads(path.read_text()) for path in sorted((ROOT / "benchmarks" / "results").glob("*.json"))]
    assert records
    for name in report.PAGES:
        page = (ROOT / "docs" / name).read_text()
        assert report.rewritten(name, page, records) == page, "run benchmarks/report.py"
    assert {record["benchmark"] for record in records if record["benchmark"] in report.TABLES} <= {
        benchmark for shown in report.PAGES.values() for benchmark in shown
    }
