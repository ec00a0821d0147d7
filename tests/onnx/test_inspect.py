"""`lowbit inspect` of ONNX models, and what is said where another kind of file is expected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import run
from onnx_files import network, whole_model

import lowbit
import lowbit.onnx
from lowbit.onnx import Model

MNIST = Path(__file__).parents[1] / "data" / "onnx" / "mnist.onnx"


def written(path: Path, model: Model, external_data: bool | None = None) -> Path:
    lowbit.onnx.write(path, model, external_data=external_data)
    return path


def test_report(tmp_path: Path) -> None:
    path = written(tmp_path / "m.onnx", whole_model())
    report = lowbit.inspect(path)
    assert isinstance(report, lowbit.OnnxInspectReport)
    assert (report.kind, report.ir_version, report.producer) == ("ONNX IR version 10", 10, "maker")
    assert (report.opsets, report.metadata, report.files) == ({"ai.onnx": 21, "my": 1}, {"author": "a"}, {})
    assert report.operators == {"Neg": 4, "my.Custom": 1, "If": 1, "Add": 1, "Constant": 1}
    assert report.functions == ["my.Twice"]
    assert report.inputs == [
        lowbit.ValueReport("x", "float32", ["n", None, 3]),
        lowbit.ValueReport("c", "bool", []),
    ]
    assert report.outputs == [lowbit.ValueReport("y", None, None), lowbit.ValueReport("z", "float16", None)]
    tensors = {tensor.name: (tensor.format, tensor.num_bytes) for tensor in report.tensors}
    assert tensors == {
        "w": ("float32", 2400), "int4": ("int4", 4), "bf16": ("bfloat16", 0), "texts": ("string", 3),
        "k": ("int64", 8), "y": ("float32", 120),
    }  # fmt: skip
    assert report.formats["float32"].tensors == 6  # w, four times the k of the subgraph, and one in an attribute
    assert report.file_bytes == path.stat().st_size


def test_old_files_list_initializers_as_inputs() -> None:
    report = lowbit.inspect(MNIST)
    assert isinstance(report, lowbit.OnnxInspectReport)
    assert [value.name for value in report.inputs] == ["Input3"]
    assert report.operators == {"Add": 3, "Reshape": 2, "Conv": 2, "Relu": 2, "MaxPool": 2, "MatMul": 1}
    assert report.total.tensors == 8


def test_files_beside_the_model(tmp_path: Path) -> None:
    path = written(tmp_path / "m.onnx", network(), True)
    report = lowbit.inspect(path)
    assert isinstance(report, lowbit.OnnxInspectReport)
    assert report.files == {"m.onnx.data": 64 * 64 * 4}
    assert report.file_bytes == path.stat().st_size + 64 * 64 * 4


def test_command(tmp_path: Path) -> None:
    path = written(tmp_path / "any name", whole_model())
    report = json.loads(run("inspect", str(path), "--json").stdout)
    assert report["operators"]["my.Custom"] == 1
    assert report["inputs"][0] == {"name": "x", "dtype": "float32", "shape": ["n", None, 3]}
    shown = run("inspect", str(path))
    assert (shown.returncode, shown.stderr) == (0, "")
    for text in ("author", "ai.onnx 21, my 1", "n x ? x 3", "scalar", "my.Custom", "20 x 30", "int4", "my.Twice"):
        assert text in shown.stdout
    assert "20 x 30" not in run("inspect", str(path), "--no-tensors").stdout


@pytest.mark.parametrize("open_file", [lowbit.gguf.open, lowbit.load, lowbit.load_tokenizer, lowbit.load_npz])
def test_where_something_else_is_expected(tmp_path: Path, open_file: object) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(MNIST.read_bytes())
    with pytest.raises(lowbit.FormatError, match=r"model\.gguf: this is an ONNX model: lowbit inspect, lowbit onnx"):
        open_file(path)  # type: ignore[operator]


def test_where_a_checkpoint_is_expected(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(MNIST.read_bytes())
    with pytest.raises(lowbit.FileError, match="lowbit onnx takes ONNX models, and lowbit convert the folder"):
        lowbit.open_checkpoint(path)
    with pytest.raises(lowbit.UnsupportedError, match=r"model\.onnx is an ONNX model: .*lowbit inspect"):
        lowbit.open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "the file is empty"),
        (b"GGUF\3\0\0\0" + bytes(99), "this is a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n", "this is a git-lfs pointer"),
        (b"<!DOCTYPE html>", "this is an HTML page"),
        (b"root:x:0:0:root:/root:/bin/bash", "this is no ONNX model: "),
    ],
)
def test_where_onnx_is_expected(tmp_path: Path, data: bytes, text: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(lowbit.FormatError, match=rf"m\.onnx: {text}"):
        lowbit.inspect(path)
