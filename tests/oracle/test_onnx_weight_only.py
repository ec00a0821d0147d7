"""Mode "weight-only" on onnxruntime, and against its own quantizer of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import openvino
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi._pybind_state import quantize_matmul_2bits, quantize_matmul_4bits, quantize_matmul_8bits
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    HQQWeightOnlyQuantConfig,
    HQQWeightOnlyQuantizer,
    KQuantWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)
from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

import lowbit
from lowbit import _core
from lowbit.onnx.report import QuantizeReport

pytestmark = pytest.mark.oracle

Array = npt.NDArray[Any]
ROUND = {2: quantize_matmul_2bits, 4: quantize_matmul_4bits, 8: quantize_matmul_8bits}
#: Relative error of the product with activations that are rounded to 8 bits, whose scale is that of a block.
INT8_ACTIVATIONS = 2e-2


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    constants: dict[str, Array],
    inputs: dict[str, tuple[Any, int]],
    opset: int = 21,
    kind: int = TensorProto.FLOAT,
    rank: int | None = None,
) -> Path:
    """A model with the output y. inputs: name -> element type and rank. rank: of y."""
    values = [helper.make_tensor_value_info(name, dtype, [None] * axes) for name, (dtype, axes) in inputs.items()]
    output = helper.make_tensor_value_info("y", kind, None if rank is None else [None] * rank)
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "graph", values, [output], tensors)
    ir_version = 13 if opset > 21 else 10
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version), path)
    return path


def run(path: Path, feeds: dict[str, Array], **entries: str) -> Array:
    options = ort.SessionOptions()
    for key, value in entries.items():
        options.add_session_config_entry(f"session.{key}", value)
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], feeds)[0])


def distance(found: Array, expected: Array) -> float:
    difference = found.astype(np.float64) - expected.astype(np.float64)
    return float(np.linalg.norm(difference) / np.linalg.norm(expected.astype(np.float64)))


def spread(raw: Array, bits: int) -> Array:
    """Codes of a byte from the lowest bits on, along the last axis."""
    shifts = np.arange(0, 8, bits)
    return (raw[..., None] >> shifts & (1 << bits) - 1).reshape(*raw.shape[:-1], -1)


def weights(model: Path) -> dict[str, Array]:
    """The decoded weight of each MatMulNBits, [outputs, inputs] in float64, by its first input and its node."""
    proto = onnx.load(model)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    decoded = {}
    for node in proto.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        values = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        bits, block, K, N = (values[key] for key in ("bits", "block_size", "K", "N"))
        blocks = -(-K // block)
        codes = spread(tensors[node.input[1]], bits).reshape(N, blocks, block).astype(np.float64)
        scales = tensors[node.input[2]].astype(np.float64).reshape(N, blocks, 1)
        zeros: Any = 1 << (bits - 1)
        if len(node.input) > 3 and node.input[3]:
            zeros = spread(tensors[node.input[3]].reshape(N, -1), bits)[:, :blocks, None]
        decoded[node.name] = ((codes - zeros) * scales).reshape(N, -1)[:, :K]
    return decoded


def quantize(source: Path, target: Path, **options: Any) -> QuantizeReport:
    return lowbit.onnx.quantize(source, target, mode="weight-only", **options)


def matmul(path: Path, K: int, N: int, dtype: Any = np.float32, seed: int = 0, **options: Any) -> tuple[Path, Array]:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((K, N)) / np.sqrt(K)).astype(dtype)
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    return save(path, [node], {"w": weight}, {"x": (element, 3)}, kind=element, **options), weight


@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_products_are_those_of_the_decoded_weights(tmp_path: Path, bits: int, symmetric: bool, block_size: int) -> None:
    rng = np.random.default_rng(1)
    for K, N in ((256, 24), (300, 7)):
        for dtype in (np.float32, np.float16):
            source, weight = matmul(tmp_path / "in.onnx", K, N, dtype)
            x = rng.standard_normal((2, 3, K)).astype(dtype)
            levels = (0, 4) if bits == 4 else (4,)
            for level in levels:
                target = tmp_path / "out.onnx"
                options = {"bits": bits, "symmetric": symmetric, "block_size": block_size, "accuracy_level": level}
                [report] = quantize(source, target, **options).nodes
                [decoded] = weights(target).values()
                expected = x.astype(np.float64) @ decoded.T
                exact = level == 0 or (bits == 2 and block_size in (16, 256))
                limit = INT8_ACTIVATIONS if not exact else 1e-5 if dtype == np.float32 else 2e-3
                assert distance(run(target, {"x": x}), expected) < limit
                assert report.error == pytest.approx(distance(decoded, weight.T), rel=1e-4)
                assert report.bytes_after < report.bytes_before == weight.nbytes
                [node] = onnx.load(target).graph.node
                assert {a.name: a.i for a in node.attribute}["accuracy_level"] == level


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounded_bytes_are_onnxruntimes(bits: int) -> None:
    rng = np.random.default_rng(bits)
    for symmetric in (True, False):
        for block in (16, 32, 64, 128, 256):
            for K, N in ((512, 64), (300, 31), (257, 2)):
                for dtype in (np.float32, np.float16):
                    w = (rng.standard_normal((K, N)) * 10 ** rng.uniform(-3, 1)).astype(dtype)
                    w[:, 0] = np.abs(w[:, 0])
                    w[: K // 2, 1] = 0
                    blocks = -(-K // block)
                    codes = np.zeros((N, blocks, block * bits // 8), np.uint8)
                    scales = np.zeros(N * blocks, dtype)
                    zeros = np.zeros((N, -(-blocks * bits // 8)), np.uint8)
                    ROUND[bits](codes, w, scales, zeros.reshape(-1), block, N, K, symmetric)
                    found = _core.quantize_blockwise(
                        w.T,
                        bits=bits,
                        block_size=block,
                        symmetric=symmetric,
                        scale_type=w.dtype.name,
                        method="round",
                        layout="rows",
                        is_signed=False,
                        importance=None,
                        threads=2,
                    )
                    # Behind the last weight onnxruntime leaves what the memory had.
                    mine = spread(found[0].reshape(codes.shape), bits).reshape(N, -1)
                    assert (mine[:, :K] == spread(codes, bits).reshape(N, -1)[:, :K]).all()
                    assert not mine[:, K:].any()
                    assert found[1].astype(dtype).tobytes() == scales.tobytes()
                    if not symmetric:
                        assert (found[2] == spread(zeros, bits)[:, :blocks]).all()


MNIST = Path(__file__).parent.parent / "data" / "onnx" / "mnist.onnx"


def real_weights() -> dict[str, Array]:
    """Trained weights."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(MNIST).graph.initializer}
    return {name: array.reshape(len(array), -1) for name, array in arrays.items() if array.size >= 2048}


def made_weights() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    shape = (64, 512)
    return {
        "normal": rng.standard_normal(shape).astype(np.float32),
        "uniform": rng.uniform(-1, 1, shape).astype(np.float32),
        "heavy tails": rng.standard_t(3, shape).astype(np.float32),
        "positive": rng.uniform(0.5, 1, shape).astype(np.float32),
    }


def squared_error(w: Array, bits: int, block: int, symmetric: bool, method: str) -> float:
    *_, error, _ = _core.quantize_blockwise(
        w,
        bits=bits,
        block_size=block,
        symmetric=symmetric,
        scale_type="float32",
        method=method,
        layout="rows",
        is_signed=False,
        importance=None,
        threads=1,
    )
    return float(error)


@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_search_loses_less_than_onnxruntimes_methods(bits: int, block: int) -> None:
    """Than k_quant, and than HQQ with zero points that the fast kernels take: rounded to integers."""
    for name, w in {**made_weights(), **real_weights()}.items():
        padded = np.pad(w, ((0, 0), (0, -w.shape[1] % block)))
        codes, scales, zeros = quant_tensor_k_quant_cpu(padded, bits, block)
        k_quant = np.sum(((codes - zeros) * scales - padded.reshape(-1, block)) ** 2)
        quantizer = HQQWeightOnlyQuantizer(HQQWeightOnlyQuantConfig(block_size=block, bits=bits))
        found = quantizer.quantize_internal(torch.from_numpy(w.copy()), bits=bits, group_size=block)
        codes, scales, zeros = (each.double().numpy() for each in found)
        rounded = np.clip(np.round(zeros.reshape(-1, 1)), 0, 2**bits - 1)
        values = padded.reshape(-1, block)
        codes = np.clip(np.round(values / scales.reshape(-1, 1)) + rounded, 0, 2**bits - 1)
        hqq = np.sum(((codes - rounded) * scales.reshape(-1, 1) - values) ** 2)
        ours = squared_error(w, bits, block, False, "search")
        assert ours <= k_quant, name
        assert ours <= hqq, name
        for symmetric in (True, False):
            searched = squared_error(w, bits, block, symmetric, "search")
            assert searched <= squared_error(w, bits, block, symmetric, "round") * (1 + 1e-6), name


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("K", [128, 100])
def test_standard_blocks_are_fused_and_right(tmp_path: Path, bits: int, symmetric: bool, K: int) -> None:
    opset, N = (25, 12) if bits == 2 else (21, 9)
    for transposed in (0, 1):
        rng = np.random.default_rng(2)
        weight = rng.standard_normal((N, K) if transposed else (K, N)).astype(np.float32)
        bias = rng.standard_normal(N).astype(np.float32)
        node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="gemm", transB=transposed, alpha=0.5, beta=2.0)
        source = save(
            tmp_path / "in.onnx", [node], {"w": weight, "b": bias}, {"x": (TensorProto.FLOAT, 2)}, opset, rank=2
        )
        target = tmp_path / "out.onnx"
        [report] = quantize(source, target, bits=bits, symmetric=symmetric, standard=True, method="round").nodes
        onnx.checker.check_model(onnx.load(target))
        x = rng.standard_normal((5, K)).astype(np.float32)
        matrix = weight.T if transposed else weight
        expected = 0.5 * x.astype(np.float64) @ matrix + 2.0 * bias
        exact = run(target, {"x": x}, disable_quant_qdq="1")
        assert distance(exact, expected) < 3 * report.error
        packed = tmp_path / "packed.onnx"
        quantize(source, packed, bits=bits, symmetric=symmetric, method="round")
        [decoded] = weights(packed).values()
        assert distance(exact, x.astype(np.float64) @ decoded.T + 2.0 * bias) < 1e-5
        assert distance(run(target, {"x": x}), exact) < INT8_ACTIVATIONS


def test_int2_columns_that_onnxruntime_mixes_up_stay_float(tmp_path: Path) -> None:
    """findings/onnxruntime-two-bit-columns.sh: rows of 9 codes of 2 bits do not fill whole bytes."""
    source, weight = matmul(tmp_path / "in.onnx", 64, 9, opset=25)
    x = np.random.default_rng(2).standard_normal((1, 5, 64)).astype(np.float32)
    [report] = quantize(source, tmp_path / "out.onnx", bits=2, standard=True).nodes
    assert report.action == "float"
    assert "9 outputs" in report.reason
    assert distance(run(tmp_path / "out.onnx", {"x": x}), x @ weight) < 1e-5


@pytest.mark.parametrize("alpha", [1.0, -0.5])
@pytest.mark.parametrize("transposed", [(0, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("bias", ["none", "row", "matrix", "scalar", "dynamic"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_gemm(tmp_path: Path, alpha: float, transposed: tuple[int, int], bias: str, dtype: Any) -> None:
    rng = np.random.default_rng(3)
    M, N, K = 3, 8, 64
    weight = rng.standard_normal((N, K) if transposed[1] else (K, N)).astype(dtype)
    x = rng.standard_normal((K, M) if transposed[0] else (M, K)).astype(dtype)
    shape = {"row": (1, N), "matrix": (M, 1), "scalar": (), "dynamic": (M, N), "none": ()}[bias]
    c = rng.standard_normal(shape).astype(dtype)
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    constants, inputs, feeds = {"w": weight}, {"x": (element, 2)}, {"x": x}
    names = ["x", "w"]
    if bias == "dynamic":
        inputs["c"], feeds["c"] = (element, 2), c
        names.append("c")
    elif bias != "none":
        constants["c"] = c
        names.append("c")
    attributes = {"alpha": alpha, "beta": 3.0, "transA": transposed[0], "transB": transposed[1]}
    node = helper.make_node("Gemm", names, ["y"], name="gemm", **attributes)
    source = save(tmp_path / "in.onnx", [node], constants, inputs, kind=element)
    target = tmp_path / "out.onnx"
    quantize(source, target, accuracy_level=0)
    decoded = weights(target)["gemm"]
    expected = (x.T if transposed[0] else x).astype(np.float64) @ decoded.T
    if bias != "none":
        expected = expected + 3.0 * c.astype(np.float64)
    assert distance(run(target, feeds), expected) < (1e-5 if dtype == np.float32 else 2e-3)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("form", ["transposed", "gemm"])
def test_a_tied_embedding_is_stored_once(tmp_path: Path, bits: int, symmetric: bool, form: str) -> None:
    rng = np.random.default_rng(4)
    table = rng.standard_normal((500, 64)).astype(np.float32)
    nodes = [helper.make_node("Gather", ["e", "x"], ["h"], name="embed")]
    if form == "transposed":
        nodes.append(helper.make_node("Transpose", ["e"], ["t"], perm=[1, 0]))
        nodes.append(helper.make_node("MatMul", ["h", "t"], ["y"], name="head"))
    else:
        nodes.append(helper.make_node("Gemm", ["h", "e"], ["y"], name="head", transB=1))
    source = save(tmp_path / "in.onnx", nodes, {"e": table}, {"x": (TensorProto.INT64, 1)})
    target = tmp_path / "out.onnx"
    report = quantize(source, target, bits=bits, symmetric=symmetric)
    assert [node.is_quantized for node in report.nodes] == [True, True]
    assert sum(node.bytes_after for node in report.nodes) < table.nbytes * (bits + 2) / 32
    assert target.stat().st_size < table.nbytes * (bits + 2) / 32
    importances = {"head": np.geomspace(1, 100, 64)}
    weighted = quantize(source, tmp_path / "weighted.onnx", bits=bits, symmetric=symmetric, importances=importances)
    assert weighted.bytes_after == report.bytes_after
    errors = [(weights(path)["head"] - table) ** 2 @ importances["head"] for path in (target, weighted.path)]
    assert errors[1].sum() < errors[0].sum()
    decoded = weights(target)["head"]
    ids = np.array([0, 7, 499])
    assert distance(run(target, {"x": ids}), decoded[ids] @ decoded.T) < INT8_ACTIVATIONS
    model = onnx.load(target)
    model.graph.output.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, None))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert distance(session.run(["h"], {"x": ids})[0], decoded[ids]) < 1e-6


def test_a_tied_embedding_beside_the_model(tmp_path: Path) -> None:
    """Two initializers have the same bytes. OpenVINO refuses GatherBlockQuantized of a Reshape."""
    table = np.random.default_rng(4).standard_normal((500, 64)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["e", "x"], ["h"], name="embed"),
        helper.make_node("Gemm", ["h", "e"], ["y"], name="head", transB=1),
    ]
    source = save(tmp_path / "in.onnx", nodes, {"e": table}, {"x": (TensorProto.INT64, 1)})
    quantize(source, tmp_path / "out.onnx", bits=4, accuracy_level=0, external_data=True)
    assert "Reshape" not in {node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node}
    assert sum(path.stat().st_size for path in tmp_path.glob("out.onnx*")) < table.nbytes * 6 / 32
    decoded = weights(tmp_path / "out.onnx")["head"]
    ids = np.array([0, 7, 499])
    expected = decoded[ids] @ decoded.T
    assert distance(run(tmp_path / "out.onnx", {"x": ids}), expected) < 1e-5
    exact = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}
    compiled = openvino.Core().compile_model(tmp_path / "out.onnx", "CPU", exact)
    assert distance(compiled({"x": ids})[0], expected) < 1e-5


def transformer(path: Path, layers: int = 2, width: int = 256, vocabulary: int = 256) -> Path:
    """Feed-forward layers between an embedding and an output matrix; one weight has rows that do not fit a block."""
    rng = np.random.default_rng(5)
    constants = {"e": rng.standard_normal((vocabulary, width)).astype(np.float32)}
    nodes = [helper.make_node("Gather", ["e", "x"], ["h0"], name="embed")]
    for layer in range(layers):
        inner = 240
        for name, shape in ((f"up{layer}", (width, inner)), (f"down{layer}", (inner, width))):
            constants[name] = (rng.standard_t(4, shape) / np.sqrt(shape[0])).astype(np.float32)
        nodes += [
            helper.make_node("MatMul", [f"h{layer}", f"up{layer}"], [f"u{layer}"], name=f"/up/{layer}"),
            helper.make_node("Tanh", [f"u{layer}"], [f"a{layer}"], name=f"/tanh/{layer}"),
            helper.make_node("MatMul", [f"a{layer}", f"down{layer}"], [f"d{layer}"], name=f"/down/{layer}"),
            helper.make_node("Add", [f"h{layer}", f"d{layer}"], [f"h{layer + 1}"], name=f"/add/{layer}"),
        ]
    constants["head"] = (rng.standard_normal((width, vocabulary)) / 8).astype(np.float32)
    nodes.append(helper.make_node("MatMul", [f"h{layers}", "head"], ["y"], name="head"))
    return save(path, nodes, constants, {"x": (TensorProto.INT64, 2)})


@pytest.mark.parametrize("method", ["default", "k_quant"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_outputs_are_not_worse_than_those_of_onnxruntimes_quantizer(
    tmp_path: Path, method: str, symmetric: bool
) -> None:
    source = transformer(tmp_path / "in.onnx")
    x = np.arange(64).reshape(2, 32)
    expected = run(source, {"x": x})
    for block in (32, 64, 128):
        config: Any = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=symmetric, accuracy_level=0)
        if method == "k_quant":
            if symmetric:
                continue
            config = KQuantWeightOnlyQuantConfig()
        quantizer = MatMulNBitsQuantizer(
            onnx.load(source), block_size=block, is_symmetric=symmetric, accuracy_level=0, algo_config=config
        )
        quantizer.process()
        theirs = tmp_path / "theirs.onnx"
        quantizer.model.save_model_to_file(str(theirs))
        ours = tmp_path / "ours.onnx"
        options = {"block_size": block, "symmetric": symmetric, "accuracy_level": 0, "exclude_operators": ["Gather"]}
        quantize(source, ours, **options)
        assert distance(run(ours, {"x": x}), expected) <= distance(run(theirs, {"x": x}), expected)
        assert ours.stat().st_size <= theirs.stat().st_size * 1.01 + 1000


def test_inputs_of_one_to_four_dimensions(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    weight = rng.standard_normal((64, 8)).astype(np.float32)
    for rank in (1, 2, 4):
        node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
        source = save(tmp_path / "in.onnx", [node], {"w": weight}, {"x": (TensorProto.FLOAT, rank)})
        target = tmp_path / "out.onnx"
        quantize(source, target, accuracy_level=0)
        x = rng.standard_normal((2,) * (rank - 1) + (64,)).astype(np.float32)
        found = run(target, {"x": x})
        assert found.shape == (*x.shape[:-1], 8)
        assert distance(found, x @ weights(target)["product"].T) < 1e-5


def test_a_weight_of_several_nodes_is_stored_once(tmp_path: Path) -> None:
    weight = np.random.default_rng(7).standard_normal((64, 64)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="second"),
    ]
    source = save(tmp_path / "in.onnx", nodes, {"w": weight}, {"x": (TensorProto.FLOAT, 2)})
    report = quantize(source, tmp_path / "out.onnx")
    assert [node.bytes_after for node in report.nodes] == [64 * 2 * (16 + 4), 0]
    assert len(onnx.load(tmp_path / "out.onnx").graph.initializer) == 2


def test_a_trained_model_of_ir_version_3(tmp_path: Path) -> None:
    """mnist: the weight is a Reshape of an initializer that is an input, too. onnxruntime leaves it float."""
    target = tmp_path / "out.onnx"
    report = quantize(MNIST, target, accuracy_level=0)
    assert [(node.operator, node.is_quantized) for node in report.nodes] == [("MatMul", True)]
    [decoded] = weights(target).values()
    replaced = onnx.load(MNIST)
    [tensor] = [each for each in replaced.graph.initializer if each.name == "Parameter193"]
    tensor.CopyFrom(numpy_helper.from_array(decoded.T.reshape(tensor.dims).astype(np.float32), tensor.name))
    onnx.save(replaced, tmp_path / "replaced.onnx")
    feeds = {"Input3": np.random.default_rng(8).uniform(0, 255, (1, 1, 28, 28)).astype(np.float32)}
    outputs = []
    for path in (target, tmp_path / "replaced.onnx"):
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        outputs.append(np.asarray(session.run(None, feeds)[0]))
    assert distance(*outputs) < 1e-5
