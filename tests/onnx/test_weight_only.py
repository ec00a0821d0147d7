"""Blockwise weights on every SIMD target against NumPy, and mode "weight-only" on graphs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import lowbit
from lowbit import _core
from lowbit.onnx import Graph, Model, Node, Tensor, Value
from lowbit.onnx.options import OnnxOptions
from lowbit.onnx.weight_only import weight_only

Array = npt.NDArray[Any]
METHODS = ("round", "search", "hqq")


@pytest.fixture(params=lowbit.simd.targets())
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    previous = lowbit.simd.current()
    lowbit.simd.force(request.param)
    yield request.param
    lowbit.simd.force(previous)


def blockwise(w: Array, **options: Any) -> tuple[Array, Array, Array, float, float]:
    """Codes in bytes, scales, zero points and sums of squares of a matrix [outputs, inputs]."""
    chosen: dict[str, Any] = {
        "bits": 4,
        "block_size": 32,
        "symmetric": False,
        "scale_type": w.dtype.name,
        "method": "round",
        "layout": "rows",
        "is_signed": False,
        "importance": None,
        "threads": 1,
    }
    return _core.quantize_blockwise(w, **{**chosen, **options})


def spread(raw: Array, bits: int) -> Array:
    """Codes of bytes from the lowest bits on, along the last axis."""
    return (raw[..., None] >> np.arange(0, 8, bits) & (1 << bits) - 1).reshape(*raw.shape[:-1], -1)


def decoded(w: Array, options: dict[str, Any]) -> Array:
    """The decoded weights [outputs, inputs] in float64."""
    codes, scales, zeros, _, _ = blockwise(w, **options)
    outputs, inputs = w.shape
    bits, block = options["bits"], options["block_size"]
    blocks = -(-inputs // block)
    at = np.arange(inputs) // block
    if options.get("layout", "rows") == "rows":
        levels = spread(codes.reshape(outputs, -1), bits)[:, :inputs].astype(np.int64)
        assert codes.size == outputs * blocks * block * bits // 8
    else:
        assert codes.size == -(-outputs * inputs * bits // 8)
        levels = spread(codes, bits)[: outputs * inputs].reshape(inputs, outputs).T.astype(np.int64)
        scales, zeros = scales.T, zeros.T
    if options.get("is_signed"):
        half = 1 << bits - 1
        levels = levels ^ half  # two's complement minus half is the code
    return np.asarray((levels - zeros[:, at]) * scales[:, at].astype(np.float64))


def rounded(w: Array, bits: int, block: int, symmetric: bool) -> Array:
    """Method "round" in NumPy."""
    half, top = 1 << bits - 1, (1 << bits) - 1
    out = np.zeros(w.shape)
    for begin in range(0, w.shape[1], block):
        x = w[:, begin : begin + block].astype(np.float32)
        low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
        if symmetric:
            scale = np.where(np.abs(high) > np.abs(low), high, low) / np.float32(-half)
            zero = np.full_like(scale, half)
        else:
            low, high = np.minimum(low, 0), np.maximum(high, 0)
            scale = (high - low) / np.float32(top)
            zero = np.floor(np.clip(-low / np.where(scale == 0, 1, scale), 0, top) + np.float32(0.5))
        inverse = np.float32(1) / np.where(scale == 0, np.float32(np.inf), scale)
        codes = np.floor(np.clip(x * inverse + zero, 0, top).astype(np.float64) + 0.5)
        out[:, begin : begin + block] = (codes - zero) * scale.astype(np.float64)
    return out


def made(outputs: int, inputs: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((outputs, inputs)).astype(np.float32)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rounding_is_numpys(target: str, bits: int, symmetric: bool) -> None:
    for block in (16, 32, 64, 128, 256):
        for outputs, inputs in ((1, 1), (3, 15), (17, 33), (40, 256), (130, 300)):
            w = made(outputs, inputs)
            options = {"bits": bits, "block_size": block, "symmetric": symmetric}
            expected = rounded(w, bits, block, symmetric)
            for layout in ("rows", "columns"):
                found = decoded(w, {**options, "layout": layout, "is_signed": layout == "columns"})
                assert np.array_equal(found, expected)
            *_, error, weight = blockwise(w, **options)
            assert error == pytest.approx(np.sum((w - expected) ** 2), rel=1e-5, abs=1e-12)
            assert weight == pytest.approx(np.sum(w.astype(np.float64) ** 2), rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_target_gives_the_same_bytes(method: str) -> None:
    found = {}
    for name in lowbit.simd.targets():
        previous = lowbit.simd.current()
        lowbit.simd.force(name)
        for bits in (2, 4, 8):
            for dtype in (np.float32, np.float16):
                w = made(37, 300).astype(dtype)
                w[:3] *= np.float16(1e-3)
                codes, scales, zeros, error, _ = blockwise(w, bits=bits, method=method, block_size=64)
                found.setdefault((bits, dtype), set()).add((codes.tobytes(), scales.tobytes(), zeros.tobytes(), error))
        lowbit.simd.force(previous)
    assert all(len(each) == 1 for each in found.values())


@pytest.mark.parametrize("method", METHODS)
def test_neither_threads_nor_strides_change_the_bytes(method: str) -> None:
    w = made(300, 200)
    for layout in ("rows", "columns"):
        expected = blockwise(w, method=method, layout=layout)
        apart = np.zeros((600, 400), np.float32)
        apart[::2, ::2] = w
        for view, threads in ((w, 3), (np.ascontiguousarray(w.T).T, 2), (apart[::2, ::2], 1), (w[::-1][::-1], 1)):
            found = blockwise(view, method=method, layout=layout, threads=threads)
            for a, b in zip(found[:3], expected[:3], strict=True):
                assert np.array_equal(a, b)
            assert found[3:] == pytest.approx(expected[3:], rel=1e-12)


def test_half_scales_are_float16(target: str) -> None:
    for method in METHODS:
        w = made(20, 64).astype(np.float16)
        scales = blockwise(w, method=method)[1]
        assert np.array_equal(scales, scales.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_search_is_never_worse_than_rounding(target: str, bits: int, symmetric: bool) -> None:
    rng = np.random.default_rng(1)
    for dtype in (np.float32, np.float16):
        for w in (made(50, 130), rng.standard_t(2, (50, 130)), rng.uniform(0.5, 1, (50, 130)), 1e-6 * made(50, 130)):
            w = w.astype(dtype)
            options = {"bits": bits, "symmetric": symmetric}
            plain = np.sum((decoded(w, {**options, "block_size": 32, "method": "round"}) - w) ** 2, axis=1)
            found = np.sum((decoded(w, {**options, "block_size": 32, "method": "search"}) - w) ** 2, axis=1)
            assert (found <= plain * (1 + 1e-5)).all()
    if bits < 8:
        w = made(50, 128)
        errors = {
            method: blockwise(w, bits=bits, symmetric=symmetric, method=method)[3] for method in ("round", "search")
        }
        assert errors["search"] < 0.93 * errors["round"]


def test_search_finds_the_codes_of_decoded_weights(target: str) -> None:
    """Weights on a grid are kept exactly, whatever its zero point."""
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 16, (16, 32))
    codes[:, 0], codes[:, 1] = 0, 15
    zeros = np.arange(16)[:, None]
    w = ((codes - zeros) * np.float32(0.125)).astype(np.float32)
    *_, error, weight = blockwise(w, method="search")
    assert error <= 1e-10 * weight


def test_importances_shift_the_error(target: str) -> None:
    w, rng = made(40, 128), np.random.default_rng(3)
    importance = np.where(rng.random(128) < 0.2, 100, 1).astype(np.float32)
    options = {"bits": 2, "block_size": 32, "method": "search"}
    plain = (decoded(w, options) - w) ** 2 @ importance
    weighted = (decoded(w, {**options, "importance": importance}) - w) ** 2 @ importance
    assert weighted.sum() < 0.8 * plain.sum()
    zero = np.zeros(128, np.float32)
    assert np.array_equal(decoded(w, {**options, "importance": zero}), decoded(w, options))
    large = np.full(128, 3e38, np.float32)
    assert np.array_equal(decoded(w, {**options, "importance": large}), decoded(w, options))


def hqq_error(w: Array, method: str, p: float) -> float:
    options = {"bits": 4, "block_size": 64, "method": method}
    return float(np.sum(np.abs(decoded(w, options) - w) ** p))


def test_hqq_has_the_smaller_sum_of_small_powers(target: str) -> None:
    w = np.random.default_rng(4).standard_t(3, (64, 256)).astype(np.float32)
    assert hqq_error(w, "hqq", 11 / 16) < 0.97 * hqq_error(w, "round", 11 / 16)
    assert hqq_error(w, "hqq", 11 / 16) < hqq_error(w, "search", 11 / 16)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_hostile_values(target: str, method: str, layout: str) -> None:
    largest = np.finfo(np.float32).max
    for values in (
        np.zeros(48),
        np.full(48, 1.5),
        np.full(48, -largest),
        np.tile([largest, -largest], 24),
        np.full(48, 1e-45),
        np.tile([1e-45, -3e-40, 0], 16),
        np.r_[largest, np.zeros(47)],
        np.r_[1e-38, np.full(47, -1e38)],
    ):
        w = np.tile(values.astype(np.float32), (5, 1))
        for bits in (2, 4, 8):
            for symmetric in (True, False):
                if method == "hqq" and symmetric:
                    continue
                options = {"bits": bits, "block_size": 32, "symmetric": symmetric, "method": method, "layout": layout}
                found = decoded(w, options)
                assert np.isfinite(found).all()
                step = 2.0 * float(np.abs(w).max()) / (2**bits - 1) * (2 if symmetric else 1)
                assert (np.abs(found - w) <= step + 1e-37).all()
    for bad, name in ((np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "-infinity")):
        w = made(70, 90)
        w[69, 1] = w[3, 80] = bad
        with pytest.raises(lowbit.InputError) as caught:
            blockwise(w, method=method, layout=layout, threads=2)
        assert "output 3 and input 80" in str(caught.value)
        assert caught.value.found == name


def test_wrong_arguments() -> None:
    w = made(4, 64)
    nan = np.full(64, np.nan, np.float32)
    for options in (
        {"bits": 3},
        {"block_size": 48},
        {"block_size": 8},
        {"block_size": 512},
        {"method": "best"},
        {"layout": "tiles"},
        {"scale_type": "bfloat16"},
        {"threads": 0},
        {"method": "hqq", "symmetric": True},
        {"importance": np.ones(64, np.float32)},
        {"method": "search", "importance": nan},
        {"method": "search", "importance": -np.ones(64, np.float32)},
        {"method": "search", "importance": np.ones(63, np.float32)},
    ):
        with pytest.raises(lowbit.InputError):
            blockwise(w, **options)
    for empty in (np.zeros((0, 64), np.float32), np.zeros((4, 0), np.float32)):
        assert blockwise(empty)[0].size == 0


# --- graphs


def model(nodes: list[Node], tensors: dict[str, Array], opset: int = 21, inputs: tuple[str, ...] = ("x",)) -> Model:
    values = tuple(Value.of(name, np.float32, None) for name in inputs)
    constants = {name: Tensor.of(name, array) for name, array in tensors.items()}
    graph = Graph("graph", tuple(nodes), constants, values, (Value.of("y", np.float32, None),))
    return Model(graph, {"": opset}, 10)


def options(**given: Any) -> OnnxOptions:
    return OnnxOptions(mode="weight-only", **given)


def test_what_stays_float_has_a_reason() -> None:
    nodes = [
        Node.of("MatMul", ["x", "z"], ["a"], name="dynamic"),
        Node.of("MatMul", ["w", "a"], ["b"], name="left"),
        Node.of("MatMul", ["b", "batched"], ["c"], name="batched"),
        Node.of("MatMul", ["c", "double"], ["d"], name="double"),
        Node.of("MatMul", ["d", "short"], ["e"], name="short"),
        Node.of("MatMul", ["e", "w"], ["f"], name="excluded"),
        Node.of("Gather", ["w", "i"], ["g"], name="columns", axis=1),
        Node.of("Gather", ["odd", "i"], ["h"], name="odd rows"),
        Node.of("Gather", ["shape", "i"], ["k"], name="shape"),
        Node.of("MatMul", ["f", "w"], ["y"], name="right"),
    ]
    tensors = {
        "w": made(64, 64),
        "batched": made(128, 64).reshape(2, 64, 64),
        "double": made(64, 64).astype(np.float64),
        "short": made(3, 64),
        "odd": made(64, 40),
        "shape": np.array([1, 2], np.int64),
    }
    _, reports = weight_only(model(nodes, tensors, inputs=("x", "z", "i")), options(exclude_nodes=["excluded"]))
    assert {report.name: report.reason for report in reports} == {
        "dynamic": "dynamic weight",
        "left": "the weight is the left operand",
        "batched": "the weight has 3 dimensions, the kernels need 2",
        "double": "the weight is float64, the kernels need float32 or float16",
        "short": "768 bytes would become 1280",
        "excluded": "node is excluded",
        "columns": "it does not read rows",
        "odd rows": "rows of 40 values are not a multiple of block_size 32",
        "right": "",
    }
    _, reports = weight_only(model([nodes[-1]], {"w": made(64, 64)}, opset=20), options(standard=True))
    assert "need opset 21, the model has 20: raise it with: lowbit onnx optimize IN OUT --opset 21" in reports[0].reason


def test_nodes_with_the_wrong_number_of_inputs_stay() -> None:
    w = {"w": made(64, 64)}
    for operator in ("MatMul", "Gemm", "Gather"):
        for inputs, outputs in (([], ["y"]), (["w"], ["y"]), (["x", "w"], []), (["x", "w"], ["y", "z"])):
            given = model([Node.of(operator, inputs, outputs, name="bad")], w)
            changed, reports = weight_only(given, options())
            assert reports == []
            assert changed.nodes == given.nodes


def test_bits_by_name_and_attributes() -> None:
    nodes = [
        Node.of("MatMul", ["x", "w"], ["a"], name="/layers.0/up"),
        Node.of("MatMul", ["a", "v"], ["b"], name="/layers.0/down"),
        Node.of("MatMul", ["b", "u"], ["y"], name="/head"),
    ]
    tensors = {name: made(64, 64, seed) for seed, name in enumerate("wvu")}
    chosen = options(bits={"/head": 8, "*down": 2}, accuracy_level=0, symmetric=False, block_size=16)
    changed, reports = weight_only(model(nodes, tensors), chosen)
    facts = [(node.get("bits"), node.get("accuracy_level"), node.get("block_size")) for node in changed.nodes]
    assert facts == [(4, 0, 16), (2, 4, 16), (8, 4, 16)]
    actions = [f"int{bits} block 16 with zero points" for bits in (4, 2, 8)]
    assert [report.action for report in reports] == actions
    errors = [report.measured().error or 0 for report in reports]
    assert errors[1] > 3 * errors[0] > 30 * errors[2] > 0
    assert changed.opsets == {"": 21, "com.microsoft": 1}
    with pytest.raises(lowbit.InputError):
        weight_only(model(nodes, tensors), options(bits=3))


def test_options_that_do_not_fit() -> None:
    for given in (
        {"block_size": 48},
        {"method": "best"},
        {"accuracy_level": 1},
        {"method": "hqq"},
        {"method": "round", "importances": {"a": [1.0]}},
        {"importances": [1.0]},
    ):
        with pytest.raises(lowbit.InputError):
            options(**given)
    with pytest.raises(lowbit.InputError):
        OnnxOptions(mode="dynamic", block_size=64)
    node = Node.of("MatMul", ["x", "w"], ["y"], name="product")
    with pytest.raises(lowbit.InputError) as caught:
        weight_only(model([node], {"w": made(64, 64)}), options(importances={"product": np.ones(63)}))
    assert "product" in str(caught.value)


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    weight = made(64, 64)
    weight[5, 7] = np.nan
    node = Node.of("MatMul", ["x", "w"], ["y"], name="product")
    with pytest.raises(lowbit.InputError) as caught:
        lowbit.onnx.quantize(model([node], {"w": weight}), tmp_path / "out.onnx", mode="weight-only")
    assert caught.value.tensor == "w"
    assert "output 7 and input 5" in str(caught.value)
    assert not [*tmp_path.iterdir()]


def test_weights_are_read_when_they_are_written(tmp_path: Path) -> None:
    """One at a time, and each once: also if the model is measured before it is written."""
    reads: list[str] = []

    def source(name: str) -> Any:
        def read() -> Array:
            reads.append(name)
            return made(1024, 2048).reshape(-1).view(np.uint8)

        return read

    tensors = {name: Tensor(name, np.dtype(np.float32), (1024, 2048), source(name)) for name in "ab"}
    nodes = (
        Node.of("Gemm", ["x", "a"], ["h"], name="first", transB=1),
        Node.of("MatMul", ["h", "b"], ["y"], name="second"),
    )
    values = (Value.of("x", np.float32, None),), (Value.of("y", np.float32, None),)
    made_model = Model(Graph("graph", nodes, tensors, *values), {"": 21}, 10)
    changed, reports = weight_only(made_model, options())
    assert reads == []
    lowbit.onnx.write(tmp_path / "out.onnx", changed, external_data=True)
    assert reads == ["a", "b"]
    assert all(0.05 < (report.measured().error or 0) < 0.1 for report in reports)
    assert reads == ["a", "b"]


@pytest.mark.parametrize(("inputs", "is_smaller"), [(1, False), (2, False), (3, True)])
def test_only_weights_that_become_smaller(inputs: int, is_smaller: bool) -> None:
    """A block of 16 codes of 2 bits and its scale have 8 bytes, as two floats have."""
    source = model([Node.of("MatMul", ["x", "w"], ["y"])], {"w": made(inputs, 4)})
    _, (report,) = weight_only(source, options(bits=2, block_size=16))
    assert report.is_quantized is is_smaller
