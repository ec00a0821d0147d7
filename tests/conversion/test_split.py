"""split_file, merge_files and converting into several files: data/split.json.xz has SHA-256 of the reference tools'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from split_cases import CONVERSIONS, SPLITS
from stored import differences, hashes, stored

import lowbit
from lowbit.cli.execution import execute
from lowbit.conversion import pipeline
from lowbit.gguf.splits import SplitLimits

DATA = Path(__file__).parents[1] / "data"
BARD = Path(lowbit.__file__).parent / "data" / "bard"
REFERENCE: dict[str, dict[str, list[str]]] = stored("split")


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wholes")
    for format in {format for format, *_ in SPLITS.values()}:
        lowbit.convert(BARD, folder / f"{format}.gguf", format, verify=False, provenance=False)
    return folder


@pytest.mark.parametrize("name", SPLITS)
def test_llama_gguf_split(wholes: Path, tmp_path: Path, name: str) -> None:
    format, _, options = SPLITS[name]
    parts, merged, again = (tmp_path / folder for folder in ("parts", "merged", "again"))
    for folder in (parts, merged, again):
        folder.mkdir()
    planned = lowbit.split_file(wholes / f"{format}.gguf", parts / "m", dry_run=True, **options)
    assert list(parts.iterdir()) == []
    report = lowbit.split_file(wholes / f"{format}.gguf", parts / "m", **options)
    assert report == planned
    assert differences(parts, REFERENCE["split"][name]) == {}
    written = sorted(parts.iterdir())
    assert report.paths == [str(path) for path in written]
    assert report.file_bytes == [path.stat().st_size for path in written]
    lowbit.merge_files(written[-1], merged / "m.gguf")
    assert differences(merged, REFERENCE["merge"][name]) == {}
    lowbit.split_file(written[0], again / "m", **options)
    assert differences(again, REFERENCE["split"][name]) == {}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_the_reference_converter(tmp_path: Path, name: str) -> None:
    format, _, options = CONVERSIONS[name]
    report = lowbit.convert(BARD, tmp_path / "m.gguf", format, verify=False, provenance=False, **options)
    assert differences(tmp_path, REFERENCE["convert"][name]) == {}
    assert report.paths == [str(path) for path in sorted(tmp_path.iterdir())]


def test_quantizing_into_several_files_is_splitting_afterwards(wholes: Path, tmp_path: Path) -> None:
    format, _, options = SPLITS["blocks"]
    (tmp_path / "quantized").mkdir()
    (tmp_path / "converted").mkdir()
    lowbit.convert(BARD, tmp_path / "converted" / "m.gguf", format, verify=False, provenance=False, **options)
    lowbit.quantize_file(wholes / "BF16.gguf", tmp_path / "quantized" / "m.gguf", format, **options)
    for folder in ("converted", "quantized"):
        assert differences(tmp_path / folder, REFERENCE["split"]["blocks"]) == {}


def test_limits() -> None:
    sizes = [5, 40, 1, 1, 1, 100, 3]
    assert SplitLimits(max_bytes=40).files(sizes) == [0, 1, 2, 2, 2, 3, 4]
    assert SplitLimits(max_bytes=64).files(sizes, 32) == [0, 1, 2, 2, 3, 4, 5]
    assert SplitLimits(max_tensors=3).files(sizes) == [0, 0, 0, 1, 1, 1, 2]
    assert SplitLimits(max_tensors=3, no_tensor_first=True).files(sizes) == [1, 1, 1, 2, 2, 2, 3]
    assert SplitLimits(max_bytes=1).files([]) == []
    assert SplitLimits.parsed("3K", 0, False) == SplitLimits(3000)
    assert SplitLimits.parsed(7, 0, False) == SplitLimits(7)
    assert not SplitLimits.parsed("0", 0, False)
    with pytest.raises(lowbit.InputError, match="would have 65536 files, expected at most 65535"):
        SplitLimits(max_tensors=1).files([1] * 65536)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "expected split_max_size or split_max_tensors, got neither"),
        ({"split_max_size": "2 G"}, "expected a number of bytes such as 2000000000 or 2G, got '2 G'"),
        ({"split_max_size": -1}, "expected a number of bytes"),
        ({"split_max_size": "1" * 30}, "expected a number of bytes"),
        ({"split_max_tensors": -1}, "split_max_tensors: expected 0 to 2147483647, got -1"),
        ({"split_max_tensors": 1, "split_max_size": 1}, "exclude each other"),
        ({"no_tensor_first_split": True}, "expected split_max_size or split_max_tensors"),
    ],
)
def test_limits_that_are_none(wholes: Path, tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(lowbit.InputError, match=reason):
        lowbit.split_file(wholes / "Q4_K_M.gguf", tmp_path / "m", **options)
    assert list(tmp_path.iterdir()) == []


def test_kept_and_limited(wholes: Path, tmp_path: Path) -> None:
    with pytest.raises(
        lowbit.InputError, match="keep_split and split_max_size or split_max_tensors exclude each other"
    ):
        lowbit.quantize_file(wholes / "BF16.gguf", tmp_path / "m.gguf", "Q8_0", keep_split=True, split_max_tensors=3)


def test_no_file_replaces_one_that_is_read(wholes: Path, tmp_path: Path) -> None:
    lowbit.split_file(wholes / "Q4_K_M.gguf", tmp_path / "m", split_max_tensors=20)
    before = hashes(tmp_path)
    first = tmp_path / "m-00001-of-00003.gguf"
    with pytest.raises(lowbit.InputError, match=r"m-00003-of-00003\.gguf: would replace a file that is being read"):
        lowbit.merge_files(first, tmp_path / "m-00003-of-00003.gguf")
    with pytest.raises(lowbit.InputError, match="would replace a file that is being read"):
        lowbit.split_file(first, tmp_path / "m", split_max_tensors=19)
    assert hashes(tmp_path) == before


def test_what_is_no_whole_model(wholes: Path, tmp_path: Path) -> None:
    with pytest.raises(lowbit.InputError, match="expected a file of a split model, got a whole one"):
        lowbit.merge_files(wholes / "Q4_K_M.gguf", tmp_path / "m.gguf")
    lowbit.split_file(wholes / "Q4_K_M.gguf", tmp_path / "m", split_max_tensors=20)
    second = tmp_path / "m-00002-of-00003.gguf"
    second.unlink()
    with pytest.raises(lowbit.FileError, match=r"m-00002-of-00003\.gguf: file 2 of 3 of a split model: "):
        lowbit.merge_files(tmp_path / "m-00001-of-00003.gguf", tmp_path / "m.gguf")
    third = tmp_path / "m-00003-of-00003.gguf"
    for key, value in (("split.no", np.uint16(0)), ("split.count", np.uint16(2))):
        with lowbit.gguf.open(wholes / "Q4_K_M.gguf") as file:
            keys = {"split.no": np.uint16(1), "split.count": np.uint16(3), "split.tensors.count": np.int32(46)}
            lowbit.gguf.write(second, keys | {key: value}, {"x": file.tensors["output_norm.weight"]})
        with pytest.raises(lowbit.FormatError, match=f'm-00002-of-00003.gguf: key "{key}": expected'):
            lowbit.merge_files(third, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_all_files_or_none(
    wholes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    encode, calls = pipeline.Job.encode, 0

    def failing(*args: Any) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 30:
            raise failure
        return encode(*args)

    monkeypatch.setattr(pipeline.Job, "encode", failing)
    with pytest.raises(type(failure)):
        lowbit.split_file(wholes / "Q4_K_M.gguf", tmp_path / "m", split_max_tensors=20)
    assert list(tmp_path.iterdir()) == []


def test_the_commands(wholes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, prefix, whole = str(wholes / "Q4_K_M.gguf"), str(tmp_path / "m"), str(tmp_path / "whole.gguf")
    assert execute(["split", source, prefix, "--split-max-tensors", "20", "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned.pop("written"), planned["tensors"]) == (False, [20, 20, 6])
    assert list(tmp_path.iterdir()) == []
    assert execute(["split", source, prefix, "--split-max-tensors", "20"]) == 0
    assert "m-00003-of-00003.gguf" in capsys.readouterr().out
    assert execute(["merge", f"{prefix}-00002-of-00003.gguf", whole, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tensors"] == [46]
    assert execute(["split", source, prefix]) == 2
    assert "expected --split-max-size or --split-max-tensors" in capsys.readouterr().err
    assert execute(["convert", str(BARD), whole, "-f", "bf16", "--split-max-size", "2M", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["paths"]) > 2
