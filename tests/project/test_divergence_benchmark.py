"""benchmarks/divergence.py: the file of log-probabilities, what is compared, which rows a second call measures."""

from __future__ import annotations

import json
import re
import stat
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from benchmark_modules import benchmark_module

import lowbit
from lowbit import evaluate
from lowbit.base.compute import COMPUTE_MODES
from lowbit.evaluate.measures import chunks_of

harness, report, divergence = map(benchmark_module, ("harness", "report", "divergence"))
log_probabilities = benchmark_module("log_probabilities")

CONTEXT, WINDOWS = 64, 2
BARD = Path(lowbit.__file__).parent / "data"
TEXT = BARD / "bard-valid.txt"


def stored(tokens: np.ndarray, logits: np.ndarray) -> bytes:
    """The file of tokens (windows, context) and logits (windows, n, vocabulary), as llama-perplexity writes it."""
    vocabulary = logits.shape[-1]
    parts = [b"_logits_", struct.pack("<3i", tokens.shape[1], vocabulary, len(tokens)), tokens.astype("<i4").tobytes()]
    for row in logits.reshape(-1, vocabulary).astype(np.float64):
        highest = row.max()
        lowest = max(row.min(), highest - 16)
        step = (highest - lowest) / 65535
        codes = np.zeros(vocabulary + vocabulary % 2, "<u2")
        if step:
            codes[:vocabulary] = np.rint(np.maximum(row - lowest, 0) / step)
        parts += [struct.pack("<2f", step, lowest - np.logaddexp.reduce(row)), codes.tobytes()]
    return b"".join(parts)


@pytest.mark.parametrize("vocabulary", [6, 7])
def test_the_values_of_a_file(tmp_path: Path, vocabulary: int) -> None:
    random = np.random.default_rng(1)
    tokens = random.integers(0, vocabulary, (2, 9))
    logits = random.normal(0, 10, (2, 4, vocabulary))
    logits[0, 0] = 3  # all the same: step 0
    logits[1, 3, 2] = logits[1, 3].max() + 20  # of this row, the file has no other word
    path = tmp_path / "file"
    path.write_bytes(stored(tokens, logits))
    file = log_probabilities.read(path)
    assert np.array_equal(file.tokens, tokens)
    exact = logits - np.logaddexp.reduce(logits, -1, keepdims=True)
    for index in range(2):
        values, known = file.window(index)
        assert values.shape == (4, vocabulary)
        assert np.abs(values - exact[index])[known].max() <= 16 / 65535 / 2 + 1e-5
        assert (exact[index] <= np.where(known, np.inf, values + 1e-5)).all()
    assert not file.window(0)[1][0].any()
    assert np.flatnonzero(file.window(1)[1][3]).tolist() == [2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no file of log-probabilities"),
        (b"_logits_" + bytes(11), "no file of log-probabilities"),
        (b"GGUF" + bytes(60), "no file of log-probabilities"),
        (b"_logits_" + struct.pack("<3i", 2, 4, 1), "found 2, 4 and 1"),
        (b"_logits_" + struct.pack("<3i", 8, 0, 1), "found 8, 0 and 1"),
        (b"_logits_" + struct.pack("<3i", 8, 4, -1), "found 8, 4 and -1"),
        (b"_logits_" + struct.pack("<3i", *[2**31 - 1] * 3), r"size: expected \d{28} bytes, found 20"),
        (stored(np.zeros((1, 8)), np.zeros((1, 3, 4)))[:-1], "size: expected 100 bytes, found 99"),
        (stored(np.zeros((1, 8)), np.zeros((1, 3, 4))) + b"x", "size: expected 100 bytes, found 101"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(lowbit.FormatError, match=message) as caught:
        log_probabilities.read(path)
    assert caught.value.path == str(path)


def predictions(model: Path, compute: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and logits of a model for the first windows of the text."""
    opened = lowbit.load(model, compute=compute, threads=1)
    cut = chunks_of(opened.tokenizer, TEXT.read_text(encoding="utf-8"), CONTEXT)[:WINDOWS]
    return cut, np.stack([opened.logits(window[:-1], start=CONTEXT // 2) for window in cut])


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    lowbit.convert(BARD / "bard", path, "Q4_K_M", verify=False)
    return path


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A llama-perplexity that writes the file beside it, `answer`, and fails for files of IQ4_NL."""
    path = tmp_path / "build" / "bin" / "llama-perplexity"
    path.parent.mkdir(parents=True)
    path.write_text(f"""#!{sys.executable}
import shutil, sys
if sys.argv[1:] == ["--version"]: sys.exit(print("version: 7"))
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
open({str(path)!r} + ".calls", "a").write(" ".join(options[name] for name in ("-c", "-b", "--chunks", "-t")) + chr(10))
if "IQ4_NL" in options["-m"]: sys.exit("no such type")
shutil.copy({str(path.parent / "answer")!r}, options["--kl-divergence-base"])
""")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def calls(program: Path) -> list[str]:
    return program.with_name(program.name + ".calls").read_text().splitlines()


def run(monkeypatch: pytest.MonkeyPatch, program: Path, model: Path, out: Path, *more: str) -> dict:
    monkeypatch.setattr(divergence, "CONTEXT", CONTEXT)
    arguments = ["--llama-perplexity", program, "--models", model, "--text", TEXT, "--windows", WINDOWS, "--json", out]
    monkeypatch.setattr(sys, "argv", ["divergence.py", *map(str, arguments), *more])
    divergence.main()
    return json.loads(out.read_text())


def test_both_are_compared_with_exact_arithmetic(
    monkeypatch: pytest.MonkeyPatch, mixed: Path, program: Path, tmp_path: Path
) -> None:
    program.with_name("answer").write_bytes(stored(*predictions(mixed, "int8")))
    out = tmp_path / "out.json"
    record = run(monkeypatch, program, mixed, out, "--formats", "Q4_K_M mix,IQ4_NL")
    assert record["peer"] == {"name": "llama.cpp", "build": "build", "version": "7"}
    assert calls(program) == [f"{CONTEXT} {CONTEXT} {WINDOWS} 1"] * 2
    entry, failed = record["results"]
    assert (entry["name"], entry["tokens"]) == ("tiny Q4_K_M mix, bard-valid", WINDOWS * (CONTEXT // 2 - 1))
    found = entry["divergence"]
    assert [*found] == [*divergence.MODES, "llama.cpp"]
    models = (lowbit.load(mixed, compute=compute, threads=1) for compute in ("f32", "int8"))
    text = TEXT.read_text(encoding="utf-8")
    direct = evaluate.kl_divergence(*models, text, context=CONTEXT, chunks=WINDOWS)
    assert found["int8"] == vars(direct)
    # The file's steps are the only difference between the two.
    assert found["llama.cpp"]["mean"] == pytest.approx(direct.mean, abs=1e-7)
    assert found["llama.cpp"]["percentile_99"] == pytest.approx(direct.percentile_99, abs=1e-5)
    assert 1e-6 < found["bf16"]["mean"] < direct.mean < 1e-3
    assert failed["peer_error"] == "no such type"
    assert [*failed["divergence"]] == divergence.MODES
    assert failed["share"] > 0.9
    assert mixed.exists()
    assert str(tmp_path) not in json.dumps(record)


def test_a_second_call_measures_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, mixed: Path, program: Path, tmp_path: Path
) -> None:
    program.with_name("answer").write_bytes(stored(*predictions(mixed, "f32")))
    out = tmp_path / "out.json"
    first = run(monkeypatch, program, mixed, out, "--formats", "Q8_0")
    second = run(monkeypatch, program, mixed, out, "--formats", "Q8_0,IQ2_XXS")
    assert second["results"][:1] == first["results"]
    assert len(calls(program)) == 2
    monkeypatch.setattr(divergence, "MODES", [*divergence.MODES, "auto"])
    third = run(monkeypatch, program, mixed, out, "--formats", "Q8_0")
    assert [len(entry["divergence"]) - len(divergence.MODES) for entry in third["results"]] == [1, 0]
    run(monkeypatch, program, mixed, out, "--formats", "Q8_0")
    run(monkeypatch, program, mixed, out, "--formats", "Q8_0", "--again")
    assert len(calls(program)) == 4


def test_predictions_of_another_text_are_refused(mixed: Path, tmp_path: Path) -> None:
    tokens, logits = predictions(mixed, "f32")
    path = tmp_path / "file"
    reference = divergence.Remembered(lowbit.load(mixed, compute="f32", threads=1))
    changed = tokens.copy()
    changed[0, 5] += 1
    for given, message in ((changed, "window 0: token 5 is"), (tokens[:, :32], "windows of 32 tokens, expected 64")):
        path.write_bytes(stored(given, logits[:, : (given.shape[1] // 2 - 1)]))
        file = divergence.Stored(log_probabilities.read(path), reference)
        with pytest.raises(SystemExit, match=message):
            evaluate.compare(
                {"f32": reference, "file": file}, TEXT.read_text(encoding="utf-8"), context=CONTEXT, chunks=WINDOWS
            )


def test_the_first_token_of_a_later_window_may_be_bos(tmp_path: Path) -> None:
    """llama-perplexity writes the tokens without the BOS that replaces them."""
    logits = np.zeros((2, 3, 6), np.float32)
    tokens = np.array([[0, 1, 2, 3, 4, 5, 1, 2], [3, 4, 5, 1, 2, 3, 4, 5]])
    path = tmp_path / "file"
    path.write_bytes(stored(tokens, logits))
    reference = SimpleNamespace(weights={}, last=logits[0])
    file = divergence.Stored(log_probabilities.read(path), reference)
    assert np.allclose(file.logits(tokens[0, :-1], 4), -np.log(6))
    assert np.allclose(file.logits(np.array([0, *tokens[1, 1:-1]]), 4), -np.log(6))
    with pytest.raises(SystemExit, match="window 0: token 0 is 0, expected 5"):
        divergence.Stored(log_probabilities.read(path), reference).logits(np.array([5, *tokens[0, 1:-1]]), 4)


def test_a_program_is_needed(monkeypatch: pytest.MonkeyPatch, mixed: Path, tmp_path: Path) -> None:
    arguments = ["--peers", tmp_path, "--models", mixed, "--text", TEXT]
    monkeypatch.setattr(sys, "argv", ["divergence.py", *map(str, arguments)])
    with pytest.raises(SystemExit, match="no BUILD/bin/llama-perplexity"):
        divergence.main()
    monkeypatch.setattr(sys, "argv", ["divergence.py", *map(str, arguments), "--formats", "Q9"])
    with pytest.raises(SystemExit):
        divergence.main()


def test_the_table() -> None:
    def entry(model: str, format: str, **means: float) -> dict:
        found = {name.replace("_", "."): {"mean": mean, "standard_error": mean / 8} for name, mean in means.items()}
        return {"name": "n", "model": model, "text": "t", "format": format, "share": 0.125, "divergence": found}

    rows = [
        entry("m", "Q4_K", int8=0.002, llama_cpp=0.0046),
        entry("m", "Q2_K mix", int8=0.001),
        entry("o", "Q2_K mix", int8=1e-4, int16=0.0, llama_cpp=1e-4),
        entry("o", "Q4_K", int8=1e-3, llama_cpp=1e-3),
    ]
    machine = {**harness.machine(), "load_after": 0.0}
    record = {
        "benchmark": "divergence",
        "command": "c",
        "settings": {"threads": 1},
        "machine": machine,
        "results": rows,
    }
    text = report.section(record | {"peer": {"name": "p", "build": "b", "version": "v"}})
    assert [line for line in text.splitlines() if line.startswith("|") and ":--" not in line] == [
        "| m on t, 0.000001 nats | in this format | int8 | llama.cpp | llama.cpp / int8 |",
        "| Q4_K | 12% | 2000 ± 250 | 4600 ± 575 | **2.30** |",
        "| Q2_K mix | - | 1000 ± 125 | - | - |",
        "| o on t, 0.000001 nats | in this format | int8 | int16 | llama.cpp | llama.cpp / int8 |",
        "| Q4_K | 12% | 1000 ± 125 | - | 1000 ± 125 | **1.00** |",
        "| Q2_K mix | - | 100 ± 12.5 | 0 ± 0 | 100 ± 12.5 | **1.00** |",
    ]


def test_a_page_has_its_benchmarks_in_order() -> None:
    facts = {"command": "c", "settings": {"threads": 1}, "machine": {**harness.machine(), "load_after": 0.0}}
    records = [{"benchmark": name, "peer": {}, "results": [], **facts} for name in ("divergence", "inference")]
    page = report.rewritten("performance.md", f"{report.BEGIN}\n{report.END}\n", records)
    titles = re.findall(r"^### ([^,]*),", page, re.MULTILINE)
    assert titles == ["Running models", "Divergence from exact products"]


def test_the_core_has_the_listed_arithmetic() -> None:
    x = np.ones((2, 32), np.float32)
    for mode in COMPUTE_MODES:
        assert lowbit.matmul(x, lowbit.quantize(x, "Q8_0"), compute=mode).shape == (2, 2)
    with pytest.raises(lowbit.InputError) as caught:
        lowbit.matmul(x, x, compute="other")
    assert sorted(re.findall(r"[a-z]+\d+|auto", caught.value.expected)) == sorted(COMPUTE_MODES)
