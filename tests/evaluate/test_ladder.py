"""The ladder: its figures are those of the commands that measure one file, and its files are gone afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from command import run
from tiny_checkpoint import make_checkpoint

import lowbit
from lowbit import evaluate, imatrix
from lowbit.evaluate.inspect import inspect
from lowbit.evaluate.ladder import RUNGS, Ladder, Rung, ladder
from lowbit.evaluate.plot import check
from lowbit.quantization.recipes import find_mix

DATA = Path(str(files("lowbit"))) / "data"
BARD = DATA / "bard"
CONTEXT, CHUNKS = 128, 3


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture(scope="module")
def text() -> str:
    return (DATA / "bard-valid.txt").read_text(encoding="utf-8")


def test_figures_are_those_of_each_file(text: str, tmp_path: Path, empty: Path, every_step: None) -> None:
    calls: list[tuple[int, int | None]] = []
    found = ladder(
        BARD,
        rungs=["q4_k_m", "IQ4_XS", "Q2_K"],
        context=CONTEXT,
        chunks=CHUNKS,
        threads=1,
        progress=lambda step: calls.append((step.done, step.total)),
    )
    assert list(empty.iterdir()) == []
    assert calls == [(i + 1, 5 * CHUNKS) for i in range(5 * CHUNKS)]
    assert (found.chunks, found.context, found.tokens) == (CHUNKS, CONTEXT, CHUNKS * (CONTEXT // 2 - 1))
    assert found.importances == "3 other chunks of the text"
    assert [rung.format for rung in found.rungs] == ["Q4_K_M", "IQ4_XS", "Q2_K"]
    original = lowbit.load(BARD, threads=1)
    # What is measured gives no importances.
    sums = imatrix.collect(original, text, context=CONTEXT, from_chunk=CHUNKS, chunks=CHUNKS)
    for rung in found.rungs:
        path = tmp_path / f"{rung.format}.gguf"
        report = lowbit.convert(BARD, path, rung.format, imatrix=sums, verify=False, provenance=False)
        assert (rung.file_bytes, rung.bits_per_weight) == (path.stat().st_size, report.bits_per_weight)
        models = {"original": original, "rung": lowbit.load(path, threads=1)}
        figures = evaluate.compare(models, text, context=CONTEXT, chunks=CHUNKS)["rung"]
        assert (rung.perplexity, rung.perplexity_error) == (figures.perplexity.value, figures.perplexity.standard_error)
        assert figures.divergence is not None
        assert (rung.kl_divergence, rung.same_top) == (figures.divergence.mean, figures.divergence.same_top)
        assert min(rung.prefill_tokens_per_s, rung.decode_tokens_per_s) > 0
        assert rung.fallbacks == 0
    top = found.original
    base = evaluate.perplexity(original, text, context=CONTEXT, chunks=CHUNKS)
    assert (top.format, top.perplexity, top.kl_divergence, top.same_top) == ("BF16", base.value, 0, 1)
    assert (top.file_bytes, top.bits_per_weight) == (inspect(BARD).file_bytes, 16)
    divergences = [rung.kl_divergence for rung in found.rungs]
    assert divergences == sorted(divergences)


def test_a_gguf_file_and_importances_of_ones_own(text: str, tmp_path: Path) -> None:
    lowbit.convert(BARD, tmp_path / "bard.gguf", "BF16", verify=False, provenance=False)
    sums = imatrix.collect(lowbit.load(BARD), text, context=CONTEXT, chunks=2)
    sums.save(tmp_path / "i.gguf")
    options = {"rungs": ["IQ2_XXS"], "context": CONTEXT, "chunks": 2}
    of_folder = ladder(BARD, text, imatrix=sums, **options)
    of_file = ladder(tmp_path / "bard.gguf", text, imatrix=tmp_path / "i.gguf", **options)
    assert of_file.importances == str(tmp_path / "i.gguf")
    assert of_folder.importances == "given"
    assert of_file.rungs[0].kl_divergence == of_folder.rungs[0].kl_divergence > 0
    assert of_file.rungs[0].bits_per_weight == of_folder.rungs[0].bits_per_weight
    assert of_file.original.file_bytes == (tmp_path / "bard.gguf").stat().st_size


def test_formats_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "narrow", hidden=96, ffn=176, head_dim=24)
    found = ladder(folder, "the thing and another one\n" * 60, rungs=["Q4_K_M", "Q8_0"], context=64, chunks=1)
    assert found.rungs[0].fallbacks > 0


def test_every_rung_exists() -> None:
    assert {find_mix(name).name for name in RUNGS} == set(RUNGS)
    assert len(set(RUNGS)) == len(RUNGS)
    formats = {f.name for f in lowbit.formats()}
    assert {find_mix(name).default for name in RUNGS} <= formats


def test_bad_arguments(text: str, empty: Path) -> None:
    for options, message in (
        ({"rungs": []}, "at least one rung"),
        ({"rungs": ["Q9_9"]}, "Q9_9"),
        ({"chunks": 0}, "chunks: expected at least 1, got 0"),
        ({"context": 2}, "context: expected at least 3, got 2"),
        ({"text": text[:2000], "context": 512}, "one chunk of 512 tokens, expected two"),
        ({"text": "short"}, "expected at least 512, one chunk"),
    ):
        with pytest.raises(lowbit.InputError, match=message):
            ladder(BARD, **options)
    assert list(empty.iterdir()) == []


def test_importances_that_do_not_fit_leave_nothing(text: str, empty: Path) -> None:
    with pytest.raises(lowbit.InputError, match=r"blk\.0\.attn_q\.weight: expected 256 values, got 2"):
        ladder(BARD, text, rungs=["Q4_0"], imatrix={"blk.0.attn_q.weight": [1, 1]}, context=CONTEXT, chunks=1)
    assert list(empty.iterdir()) == []


def test_command(empty: Path) -> None:
    options = [BARD, DATA / "bard-valid.txt", "--rungs", "Q8_0, Q2_K", "-c", CONTEXT, "--chunks", 1]
    result = run("ladder", *options, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    report |= {"original": Rung(**report["original"]), "rungs": [Rung(**rung) for rung in report["rungs"]]}
    found = Ladder(**report)
    assert [rung.format for rung in found.rungs] == ["Q8_0", "Q2_K"]
    table = run("ladder", *options).stdout
    for rung in (found.original, *found.rungs):
        assert f" {rung.format} " in table
        assert f" {rung.bits_per_weight:.2f} " in table
    assert list(empty.iterdir()) == []


def test_pictures_that_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, message in (("x.bmp", r"ends in \.png, \.svg, \.pdf"), ("none/x.png", "no such folder")):
        result = run("ladder", BARD, "--plot", tmp_path / name)
        assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
        with pytest.raises(lowbit.InputError, match=message):
            check(tmp_path / name)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(lowbit.UnsupportedError, match=r"pip install 'lowbit\[plot\]'"):
        check(tmp_path / "x.png")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_leaves_nothing(number: signal.Signals, empty: Path) -> None:
    # The signal is sent from inside, while a file is there: no timing.
    code = f"""
import os, lowbit.cli, lowbit.evaluate.ladder
def stop(*arguments, **options):
    assert os.listdir({str(empty)!r})
    os.kill(os.getpid(), {int(number)})
bench, calls = lowbit.evaluate.ladder.bench, []
lowbit.evaluate.ladder.bench = lambda *a, **o: (calls.append(1), bench(*a, **o) if len(calls) < 2 else stop())[1]
lowbit.cli.main(["ladder", {os.fspath(BARD)!r}, "--rungs", "Q8_0", "-c", "64", "--chunks", "1"])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 128 + number
    assert "Traceback" not in result.stderr
    assert list(empty.iterdir()) == []
