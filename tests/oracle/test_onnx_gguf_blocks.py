"""GGUF formats in the operators of onnxruntime and OpenVINO: inputs with a single one give the weights, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import openvino
import pytest

import lowbit
from lowbit.onnx import BlockMatrix, Graph, Model, Tensor, Value, from_gguf
from lowbit.onnx.block_matrix import Part

pytestmark = pytest.mark.oracle

Array = npt.NDArray[Any]
#: A run of a model: the path and the inputs by name.
Run = Callable[[Path, Mapping[str, Array]], Array]

with np.load(Path(__file__).parents[1] / "data" / "golden.npz") as file:
    GOLDEN = dict(file)
#: ggml's blocks by key, some with importances, and the values that ggml decodes.
DECODED = {key.removesuffix(".dequant"): GOLDEN[key] for key in GOLDEN if key.endswith(".dequant")}
KEYS = sorted(DECODED)


def weights(key: str, rows: int = 6) -> lowbit.QTensor:
    return lowbit.QTensor(GOLDEN[key][:rows], key.split(".")[0])


def terms(q: lowbit.QTensor) -> Array:
    """|scale * level| + |minimum| of a format with a minimum, from the offsets of the exact form."""
    offsets = from_gguf("w", q, layout="Gather").matrix.offsets
    assert offsets is not None
    minima = np.repeat(offsets.array.astype(np.float64), q.shape[1] // offsets.shape[1], axis=1)
    return np.asarray(np.abs(q.dequantize() - minima) + np.abs(minima) + np.finfo(np.float64).tiny)


def in_onnxruntime(path: Path, feeds: Mapping[str, Array], level: int = 0) -> Array:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(level))
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], dict(feeds))[0])


def in_openvino(path: Path, feeds: Mapping[str, Array]) -> Array:
    compiled = openvino.Core().compile_model(path, "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"})
    return np.array(compiled(dict(feeds))[0])


RUNS: dict[str, Run] = {"onnxruntime": in_onnxruntime, "openvino": in_openvino}


def save(path: Path, matrix: BlockMatrix, part: Part, given: Value, rank: int, **more: Tensor) -> Path:
    tensors = {tensor.name: tensor for tensor in (*part.tensors, *more.values())}
    output = Value.of("y", np.float32, [None] * rank)
    graph = Graph("graph", tuple(part.nodes), tensors, (given,), (output,))
    opsets = {**matrix.opsets, "": max(matrix.opsets[""], 21)}
    lowbit.onnx.write(path, Model(graph, opsets, max(matrix.ir_version, 10)))
    onnx.checker.check_model(onnx.load(path), full_check="com.microsoft" not in opsets)
    return path


def product(path: Path, matrix: BlockMatrix, run: Run, x: Array, **options: Any) -> Array:
    part = matrix.product("x", "y", rank=x.ndim, **{"accuracy_level": 0, **options})
    more = {"bias": bias_of(matrix)} if "bias" in options else {}
    save(path, matrix, part, Value.of("x", np.float32, [None] * (x.ndim - 1) + [matrix.shape[1]]), x.ndim, **more)
    return run(path, {"x": x})


def bias_of(matrix: BlockMatrix) -> Tensor:
    return Tensor.of("bias", np.arange(matrix.shape[0], dtype=np.float32))


@pytest.mark.parametrize("engine", RUNS)
@pytest.mark.parametrize("layout", ["MatMulNBits", "DequantizeLinear"])
@pytest.mark.parametrize("key", KEYS)
def test_products_give_ggmls_values(tmp_path: Path, key: str, layout: str, engine: str) -> None:
    for rows in (4, 5):  # ONNX Runtime multiplies wrongly with 5 columns of 2 bits: they have 4
        matrix = from_gguf("w", weights(key, rows), layout=layout, exact=True).matrix
        x = np.eye(matrix.shape[1], dtype=np.float32)[None]
        if engine == "openvino" and matrix.codes.dtype == ml_dtypes.int2:
            with pytest.raises(RuntimeError):  # it has no such tensors
                product(tmp_path / "m.onnx", matrix, in_openvino, x)
            continue
        y = product(tmp_path / "m.onnx", matrix, RUNS[engine], x)
        np.testing.assert_array_equal(y[0].T, DECODED[key][:rows])


@pytest.mark.parametrize("engine", RUNS)
@pytest.mark.parametrize("layout", ["MatMulNBits", "Gather"])
@pytest.mark.parametrize("key", KEYS)
def test_rows_are_ggmls_values(tmp_path: Path, key: str, layout: str, engine: str) -> None:
    matrix = from_gguf("w", weights(key), layout=layout, exact=True).matrix
    ids = np.array([[0, 5, 2], [3, 3, 1]])
    save(tmp_path / "m.onnx", matrix, matrix.gather("ids", "y"), Value.of("ids", np.int64, [None, None]), 3)
    np.testing.assert_array_equal(RUNS[engine](tmp_path / "m.onnx", {"ids": ids}), DECODED[key][ids])


@pytest.mark.parametrize("engine", RUNS)
@pytest.mark.parametrize("key", ["Q4_0", "Q4_K", "Q8_0", "F16"])
def test_bias_and_ranks(tmp_path: Path, key: str, engine: str) -> None:
    for layout in ("MatMulNBits", "DequantizeLinear"):
        matrix = from_gguf("w", weights(key), layout=layout).matrix
        x = np.random.default_rng(0).standard_normal((3, 1024)).astype(np.float32)
        expected = x.astype(np.float64) @ DECODED[key].T + np.arange(6)
        for rank in (2, 3, 4):
            y = product(tmp_path / "m.onnx", matrix, RUNS[engine], x.reshape(*[1] * (rank - 2), 3, -1), bias="bias")
            np.testing.assert_allclose(y.reshape(3, 6), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("key", ["Q4_1", "Q4_K", "Q2_K"])
@pytest.mark.parametrize("engine", RUNS)
def test_float_zero_points_are_within_the_bound(tmp_path: Path, key: str, engine: str) -> None:
    blocks = from_gguf("w", weights(key), float_zero_points=True)
    x = np.eye(1024, dtype=np.float32)[None]
    y = product(tmp_path / "m.onnx", blocks.matrix, RUNS[engine], x)[0].T
    assert blocks.fidelity.bound is not None
    ratios = np.abs(y.astype(np.float64) - DECODED[key]) / terms(weights(key))
    assert 0 < ratios.max() <= blocks.fidelity.bound


@pytest.mark.parametrize("key", KEYS)
def test_int8_kernels_are_used_by_default(tmp_path: Path, key: str) -> None:
    """With accuracy level 4 the error is that of activations in 8 bits: the form has kernels for it."""
    x = np.random.default_rng(0).standard_normal((1, 4, 1024)).astype(np.float32)
    expected = x[0].astype(np.float64) @ DECODED[key].T
    for layout in ("MatMulNBits", "DequantizeLinear"):
        matrix = from_gguf("w", weights(key), layout=layout).matrix
        path = tmp_path / "m.onnx"
        y = product(path, matrix, partial(in_onnxruntime, level=4), x, accuracy_level=4)
        error = np.linalg.norm(y[0] - expected) / np.linalg.norm(expected)
        assert (error < 1e-6) if matrix.scales is None else (1e-4 < error < 3e-2)


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    matrix = from_gguf("w", weights("Q4_K")).matrix
    embedding, output = matrix.gather("ids", "x"), matrix.product("x", "y", accuracy_level=0)
    tensors = {tensor.name: tensor for tensor in (*embedding.tensors, *output.tensors)}
    graph = Graph(
        "g",
        (*embedding.nodes, *output.nodes),
        tensors,
        (Value.of("ids", np.int64, [None, None]),),
        (Value.of("y", np.float32, [None] * 3),),
    )
    lowbit.onnx.write(tmp_path / "m.onnx", Model(graph, {"": 21, "com.microsoft": 1}, 10), external_data=True)
    assert (tmp_path / "m.onnx.data").stat().st_size < matrix.nbytes + 1024
    ids = np.array([[1, 2]])
    expected = DECODED["Q4_K"][ids].astype(np.float64) @ DECODED["Q4_K"].T
    for run in RUNS.values():
        np.testing.assert_allclose(run(tmp_path / "m.onnx", {"ids": ids}), expected, rtol=0, atol=1e-3)
