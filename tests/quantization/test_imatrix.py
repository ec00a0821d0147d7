"""Importance matrices: collected, read, written and joined as llama-imatrix does (make_imatrix.py)."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command import run
from make_imatrix import (
    BARD_CHUNKS,
    BARD_CONTEXT,
    DATA,
    STORED,
    TINY,
    TINY_CHUNKS,
    TINY_CONTEXT,
    TINY_FIRST,
    TINY_TEXT,
)
from tiny_checkpoint import make_checkpoint

import lowbit
from lowbit import imatrix

# llama-imatrix adds a square after the other in float32: each addition rounds the sum by 2^-24 at most.
BARD_ROUNDING = BARD_CONTEXT * BARD_CHUNKS * 2.0**-24
# What float32 arithmetic in another order makes of the inputs themselves, after at most four layers.
INPUTS = 2e-5


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stored")
    with np.load(STORED) as file:
        for name, data in file.items():
            (folder / name).write_bytes(data.tobytes())
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> lowbit.Model:
    return lowbit.load(make_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny", **TINY), compute="f32", threads=1)


def assert_close(found: imatrix.Sums, expected: imatrix.Sums, rounding: float) -> None:
    assert found.entries.keys() == expected.entries.keys()
    assert (found.datasets, found.chunk_count, found.chunk_size) == (
        expected.datasets,
        expected.chunk_count,
        expected.chunk_size,
    )
    for name, entry in expected.entries.items():
        np.testing.assert_array_equal(found.entries[name].counts, entry.counts)
        np.testing.assert_allclose(found.entries[name].sums, entry.sums, rtol=rounding + INPUTS, err_msg=name)


def test_collected_sums_are_the_references(stored: dict[str, Path], every_step: None) -> None:
    text = (DATA / "bard-valid.txt").read_text(encoding="utf-8")
    model = lowbit.load(DATA / "bard", compute="f32")
    calls: list[tuple[int, int | None]] = []
    found = imatrix.collect(
        model,
        text,
        context=BARD_CONTEXT,
        chunks=BARD_CHUNKS,
        dataset="bard.txt",
        progress=lambda step: calls.append((step.done, step.total)),
    )
    assert_close(found, imatrix.read(stored["bard"]), BARD_ROUNDING)
    assert calls == [(i + 1, BARD_CHUNKS) for i in range(BARD_CHUNKS)]
    # The default arithmetic rounds inputs of products to bfloat16, 2^-9 of each; errors of different signs add up.
    quick = imatrix.collect(lowbit.load(DATA / "bard"), text, context=BARD_CONTEXT, chunks=1)
    exact = imatrix.collect(model, text, context=BARD_CONTEXT, chunks=1)
    for name, entry in exact.entries.items():
        np.testing.assert_allclose(quick.entries[name].sums, entry.sums, rtol=2.0**-5, err_msg=name)


@pytest.mark.parametrize(("name", "option"), [("tiny", "process_output"), ("special", "parse_special")])
def test_chunks_begin_as_the_references_do(name: str, option: str, stored: dict[str, Path], tiny: lowbit.Model) -> None:
    """BOS in each, some left out, special tokens written out, the output matrix."""
    options = {"from_chunk": TINY_FIRST, "chunks": TINY_CHUNKS, "dataset": "tiny.txt", option: True}
    found = imatrix.collect(tiny, TINY_TEXT, context=TINY_CONTEXT, **options)
    assert_close(found, imatrix.read(stored[name]), TINY_CONTEXT * TINY_CHUNKS * 2.0**-24)
    assert ("output.weight" in found.entries) == (option == "process_output")


def test_sums_do_not_depend_on_the_target(tiny: lowbit.Model) -> None:
    """Squares and sums are NumPy's; what reaches them differs by rounding only."""
    expected = imatrix.collect(tiny, TINY_TEXT, context=TINY_CONTEXT, chunks=2)
    for target in lowbit.simd.targets():
        with lowbit.simd.force(target):
            assert_close(imatrix.collect(tiny, TINY_TEXT, context=TINY_CONTEXT, chunks=2), expected, 0)


def test_files_are_byte_for_byte_the_references(stored: dict[str, Path], tmp_path: Path) -> None:
    for name in ("bard", "tiny", "special", "merged"):
        imatrix.read(stored[name]).save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == stored[name].read_bytes(), name
    imatrix.merge(imatrix.read(stored[name]) for name in ("tiny", "old", "special")).save(tmp_path / "joined")
    assert (tmp_path / "joined").read_bytes() == stored["merged"].read_bytes()


def test_old_files_hold_the_same_importances(stored: dict[str, Path]) -> None:
    old, new = lowbit.imatrix.load_imatrix(stored["old"]), lowbit.imatrix.load_imatrix(stored["tiny"])
    assert old.values.keys() == new.values.keys() - {"output.weight"}
    for name, values in old.values.items():
        # Divided by tokens, multiplied by chunks, divided by chunks.
        np.testing.assert_allclose(values, new.values[name], rtol=4 * 2.0**-24)
    assert (old.chunks, old.datasets) == (TINY_CHUNKS, ["tiny.txt"])
    assert old.metadata()["quantize.imatrix.chunks_count"] == TINY_CHUNKS


def experts(counts: list[int], sums: float = 1.0) -> imatrix.Entry:
    return imatrix.Entry(np.full((len(counts), 4), sums, np.float32), np.array(counts, np.int64))


def test_experts(tmp_path: Path) -> None:
    """Each expert has its own count; one that no token came to weighs all columns alike."""
    entry = experts([2, 0, 8])
    entry.sums[2, 1] = 0
    sums = imatrix.Sums({"blk.0.ffn_up_exps.weight": entry}, ["a"], 1, 8)
    sums.save(tmp_path / "i.gguf")
    found = imatrix.read(tmp_path / "i.gguf")
    np.testing.assert_array_equal(found.entries["blk.0.ffn_up_exps.weight"].sums, entry.sums)
    np.testing.assert_array_equal(found.entries["blk.0.ffn_up_exps.weight"].counts, entry.counts)
    importances = found.imatrix()
    values = importances.values["blk.0.ffn_up_exps.weight"]
    assert values.tolist() == [0.5] * 4 + [1.0] * 4 + [0.125, 0, 0.125, 0.125]
    (report,) = found.coverage()
    assert (report.matrices, report.matrices_seen, report.tokens, report.columns_unseen) == (3, 2, 8, [9])
    assert "(1 of 3 experts)" in importances.notes["blk.0.ffn_up_exps.weight"]
    with lowbit.gguf.open(tmp_path / "i.gguf") as file:
        assert file.infos["blk.0.ffn_up_exps.weight.in_sum2"].shape == (3, 4)
        assert file.infos["blk.0.ffn_up_exps.weight.counts"].shape == (3, 1)


def test_merging_takes_one_count_for_all_experts() -> None:
    one = imatrix.Sums({"e": imatrix.Entry(np.ones((1, 12), np.float32), np.array([5]))}, ["a"], 0, 4)
    three = imatrix.Sums({"e": experts([1, 0, 8]), "f": experts([1])}, ["b"], 2, 4)
    for parts in ([one, three], [three, one]):
        merged = imatrix.merge(parts)
        assert merged.entries["e"].counts.tolist() == [6, 5, 13]
        assert (merged.entries["e"].sums == 2).all()
        assert merged.entries["f"].counts.tolist() == [1]
        assert (merged.chunk_count, merged.datasets) == (13 // 4, [part.datasets[0] for part in parts])
    assert three.entries["e"].counts.tolist() == [1, 0, 8]
    with pytest.raises(lowbit.InputError, match="merge: e has 12 sums for 3 counts and 8 sums for 2 counts"):
        imatrix.merge([three, imatrix.Sums({"e": experts([1, 1])})])
    with pytest.raises(lowbit.InputError, match="at least one"):
        imatrix.merge([])


def old_file(*entries: tuple[bytes, int, list[float]], end: bytes = b"") -> bytes:
    data = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        data += struct.pack(f"<i{len(name)}sii{len(values)}f", len(name), name, calls, len(values), *values)
    return data + end


def test_old_files_without_an_end(tmp_path: Path) -> None:
    """Chunks and text came later, and where no chunk is counted the sums are the importances."""
    path = tmp_path / "old.dat"
    path.write_bytes(old_file((b"a", 4, [2.0, 6.0]), (b"b", 0, [3.0])))
    found = imatrix.load_imatrix(path)
    assert {name: values.tolist() for name, values in found.values.items()} == {"a": [0.5, 1.5], "b": [3.0]}
    assert found.metadata() == {"quantize.imatrix.file": str(path), "quantize.imatrix.entries_count": 2}


HOSTILE = {
    "empty": (b"", "the file is empty: download it again"),
    "no tensors": (old_file(), "number of tensors: expected 1 to 2147483647, found 0"),
    "text": (b"It was the best of times", "length of a name|name: expected"),
    "long name": (struct.pack("<ii", 1, 1 << 30), "length of a name: expected 1 to 1024, found 1073741824"),
    "negative name": (struct.pack("<ii", 1, -5), "length of a name: expected 1 to 1024, found -5"),
    "no columns": (old_file((b"a", 1, [])), "columns of a: expected 1 to 67108864, found 0"),
    "many columns": (struct.pack("<ii1sii", 1, 1, b"a", 1, 1 << 26), "sums of a: expected 268435456 bytes"),
    "more columns": (struct.pack("<ii1sii", 1, 1, b"a", 1, 1 << 30), "columns of a: expected 1 to 67108864, found"),
    "twice": (old_file((b"a", 1, [1.0]), (b"a", 1, [1.0])), "a second tensor a"),
    "not UTF-8": (old_file((b"\xff", 1, [1.0])), "name: not UTF-8"),
    "cut end": (old_file((b"a", 1, [1.0]), end=struct.pack("<ii", 1, 9)), "text: expected 9 bytes, found 0"),
    "not a number": (old_file((b"a", 1, [float("nan")])), "expected finite, non-negative numbers"),
    "negative": (old_file((b"a", 1, [-1.0])), "finite, non-negative"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_old_files(case: str, tmp_path: Path) -> None:
    data, message = HOSTILE[case]
    (tmp_path / "x.dat").write_bytes(data)
    with pytest.raises(lowbit.FormatError, match=message):
        imatrix.load_imatrix(tmp_path / "x.dat")


@pytest.mark.parametrize(
    ("sums", "counts", "message"),
    [
        (np.ones(4), [np.inf], "counts must be non-negative integers"),
        (np.ones(4), [1e30], "counts must be non-negative integers"),
        (np.ones(4), [1, 1, 1], "4 sums for 3 counts"),
        (np.ones(0), [1], "0 sums for 1 counts"),
        (np.full(4, np.inf), [1], "finite"),
    ],
)
def test_hostile_gguf_files(sums: np.ndarray, counts: list[float], message: str, tmp_path: Path) -> None:
    tensors = {"a.in_sum2": np.float32(sums), "a.counts": np.float32(counts)}
    lowbit.gguf.write(tmp_path / "x.gguf", {"imatrix.chunk_count": 1}, tensors)
    with pytest.raises(lowbit.FormatError, match=message):
        imatrix.load_imatrix(tmp_path / "x.gguf")


def test_missing_file() -> None:
    with pytest.raises(lowbit.FileError, match="/no/such/file: No such file"):
        imatrix.read("/no/such/file")


def test_bad_arguments(tiny: lowbit.Model) -> None:
    for options, message in (
        ({"context": 0}, "context: expected at least 1, got 0"),
        ({"from_chunk": -1}, "at least 0"),
        ({"chunks": 0}, "chunks: expected at least 1, got 0"),
        ({"context": 32, "from_chunk": 10_000}, "no chunk of 32 tokens after the first 10000"),
    ):
        with pytest.raises(lowbit.InputError, match=message):
            imatrix.collect(tiny, TINY_TEXT, **{"context": 32, **options})
    with pytest.raises(lowbit.InputError, match="expected at least 256, one chunk"):
        imatrix.collect(tiny, "the", context=256)


def test_a_chunk_longer_than_the_trained_context(tiny: lowbit.Model, caplog: pytest.LogCaptureFixture) -> None:
    found = imatrix.collect(tiny, TINY_TEXT * 8, context=300, chunks=1)
    assert found.chunk_size == 300
    assert "context 300 is beyond the 256 tokens" in caplog.text


def test_inputs_that_are_not_finite() -> None:
    """The tensor is named, and the observer is nobody's afterwards."""
    observers: list[object] = []
    model = SimpleNamespace(
        make_room=lambda context: None, tokenizer=SimpleNamespace(encode=lambda text, **_: [ord(c) for c in text])
    )
    model.weights = {}
    model.observe = observers.append
    inputs = [np.float32([[3, 1e19]]), np.float32([[4, 1e19]])]

    def logits(chunk: np.ndarray, start: int) -> None:
        for name in ("token_embd.weight", "blk.0.attn_q.weight", "output.weight"):
            observers[0](name, inputs[0].copy())
        inputs.reverse()
        inputs[0] *= 1e1

    model.logits = logits
    with pytest.raises(lowbit.InputError, match=r"inputs of blk\.0\.attn_q\.weight are not finite after 1 tokens"):
        imatrix.collect(model, "abcd", context=2)
    assert observers[-1] is None


def test_conversion_names_what_was_not_seen(tmp_path: Path, tiny: lowbit.Model) -> None:
    sums = imatrix.collect(tiny, TINY_TEXT, context=TINY_CONTEXT, chunks=2)
    sums.entries["blk.0.attn_q.weight"].counts[0] = 0
    sums.entries["blk.0.ffn_up.weight"].sums[:] = 0
    del sums.entries["blk.0.attn_k.weight"]
    report = lowbit.convert(tiny.path, tmp_path / "x.gguf", "Q4_0", imatrix=sums, verify=False, provenance=False)
    text = "\n".join(report.notes)
    assert "has no entries for output.weight, token_embd.weight, blk.0.attn_k.weight" in text
    assert "has no tokens for blk.0.attn_q.weight: all its columns get the same weight" in text
    assert "only zeros for blk.0.ffn_up.weight" in text
    # As with equal importances, which is what llama-quantize has there.
    weights = np.asarray(tiny.weights["blk.0.attn_q.weight"])
    with lowbit.gguf.open(tmp_path / "x.gguf") as file:
        expected = lowbit.quantize(weights, "Q4_0", imatrix=np.ones(64)).data
        np.testing.assert_array_equal(file.tensors["blk.0.attn_q.weight"].data, expected)


def test_command(tmp_path: Path, stored: dict[str, Path], tiny: lowbit.Model) -> None:
    text, out = tmp_path / "tiny.txt", tmp_path / "out.gguf"
    text.write_text(TINY_TEXT)
    options = ["-c", TINY_CONTEXT, "--from-chunk", TINY_FIRST, "--chunks", TINY_CHUNKS, "--compute", "f32"]
    result = run("imatrix", tiny.path, text, "-o", out, *options, "--in-file", stored["old"], "--json")
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert (report["chunk_count"], report["chunk_size"]) == (2 * TINY_CHUNKS, TINY_CONTEXT)
    assert report["datasets"] == ["tiny.txt", str(text)]
    assert [t["tokens"] for t in report["tensors"]] == [2 * TINY_CHUNKS * TINY_CONTEXT] * 7
    written = imatrix.read(out)
    assert written.entries.keys() == {tensor["name"] for tensor in report["tensors"]}
    table = run("imatrix", "--in-file", out)
    assert (table.returncode, table.stderr) == (0, "")
    assert f"7 tensors, {2 * TINY_CHUNKS} chunks of {TINY_CONTEXT} tokens" in table.stdout
    # Looking at a file shows it as it is, and joining it with itself counts it twice.
    assert (
        json.loads(run("imatrix", "--in-file", stored["old"], "--json").stdout)["tensors"][0]["tokens"] == TINY_CHUNKS
    )
    for names in (["--in-file", out, "--in-file", out], ["--in-file", f"{out},{out}"]):
        joined = run("imatrix", *names, "-o", tmp_path / "twice,.gguf", "--json")
        assert json.loads(joined.stdout)["chunk_count"] == 4 * TINY_CHUNKS
    comma = run("imatrix", "--in-file", tmp_path / "twice,.gguf", "--json")
    assert json.loads(comma.stdout)["chunk_count"] == 4 * TINY_CHUNKS
    missing = run("imatrix", "--in-file", f"{out},none.gguf")
    assert (missing.returncode, missing.stderr) == (1, "lowbit: none.gguf: No such file or directory\n")


def test_command_warns_of_what_was_not_seen(tmp_path: Path) -> None:
    imatrix.Sums({"a": experts([2, 0]), "b": experts([4])}).save(tmp_path / "i.gguf")
    result = run("imatrix", "--in-file", tmp_path / "i.gguf")
    assert result.returncode == 0
    assert result.stderr.count("\n") == 1
    assert "no tokens for a (1 of 2 experts)" in result.stderr
    assert "1 of 2" in result.stdout


def test_wrong_usage(tmp_path: Path, stored: dict[str, Path], tiny: lowbit.Model) -> None:
    (tmp_path / "t.txt").write_text(TINY_TEXT)
    for arguments in ([], [tiny.path], [tiny.path, tmp_path / "t.txt"], [tiny.path, "--in-file", stored["tiny"]]):
        result = run("imatrix", *arguments)
        assert (result.returncode, result.stdout) == (2, "")
        assert "lowbit imatrix" in result.stderr
    result = run("imatrix", tiny.path, tmp_path / "t.txt", "-o", tmp_path / "none" / "x.gguf")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "no such folder" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_leaves_nothing(number: signal.Signals, tmp_path: Path, tiny: lowbit.Model) -> None:
    # The signal is sent from inside, after the second chunk: no timing.
    (tmp_path / "t.txt").write_text(TINY_TEXT)
    code = f"""
import os, lowbit.cli, lowbit.engine.model
logits, calls = lowbit.engine.model.Model.logits, []
def stop(self, *arguments, **options):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), {int(number)})
    return logits(self, *arguments, **options)
lowbit.engine.model.Model.logits = stop
folder = {str(tmp_path)!r}
lowbit.cli.main(["imatrix", {os.fspath(tiny.path)!r}, folder + "/t.txt", "-o", folder + "/x.gguf", "-c", "32"])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 128 + number
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["t.txt"]
