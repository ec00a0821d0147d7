"""Files that get their names in a folder."""

from pathlib import Path

import numpy as np
import pytest
from command import run
from tiny_checkpoint import make_checkpoint

import lowbit
from lowbit.conversion.names import checkpoint_name, model_name
from lowbit.conversion.open import Origin

BARD = Path(lowbit.__file__).parent / "data" / "bard"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("names") / "Tiny-0.1M", layers=2, hidden=64, ffn=64, head_dim=16)


def test_names_of_every_command(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = lowbit.convert(checkpoint, "out/", "BF16")
    assert Path(report.path) == Path("out/Tiny-0.1M-BF16.gguf")
    assert Path(report.path).is_file()
    made = lowbit.quantize_file(report.path, Path("out"), "q8_0")
    assert Path(made.path) == Path("out/Tiny-0.1M-Q8_0.gguf")
    copied = lowbit.quantize_file(report.path, "copy/", "COPY")
    assert Path(copied.path) == Path("copy/Tiny-0.1M-BF16.gguf")
    parts = lowbit.split_file(report.path, "parts/", split_max_tensors=20)
    assert Path(parts.paths[0]).name == "Tiny-0.1M-BF16-00001-of-00002.gguf"
    whole = lowbit.merge_files(parts.paths[0], "whole/")
    assert [Path(path) for path in whole.paths] == [Path("whole/Tiny-0.1M-BF16.gguf")]
    with pytest.raises(lowbit.InputError, match="would replace a file that is being read"):
        lowbit.quantize_file(report.path, "out", "COPY")
    planned = lowbit.convert(checkpoint, "new/", "Q8_0", dry_run=True)
    assert Path(planned.path) == Path("new/Tiny-0.1M-Q8_0.gguf")
    assert not Path("new").exists()
    sharded = lowbit.convert(checkpoint, "out/", "F16", split_max_tensors=20)
    assert Path(sharded.paths[0]).name == "Tiny-0.1M-F16-00001-of-00002.gguf"


def test_the_commands(checkpoint: Path, tmp_path: Path) -> None:
    result = run("convert", checkpoint, f"{tmp_path}/out/", "-f", "f32", "--no-verify")
    assert (result.returncode, result.stdout.startswith(f"{tmp_path}/out/Tiny-0.1M-F32.gguf: F32, ")) == (0, True)
    text = tmp_path / "text"
    text.write_text("".join(chr(65 + i % 26) for i in range(500)))
    result = run("imatrix", f"{tmp_path}/out/Tiny-0.1M-F32.gguf", text, "-o", tmp_path / "out", "--context", 8)
    assert (result.returncode, (tmp_path / "out" / "Tiny-0.1M-imatrix.gguf").is_file()) == (0, True), result.stderr
    assert f"{tmp_path}/out/Tiny-0.1M-imatrix.gguf".replace("/", "") in "".join(result.stdout.split()).replace("/", "")


class StopError(Exception):
    pass


def stop(step: lowbit.Progress) -> None:
    if step.title.split()[0] in ("write", "split", "merge"):
        raise StopError


def test_a_folder_is_made_with_its_file(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a refusal nor an interruption leaves an empty folder; one that was there stays."""
    monkeypatch.chdir(tmp_path)
    file = lowbit.convert(checkpoint, "whole.gguf", "F32", verify=False).path
    part = lowbit.split_file(file, "part", split_max_tensors=20).paths[0]
    Path("text").write_text("too short")
    Path("there").mkdir()
    before = {*Path().iterdir()}
    for target in ("out/", "there/"):
        with pytest.raises(lowbit.InputError, match="without importances"):
            lowbit.convert(BARD, target, "IQ2_XXS")
        with pytest.raises(lowbit.InputError, match="multiple of the block size 256"):
            lowbit.quantize_file(file, target, "Q4_K_M", strict=True)
        for call in (
            lambda: lowbit.convert(checkpoint, target, "F16", progress=stop),  # noqa: B023, called below
            lambda: lowbit.quantize_file(file, target, "Q8_0", progress=stop),  # noqa: B023
            lambda: lowbit.split_file(file, target, split_max_tensors=20, progress=stop),  # noqa: B023
            lambda: lowbit.merge_files(part, target, progress=stop),  # noqa: B023
        ):
            with pytest.raises(StopError):
                call()
        assert run("imatrix", file, "text", "-o", target).returncode == 1
        assert run("imatrix", "--in-file", file, "-o", target).returncode == 1
        assert {*Path().iterdir()} == before
        assert not any(Path("there").iterdir())
    with pytest.raises(lowbit.FileError, match=r"(?i)no such file"):
        lowbit.quantize_file(file, "no/such/", "Q8_0")
    assert run("imatrix", file, "text", "-o", "no/such/").returncode == 1
    lowbit.imatrix.Sums({"a": lowbit.imatrix.Entry(np.ones((1, 32), np.float32), np.ones(1, np.int64))}).save("i.gguf")
    assert run("imatrix", "--in-file", "i.gguf", "-o", "out/").returncode == 0
    assert [*Path("out").iterdir()] == [Path("out/imatrix.gguf")]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Qwen3-0.6B-BF16.gguf", "Qwen3-0.6B"), ("qwen2.5-0.5b-instruct-fp16.gguf", "qwen2.5-0.5b-instruct"),
        ("a/b/model.f16.gguf", "model"), ("x-Q4_K_M-00001-of-00003.gguf", "x"), ("model-7", "model-7"),
        ("model_Q4_K.gguf", "model"), ("q8_0.gguf", "q8_0"), ("Some-Model-IQ2_XXS.gguf", "Some-Model"),
    ],
)  # fmt: skip
def test_the_format_is_no_part_of_a_models_name(path: str, name: str) -> None:
    assert model_name(path) == name


def test_names_of_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--Qwen--Qwen3-0.6B" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    assert checkpoint_name(Origin(snapshot, None, [], [])) == "Qwen3-0.6B"
    assert checkpoint_name(Origin(snapshot, "Qwen/Qwen3-0.6B", [], [])) == "Qwen3-0.6B"
    monkeypatch.chdir(tmp_path)
    assert checkpoint_name(Origin(Path(), None, [], [])) == tmp_path.name
