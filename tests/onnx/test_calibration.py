"""Calibration data: files and iterables, how they are cut into runs, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import lowbit
from lowbit import onnx
from lowbit.onnx import Graph, Model, Node, Value
from lowbit.onnx.calibration import CalibrationData, feeds, repeatable

Array = npt.NDArray[Any]


def model() -> Model:
    """Inputs with an open first dimension, a fixed one, one that is not first, and none."""
    inputs = (
        Value.of("x", np.float32, ["n", 3]),
        Value.of("fixed", np.float32, [2, 4]),
        Value.of("state", np.float32, [2, "n", 5]),
        Value.of("rate", np.int64, []),
    )
    nodes = tuple(Node.of("Identity", [value.name], [f"{value.name}_y"]) for value in inputs)
    outputs = tuple(Value.of(node.outputs[0], np.float32) for node in nodes)
    return Model(Graph("g", nodes, {}, inputs, outputs), {"": 17}, 8)


def arrays(**changed: Any) -> dict[str, Any]:
    usual = {
        "x": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fixed": np.arange(16, dtype=np.float32).reshape(4, 4),
        "state": np.zeros((2, 1, 5), np.float32),
        "rate": np.array(16000),
    }
    return {name: array for name, array in {**usual, **changed}.items() if array is not None}


def read(data: CalibrationData, batch_size: int = 1) -> list[dict[str, Any]]:
    return [{name: array.tolist() for name, array in feed.items()} for feed in feeds(data, model(), batch_size)]


def test_a_file_is_cut_along_the_first_axis(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays())
    runs = read(tmp_path / "a.npz")
    assert [run["x"] for run in runs] == [[[0, 1, 2]], [[3, 4, 5]]]
    assert [run["fixed"][0] for run in runs] == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert all(np.shape(run["state"]) == (2, 1, 5) and run["rate"] == 16000 for run in runs)


def test_batches(tmp_path: Path) -> None:
    x = np.arange(15, dtype=np.float32).reshape(5, 3)
    np.savez(tmp_path / "a.npz", **arrays(x=x, fixed=np.zeros((2, 4), np.float32)))
    runs = read(tmp_path / "a.npz", batch_size=2)
    assert [len(run["x"]) for run in runs] == [2, 2, 1]
    assert [row for run in runs for row in run["x"]] == x.tolist()


def test_folders_and_patterns_are_read_in_order(tmp_path: Path) -> None:
    for name, value in (("b", 2.0), ("a", 1.0), ("c", 3.0)):
        one = arrays(x=np.full((1, 3), value, np.float32), fixed=np.zeros((2, 4), np.float32))
        np.savez(tmp_path / f"{name}.npz", **one)
    (tmp_path / "notes.txt").write_text("no data")
    for path in (tmp_path, tmp_path / "*.npz", str(tmp_path / "[abc].npz")):
        assert [run["x"][0][0] for run in read(path)] == [1, 2, 3]
    assert [run["x"][0][0] for run in read(tmp_path / "b.npz")] == [2]


def test_each_mapping_of_an_iterable_is_a_run() -> None:
    one = arrays(fixed=np.zeros((2, 4), np.float32))
    assert len(read([one, one])) == 2
    assert [run["x"] for run in read(iter([one]))] == [one["x"].tolist()]
    again = repeatable(iter([one]))
    assert len(read(again)) == len(read(again)) == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": None}, "input 'x' is missing, expected x, fixed, state and 1 more"),
        ({"y": np.zeros(1)}, "the model has no input 'y', expected x, fixed, state and 1 more"),
        ({"stat": np.zeros(1)}, "the model has no input 'stat', did you mean state?, expected x, fixed, state"),
        ({"x": np.zeros((2, 3))}, "input 'x': expected float32, got float64"),
        ({"rate": np.float32(1)}, "input 'rate': expected int64, got float32"),
        ({"x": np.zeros((2, 4), np.float32)}, "input 'x': expected shape [n, 3], got [2, 4]"),
        ({"x": np.zeros(3, np.float32)}, "input 'x': expected shape [n, 3], got [3]"),
        ({"x": np.zeros((0, 3), np.float32)}, "input 'x': expected values, got an empty array of shape [0, 3]"),
    ],
)
def test_data_that_does_not_fit(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    one = arrays(**{"fixed": np.zeros((2, 4), np.float32)} | changed)
    with pytest.raises(lowbit.InputError) as raised:
        read([arrays(fixed=np.zeros((2, 4), np.float32)), one])
    assert str(raised.value).startswith(f"calibration, run 1: {message}")
    np.savez(tmp_path / "a.npz", **one)
    with pytest.raises(lowbit.InputError) as raised:
        read(tmp_path / "a.npz")
    assert str(raised.value).startswith(f"{tmp_path / 'a.npz'}: calibration: {message}")
    for data, about in ((tmp_path / "a.npz", f"{tmp_path / 'a.npz'}: inputs"), ([one], "inputs, run 0")):
        with pytest.raises(lowbit.InputError) as raised:
            [*feeds(data, model(), about="inputs")]
        assert str(raised.value).startswith(f"{about}: {message}")


def test_rows_that_do_not_divide(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays(fixed=np.zeros((3, 4), np.float32)))
    with pytest.raises(lowbit.InputError, match="input 'fixed': expected a multiple of 2 rows, got 3"):
        read(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", **arrays(fixed=np.zeros((6, 4), np.float32)))
    with pytest.raises(lowbit.InputError, match="different numbers of runs: expected one number, got x 2, fixed 3"):
        read(tmp_path / "a.npz")


def test_an_iterable_is_not_cut() -> None:
    with pytest.raises(lowbit.InputError, match=r"input 'fixed': expected shape \[2, 4\], got \[4, 4\]"):
        read([arrays()])


@pytest.mark.parametrize("data", [[], iter([])])
def test_no_data(data: Any) -> None:
    with pytest.raises(lowbit.InputError, match="there is no data"):
        read(data)


@pytest.mark.parametrize("data", [3, {"x": 1}])
def test_what_is_no_data(data: Any) -> None:
    with pytest.raises(lowbit.InputError, match="calibration: expected a path or an iterable of mappings"):
        read(data)


def test_a_run_that_is_no_mapping() -> None:
    with pytest.raises(lowbit.InputError, match="run 0: expected a mapping from input to array, got int"):
        read([1])  # type: ignore[list-item]


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(lowbit.InputError, match=r"no \.npz file"):
        read(tmp_path)
    with pytest.raises(lowbit.FileError):
        read(tmp_path / "a.npz")
    np.save(tmp_path / "a.npz.npy", np.zeros(3))
    (tmp_path / "a.npz.npy").rename(tmp_path / "a.npz")
    with pytest.raises(lowbit.FormatError, match=r"expected an \.npz file of arrays, found one array"):
        read(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(lowbit.FormatError, match=r"expected an \.npz file of arrays, found another file"):
        read(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(lowbit.FormatError, match=r"no \.npz file of arrays"):
        read(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", x=np.array([{}], object))
    with pytest.raises(lowbit.FormatError, match=r"no \.npz file of arrays"):
        read(tmp_path / "a.npz")


def test_onnxruntime_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(lowbit.UnsupportedError, match=r"needs onnxruntime: pip install 'lowbit\[onnx\]'"):
        onnx.quantize(model(), tmp_path / "out.onnx", mode="static", calibration=[])
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "static"}, "calibration: expected typical inputs, got none"),
        ({"mode": "dynamic", "calibration": []}, "calibration: expected none in mode dynamic, got data"),
    ],
)
def test_data_belongs_to_the_mode(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(lowbit.InputError, match=message):
        onnx.quantize(model(), tmp_path / "out.onnx", **options)


def test_dimensions_below_zero_are_open(tmp_path: Path) -> None:
    value = Value.of("x", np.float32, [-1, 3, -1])
    graph = Graph("g", (Node.of("Identity", ["x"], ["y"]),), {}, (value,), (Value.of("y", np.float32),))
    onnx.write(tmp_path / "a.onnx", Model(graph, {"": 17}, 8))
    read_back = onnx.open(tmp_path / "a.onnx")
    assert read_back.inputs[0].shape == (None, 3, None)
    runs = [{"x": np.zeros((2, 3, 5), np.float32)}]
    assert [feed["x"].shape for feed in feeds(runs, read_back)] == [(2, 3, 5)]
    onnx.write(tmp_path / "b.onnx", read_back)
    assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "a.onnx").read_bytes()
