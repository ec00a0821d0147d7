"""No command or function replaces a file that it reads, whatever the file is to it, and through links."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import make_checkpoint, write_imatrix, write_safetensors

import lowbit
from lowbit.base.files import read_bytes
from lowbit.base.operation import operation, replacing
from lowbit.cli.execution import execute
from lowbit.evaluate import plot

SIZES = {"layers": 1, "hidden": 64, "ffn": 64, "head_dim": 16}
REFUSED = "would replace a file that is being read"
TEMPLATE = "{{ messages[0]['content'] }}"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of everything that is read."""
    folder = tmp_path_factory.mktemp("inputs")
    make_checkpoint(folder / "m", shards=2, **SIZES)
    (folder / "m" / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "m" / "generation_config.json").write_text("{}")
    (folder / "m" / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "m" / "additional_chat_templates").mkdir()
    (folder / "m" / "additional_chat_templates" / "rag.jinja").write_text(TEMPLATE)
    (folder / "m" / "special_tokens_map.json").write_text("{}")
    adapter = folder / "adapter"
    adapter.mkdir()
    a, b = np.zeros((2, 64), np.float32), np.zeros((64, 2), np.float32)
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_"
    write_safetensors(adapter / "adapter_model.safetensors", {f"{name}A.weight": a, f"{name}B.weight": b})
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    write_imatrix(folder / "i.gguf", folder / "m")
    (folder / "types").write_text("ffn_down=Q5_0")
    (folder / "arch.py").write_text(
        "from lowbit.arch.families.qwen3 import Qwen3\nclass Own(Qwen3):\n    name = 'qwen3'\nARCHITECTURE = Own()\n"
    )
    lowbit.convert(folder / "m", folder / "w.gguf", "F32", verify=False, provenance=False)
    lowbit.split_file(folder / "w.gguf", folder / "p", split_max_tensors=6)
    return folder


@pytest.fixture(autouse=True)
def _nothing_changes(inputs: Path) -> Iterator[None]:
    before = contents(inputs)
    yield
    assert contents(inputs) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def links(tmp_path: Path, file: Path) -> list[Path]:
    """Names of a file: its own, a symbolic and a hard link, and one by a link to its folder."""
    names = [file, tmp_path / "symbolic", tmp_path / "hard", tmp_path / "folder" / file.name]
    names[1].symlink_to(file)
    names[2].hardlink_to(file)
    (tmp_path / "folder").symlink_to(file.parent)
    return names


CONVERTED = [
    "m/config.json", "m/tokenizer.json", "m/tokenizer_config.json", "m/generation_config.json", "m/README.md",
    "m/special_tokens_map.json", "m/chat_template.jinja", "m/additional_chat_templates/rag.jinja",
    "m/model.safetensors.index.json", "m/model-00001-of-00002.safetensors", "m/model-00002-of-00002.safetensors",
    "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "i.gguf", "types",
]  # fmt: skip


@pytest.mark.parametrize("name", CONVERTED)
def test_convert(inputs: Path, tmp_path: Path, name: str) -> None:
    options: dict[str, Any] = {
        "lora": inputs / "adapter",
        "imatrix": inputs / "i.gguf",
        "tensor_type_file": inputs / "types",
    }
    own, *others = links(tmp_path, inputs / name)
    ways: list[tuple[Path, dict[str, Any]]] = [
        (own, {"verify": False, "provenance": False}),
        (own, {"verify": True, "provenance": True}),
    ]
    for target, more in ways + [(path, {"dry_run": True}) for path in others]:
        with pytest.raises(lowbit.InputError, match=REFUSED):
            lowbit.convert(inputs / "m", target, "Q8_0", **options, **more)


def test_small_files_that_only_verifying_reads(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", "mistral", **SIZES)
    for path in folder.glob("tokenizer*"):
        with pytest.raises(lowbit.InputError, match=REFUSED):
            lowbit.convert(folder, path, "F32", verify=False, provenance=False)


@pytest.mark.parametrize("name", ["w.gguf", "i.gguf", "types"])
def test_quantize_file(inputs: Path, tmp_path: Path, name: str) -> None:
    for target in links(tmp_path, inputs / name):
        for dry_run in (False, True):
            with pytest.raises(lowbit.InputError, match=REFUSED):
                lowbit.quantize_file(
                    inputs / "w.gguf",
                    target,
                    "Q8_0",
                    imatrix=inputs / "i.gguf",
                    dry_run=dry_run,
                    tensor_type_file=inputs / "types",
                )


def test_files_of_a_split_model(inputs: Path, tmp_path: Path) -> None:
    parts = sorted(inputs.glob("p-*.gguf"))
    assert len(parts) == 3
    for target in links(tmp_path, parts[2]):
        for dry_run in (False, True):
            with pytest.raises(lowbit.InputError, match=REFUSED):
                lowbit.merge_files(parts[0], target, dry_run=dry_run)
            with pytest.raises(lowbit.InputError, match=REFUSED):
                lowbit.quantize_file(parts[0], target, "F16", dry_run=dry_run)
    (tmp_path / "q-00002-of-00003.gguf").symlink_to(parts[0])
    for dry_run in (False, True):
        with pytest.raises(lowbit.InputError, match=REFUSED):
            lowbit.split_file(parts[0], tmp_path / "q", split_max_tensors=6, dry_run=dry_run)
        with pytest.raises(lowbit.InputError, match=REFUSED):
            lowbit.quantize_file(parts[0], tmp_path / "q.gguf", "F16", keep_split=True, dry_run=dry_run)


def test_an_export(inputs: Path, tmp_path: Path) -> None:
    for target in (inputs / "w.gguf", inputs, inputs / "m"):
        with pytest.raises(lowbit.FileError, match="there already"):
            lowbit.export_hf(inputs / "w.gguf", target)


def test_a_target_that_is_a_folder(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "m-F32.gguf").mkdir()  # what the file in a folder would be called
    for dry_run in (False, True):
        for target in (tmp_path / "m-F32.gguf" / "..", tmp_path):
            with pytest.raises(lowbit.FileError, match="expected a regular file, found a folder"):
                lowbit.convert(inputs / "m", target, "F32", verify=False, provenance=False, dry_run=dry_run)


TEXT = Path(lowbit.__file__).parent / "data" / "bard-valid.txt"
#: {d} is the folder of inputs, {t} the file that is to be replaced: name -> (file, arguments).
COMMANDS = {
    "imatrix, text": ("types", "imatrix {d}/w.gguf {d}/types -o {t}"),
    "imatrix, model": ("w.gguf", f"imatrix {{d}}/w.gguf {TEXT} -o {{t}}"),
    "imatrix, folder": ("m/config.json", f"imatrix {{d}}/m {TEXT} -o {{t}}"),
    "imatrix, part": ("p-00003-of-00003.gguf", f"imatrix {{d}}/p-00002-of-00003.gguf {TEXT} -o {{t}}"),
    "imatrix, joined": ("i.gguf", "imatrix --in-file {d}/i.gguf --in-file {d}/i.gguf -o {t}"),
    "ladder, text": ("types", "ladder {d}/w.gguf {d}/types --plot {t}"),
    "ladder, model": ("w.gguf", f"ladder {{d}}/w.gguf {TEXT} --plot {{t}}"),
    "ladder, imatrix": (
        "i.gguf",
        f"ladder {{d}}/w.gguf {TEXT} --context 8 --chunks 1 --imatrix {{d}}/i.gguf --plot {{t}}",
    ),
    "arch": ("arch.py", "--arch {d}/arch.py convert {d}/m {t} -f f32"),
    "convert": ("m/tokenizer.json", "convert {d}/m {t} -f f32"),
    "quantize": ("i.gguf", "quantize --imatrix {d}/i.gguf {d}/w.gguf {t} Q8_0"),
    "metadata": ("w.gguf", "metadata {d}/w.gguf set general.name --from-file {t}"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(
    inputs: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plot, "check", lambda path: None)  # of matplotlib, and of the name's end
    target, line = COMMANDS[name]
    for path in links(tmp_path, inputs / target):
        assert execute(line.format(d=inputs, t=path).split()) == 1
        assert REFUSED in capsys.readouterr().err


def test_whichever_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("a")

    @operation()
    def reads() -> bytes:
        return read_bytes(path, 10)

    with operation():
        reads()
        with pytest.raises(lowbit.InputError, match=REFUSED):
            replacing([str(path)])
    with operation():
        replacing([str(path)])
        with pytest.raises(lowbit.InputError, match=REFUSED):
            reads()
    with operation():
        with operation():
            replacing([str(path)])  # what is finished inside is not this one's
        assert reads() == b"a"
    replacing([str(path)])
    assert read_bytes(path, 10) == b"a"


def test_a_number_of_a_file_that_is_gone(tmp_path: Path) -> None:
    """Systems give a removed file's number to the next one."""
    with operation():
        for i in range(20):
            path = tmp_path / str(i)
            path.write_text("a")
            read_bytes(path, 10)
            path.unlink()
            (tmp_path / "next").write_text("b")
            replacing([str(tmp_path / "next")])
            (tmp_path / "next").unlink()


def test_tensors_of_the_file_that_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    x = np.arange(1 << 16, dtype=np.float32)
    lowbit.gguf.write(path, {}, {"x": x})
    with lowbit.gguf.open(path) as file:
        lowbit.gguf.write(path, {"a": 1}, {"y": file.tensors["x"], "z": file.tensors["x"]})
        np.testing.assert_array_equal(file.tensors["x"], x)
    with lowbit.gguf.open(path) as file:
        assert json.dumps(list(file.tensors)) == '["y", "z"]'
        np.testing.assert_array_equal(file.tensors["z"], x)
    q = {"x": lowbit.quantize(x, "Q8_0")}
    lowbit.save_npz(tmp_path / "q.npz", q)
    lowbit.save_npz(tmp_path / "q.npz", lowbit.load_npz(tmp_path / "q.npz"))
    assert lowbit.load_npz(tmp_path / "q.npz") == q
    assert sorted(os.listdir(tmp_path)) == ["a.gguf", "q.npz"]
