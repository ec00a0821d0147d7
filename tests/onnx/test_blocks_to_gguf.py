"""Weights of ONNX operators as GGUF formats: which format, which label, and what is refused."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import lowbit
from lowbit.onnx import BlockMatrix, Node, PackedBlocks, Tensor, block_matrix, to_gguf

Array = npt.NDArray[Any]
RANDOM = np.random.default_rng(7)
N, K = 5, 512


def halves(*shape: int) -> Array:
    """float16 numbers as float32."""
    return RANDOM.uniform(0.01, 1, shape).astype(np.float16).astype(np.float32)


def pack(codes: Array, bits: int) -> Array:
    """Codes of the last axis in bytes, from the lowest bits on."""
    per_byte = 8 // bits
    padded = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % per_byte)])
    parts = padded.reshape(*padded.shape[:-1], -1, per_byte).astype(np.uint8)
    return np.asarray(np.bitwise_or.reduce(parts << np.arange(0, 8, bits, dtype=np.uint8), axis=-1))


def nbits(
    codes: Array,
    scales: Array,
    zeros: Array | None = None,
    *,
    bits: int = 4,
    size: int = 32,
    operator: str = "MatMulNBits",
) -> tuple[BlockMatrix, Array]:
    """A node with codes (outputs, inputs), and its values in float32."""
    outputs, inputs = codes.shape
    blocks = -(-inputs // size)
    padded = np.pad(codes, ((0, 0), (0, blocks * size - inputs)))
    raw = pack(padded, bits).reshape(outputs, blocks, -1)
    tensors = {"b": Tensor.of("b", raw), "s": Tensor.of("s", scales)}
    inputs_of = ["x", "b", "s"]
    shown: Any = 1 << bits - 1
    if zeros is not None:
        tensors["z"] = Tensor.of("z", zeros if zeros.dtype == np.float32 else pack(zeros, bits))
        inputs_of.append("z")
        shown = zeros.astype(np.float32)
    if operator == "GatherBlockQuantized":
        tensors["b"] = Tensor.of("b", raw.reshape(outputs, -1))
        inputs_of = ["b", "ids", *inputs_of[2:]]
        given = {"gather_axis": 0, "quantize_axis": 1}
    else:
        given = {"K": inputs, "N": outputs}
    node = Node.of(operator, inputs_of, ["y"], domain="com.microsoft", bits=bits, block_size=size, **given)
    at = np.arange(inputs) // size
    every = np.broadcast_to(np.asarray(shown, np.float32), scales.shape)
    return block_matrix(node, tensors), (codes.astype(np.float32) - every[:, at]) * scales.astype(np.float32)[:, at]


def dequantized(codes: Array, scales: Array, zeros: Array | None = None, **attributes: Any) -> BlockMatrix:
    tensors = {"b": Tensor.of("b", codes), "s": Tensor.of("s", scales)}
    if zeros is not None:
        tensors["z"] = Tensor.of("z", zeros)
    outputs_axis = attributes.pop("outputs_axis", 1)
    node = Node.of("DequantizeLinear", [*tensors], ["y"], **attributes)
    return block_matrix(node, tensors, outputs_axis=outputs_axis)


def check(found: PackedBlocks, values: Array, format: str, label: str) -> None:
    """The label is what the differences are."""
    assert (found.weights.format, found.fidelity.label) == (format, label)
    decoded = found.weights.dequantize()
    if label == "exact":
        np.testing.assert_array_equal(decoded, values)
        return
    compared = lowbit.compare(values, found.weights)
    assert found.fidelity.error == pytest.approx(compared.relative)
    assert found.fidelity.max_error == pytest.approx(compared.max)
    assert found.fidelity.error > 0


@pytest.mark.parametrize("size", [32, 64, 128, 256])
@pytest.mark.parametrize("operator", ["MatMulNBits", "GatherBlockQuantized"])
def test_symmetric_blocks_of_4_bits_are_q4_0(size: int, operator: str) -> None:
    codes = RANDOM.integers(0, 16, (N, K))
    codes[:, ::32] = 0  # needs all levels
    matrix, values = nbits(codes, halves(N, K // size) * -1, size=size, operator=operator)
    check(to_gguf(matrix, exact=True), values, "Q4_0", "exact")


@pytest.mark.parametrize(("bits", "format"), [(2, "Q2_0"), (4, "Q4_0"), (8, "Q8_0")])
def test_float32_scales_are_rounded_within_the_bound(bits: int, format: str) -> None:
    codes = RANDOM.integers(0, 1 << bits, (N, K))
    scales = RANDOM.uniform(0.01, 1, (N, K // 64)).astype(np.float32)
    matrix, values = nbits(codes, scales, bits=bits, size=64)
    found = to_gguf(matrix)
    check(found, values, format, "bounded")
    assert found.fidelity.bound == pytest.approx(2.0**-11, rel=1e-3)
    decoded = found.weights.dequantize()
    assert (np.abs(decoded - values) <= found.fidelity.bound * np.abs(decoded)).all()
    expected = rf"tensor 'b': a packed format does not hold its {bits}-bit blocks: expected exact values"
    with pytest.raises(lowbit.UnsupportedError, match=expected) as caught:
        to_gguf(matrix, exact=True)
    assert caught.value.tensor == "b"
    check(to_gguf(matrix, format="F32", exact=True), values, "F32", "exact")


def test_scales_beyond_float16_are_lossy() -> None:
    codes = RANDOM.integers(0, 16, (N, K))
    for factor in (1e-7, 1e-30):
        matrix, values = nbits(codes, (halves(N, K // 32) * factor).astype(np.float32))
        found = to_gguf(matrix)
        check(found, values, "Q8_0", "lossy")
        assert found.fidelity.bound is None


def test_zero_points_are_minima() -> None:
    codes, zeros = RANDOM.integers(0, 16, (N, K)), RANDOM.integers(0, 16, (N, K // 32))
    codes[:, ::32], codes[:, 1::32], zeros[:, 0] = 0, 15, 3
    few = (RANDOM.integers(1, 32, zeros.shape) / 64).astype(np.float32)  # scale * zero point is a float16
    matrix, values = nbits(codes, few, zeros)
    check(to_gguf(matrix, exact=True), values, "Q4_1", "exact")
    matrix, values = nbits(codes, halves(*zeros.shape), zeros)
    check(to_gguf(matrix, exact=True), values, "Q5_0", "exact")  # levels of -15 to 15
    check(to_gguf(matrix, format="Q4_1"), values, "Q4_1", "bounded")
    matrix, values = nbits(codes, RANDOM.uniform(0.1, 1, zeros.shape).astype(np.float32), zeros)
    check(to_gguf(matrix), values, "Q4_1", "bounded")
    matrix, values = nbits(codes, few, zeros.astype(np.float32) + np.float32(0.25))
    check(to_gguf(matrix, exact=True), values, "Q4_1", "exact")


def test_bytes_are_q8_0() -> None:
    codes = RANDOM.integers(0, 256, (N, K))
    matrix, values = nbits(codes, halves(N, K // 128), bits=8, size=128)
    check(to_gguf(matrix, exact=True), values, "Q8_0", "exact")
    levels = RANDOM.integers(-128, 128, (K, N)).astype(np.int8)
    scales = halves(N)
    for matrix in (
        dequantized(levels, scales, axis=1),
        dequantized(levels, scales),
        dequantized(np.ascontiguousarray(levels.T), scales, axis=0),
        dequantized((levels.astype(np.int16) + 128).astype(np.uint8), scales, np.full(N, 128, np.uint8), axis=-1),
        dequantized(levels, np.tile(scales, (K // 64, 1)), axis=0, block_size=64),
        dequantized(np.ascontiguousarray(levels.T), np.tile(scales[:, None], K // 64), axis=1, block_size=64),
    ):
        assert matrix.shape == (N, K)
        check(to_gguf(matrix, exact=True), levels.T * scales[:, None], "Q8_0", "exact")
    one = np.array(0.125, np.float32)
    check(to_gguf(dequantized(levels, one), exact=True), levels.T * one, "Q8_0", "exact")
    check(to_gguf(dequantized(levels.T.copy(), one, outputs_axis=0), exact=True), levels.T * one, "Q8_0", "exact")


def test_levels_that_no_format_has_are_fitted_anew() -> None:
    codes = RANDOM.integers(0, 256, (N, K))
    matrix, values = nbits(codes, halves(N, K // 32), np.full((N, K // 32), 3), bits=8)
    check(to_gguf(matrix), values, "Q8_0", "lossy")
    matrix, values = nbits(RANDOM.integers(0, 16, (N, K)), RANDOM.uniform(0.1, 1, (N, K // 16)).astype("f"), size=16)
    check(to_gguf(matrix), values, "Q8_0", "lossy")


@pytest.mark.parametrize(("levels", "format"), [((-1, 1), "Q1_0"), ((-1, 0, 1), "TQ2_0"), ((-2, -1, 0, 1), "Q2_0")])
def test_two_bits(levels: tuple[int, ...], format: str) -> None:
    codes = RANDOM.choice(levels, (N, K)) + 2
    codes[:, :4] = np.resize(levels, 4) + 2
    codes[:, 64:68] = np.resize(levels, 4) + 2
    scales = np.repeat(halves(N, K // 256), 2, axis=1)
    matrix, values = nbits(codes, scales, bits=2, size=128)
    check(to_gguf(matrix, exact=True), values, format, "exact")
    signed = dequantized((codes.T - 2).astype(ml_dtypes.int2), scales.T.copy(), axis=0, block_size=128)
    check(to_gguf(signed, exact=True), values, format, "exact")
    if format == "TQ2_0":
        check(to_gguf(matrix, format="TQ1_0", exact=True), values, "TQ1_0", "exact")


@pytest.mark.parametrize("bits", [2, 4])
def test_integers_of_ai_onnx(bits: int) -> None:
    signed, unsigned = {2: (ml_dtypes.int2, ml_dtypes.uint2), 4: (ml_dtypes.int4, ml_dtypes.uint4)}[bits]
    half = 1 << bits - 1
    levels = RANDOM.integers(-half, half, (K, N))
    scales = halves(K // 64, N)
    at = np.arange(K) // 64
    values = (levels * scales[at]).T
    format = {2: "Q2_0", 4: "Q4_0"}[bits]
    zeros = np.full(scales.shape, half).astype(unsigned)
    for matrix in (
        dequantized(levels.astype(signed), scales, axis=0, block_size=64),
        dequantized((levels + half).astype(unsigned), scales, zeros, axis=0, block_size=64),
        dequantized(levels.astype(signed), scales.astype(np.float16), axis=-2, block_size=64),
    ):
        check(to_gguf(matrix, exact=True), values, format, "exact")


def test_rows_that_are_no_whole_blocks_become_floats() -> None:
    codes = RANDOM.integers(0, 16, (N, 40))
    matrix, values = nbits(codes, halves(N, 2))
    check(to_gguf(matrix, exact=True), values, "F32", "exact")
    matrix, values = nbits(codes, np.full((N, 2), 0.25, np.float32))
    check(to_gguf(matrix, exact=True), values, "F16", "exact")
    with pytest.raises(lowbit.InputError, match="tensor 'b': Q4_0: expected rows of whole blocks of 32, got 40 inputs"):
        to_gguf(matrix, format="Q4_0")
    codes = RANDOM.integers(0, 16, (N, 96))
    matrix, values = nbits(codes, halves(N, 1), size=128)  # the last block is padded
    check(to_gguf(matrix, exact=True), values, "Q4_0", "exact")


def test_scales_that_are_not_finite_stay() -> None:
    codes = RANDOM.integers(9, 16, (N, K))
    scales = halves(N, K // 32)
    scales[0, 0], scales[1, 1], scales[2, 2], scales[3, 3] = np.nan, np.inf, -np.inf, 0
    matrix, values = nbits(codes, scales)
    check(to_gguf(matrix, exact=True), values, "Q4_0", "exact")
    matrix, _ = nbits(codes, np.repeat(scales, 2, axis=1) * np.tile(np.float32([1, 3]), K // 32), size=16)
    with pytest.raises(lowbit.InputError, match="tensor 'b': weight at row 0, column 0 is NaN"):
        to_gguf(matrix)  # needs new scales


def test_super_block_scales_are_found_again() -> None:
    """Bytes are those of the file. Only Q3_K has blocks that can be written in two ways: with importances, some have 31
    and -31 as the largest integers, so d and all of them may have the other sign."""
    w = RANDOM.standard_normal((8, 1024)).astype(np.float32)
    importance = RANDOM.uniform(0.1, 1, 1024).astype(np.float32)
    for format in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"):
        for given in (None, importance):
            q = lowbit.quantize(w, format, imatrix=given)
            found = to_gguf(lowbit.onnx.from_gguf("w", q).matrix)
            assert (found.weights.format, found.fidelity.label) == (format, "exact")
            np.testing.assert_array_equal(found.weights.dequantize(), q.dequantize())
            size = lowbit.Format(format).block_bytes
            differing = (found.weights.data != q.data).reshape(8, -1, size).any(axis=2).sum()
            assert differing <= (3 if format == "Q3_K" and given is not None else 0)


def test_super_block_scales_below_the_largest_are_found_again() -> None:
    """Integer scales that do not use all bits: halving d and doubling them would give the same values."""
    q = lowbit.quantize(RANDOM.standard_normal((4, 512)).astype(np.float32), "Q4_K").copy()
    blocks = q.data.reshape(-1, 144)
    blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16] = (31, 7, 4, 2), (19, 3, 5, 6), 0x35
    found = to_gguf(lowbit.onnx.from_gguf("w", q).matrix, exact=True)
    assert found.weights == q


def test_values_that_round_in_another_way_are_not_called_exact() -> None:
    """Scale and minimum are float16, but the operator rounds code - zero point first."""
    codes, zeros = RANDOM.integers(0, 16, (N, K)), np.full((N, K // 32), 2.0**25, np.float32)
    matrix, values = nbits(codes, np.full((N, K // 32), 3 * 2.0**-13, np.float32), zeros)
    check(to_gguf(matrix), values, "Q4_1", "bounded")
    with pytest.raises(lowbit.UnsupportedError, match="expected exact values"):
        to_gguf(matrix, exact=True)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "operator": ({"op_type": "MatMul"}, lowbit.InputError, "expected MatMulNBits, .*got com.microsoft.MatMul"),
    "no codes": ({"inputs": ["x", "", "s"]}, lowbit.InputError, "expected an initializer with the codes"),
    "other codes": ({"inputs": ["x", "dynamic", "s"]}, lowbit.InputError, "an initializer with the codes, got dynamic"),
    "no scales": ({"inputs": ["x", "b"]}, lowbit.InputError, "expected an initializer with the scales"),
    "bits": ({"bits": 3}, lowbit.InputError, "expected 2, 4 or 8 bits"),
    "block size": ({"block_size": 24}, lowbit.InputError, "a block size of 16, 32"),
    "no block": ({"block_size": 0}, lowbit.InputError, "a block size of 16, 32"),
    "K": ({"K": 100}, lowbit.InputError, "codes"),
    "no K": ({"K": None}, lowbit.InputError, "an integer K"),
    "huge K": ({"K": 2**62}, lowbit.InputError, "an integer K"),
    "negative N": ({"N": -5}, lowbit.InputError, "codes"),
    "g_idx": ({"inputs": ["x", "b", "s", "", "s"]}, lowbit.UnsupportedError, "g_idx"),
    "type": ({"inputs": ["x", "s", "s"]}, lowbit.UnsupportedError, "codes of type float32"),
    "zero points": ({"inputs": ["x", "b", "s", "s4"]}, lowbit.InputError, "zero points"),
}


@pytest.mark.parametrize("case", BAD)
def test_nodes_that_are_no_blocks(case: str) -> None:
    changed, error, text = BAD[case]
    given = {
        "op_type": "MatMulNBits", "inputs": ["x", "b", "s"], "K": K, "N": N, "bits": 4, "block_size": 32, **changed
    }  # fmt: skip
    tensors = {
        "b": Tensor.of("b", np.zeros((N, K // 32, 16), np.uint8)),
        "s": Tensor.of("s", np.ones((N, K // 32), np.float32)),
        "s4": Tensor.of("s4", np.ones(4, np.float32)),
    }
    node = Node.of(given.pop("op_type"), given.pop("inputs"), ["y"], name="node", domain="com.microsoft", **given)
    with pytest.raises(error, match=text) as caught:
        block_matrix(node, tensors)
    assert "node" in str(caught.value)


def test_block_sizes_beyond_the_matrix_take_no_memory() -> None:
    codes, scales = RANDOM.integers(-8, 8, (K, N)).astype(ml_dtypes.int4), np.full((1, N), 0.5, np.float32)
    matrix = dequantized(codes, scales, axis=0, block_size=2**39)
    check(to_gguf(matrix, exact=True), codes.T.astype(np.float32) / 2, "Q4_0", "exact")
    with pytest.raises(lowbit.InputError, match="expected weights"):
        dequantized(codes[:0], scales, axis=0, block_size=32)


def test_rows_of_integers_of_4_bits() -> None:
    """GatherBlockQuantized has no zero point of 8 for them."""
    codes, scales = RANDOM.integers(0, 16, (N, K)), halves(N, K // 32)
    tensors = {"b": Tensor.of("b", codes.astype(ml_dtypes.uint4)), "s": Tensor.of("s", scales)}
    given = {"domain": "com.microsoft", "gather_axis": 0, "quantize_axis": 1}
    node = Node.of("GatherBlockQuantized", ["b", "ids", "s"], ["y"], block_size=32, **given)
    values = codes.astype(np.float32) * scales[:, np.arange(K) // 32]
    check(to_gguf(block_matrix(node, tensors), exact=True), values, "Q4_1", "exact")
    for size in (0, -32, 24):
        node = Node.of("GatherBlockQuantized", ["b", "ids", "s"], ["y"], name="node", block_size=size, **given)
        with pytest.raises(lowbit.InputError, match="node node: expected 2, 4 or 8 bits and a block size"):
            block_matrix(node, tensors)


def test_dequantize_linear_of_other_shapes() -> None:
    codes, scales = np.zeros((K, N), np.int8), np.ones(N, np.float32)
    for given, text in (
        ({"axis": 5}, "an axis of a matrix"),
        ({"axis": 0}, f"{K} scales"),
        ({"axis": 0, "block_size": -1}, "scales for blocks"),
        ({"axis": 0, "block_size": 32}, f"{K // 32 * N} scales"),
    ):
        with pytest.raises(lowbit.InputError, match=text):
            dequantized(codes, scales, **given)
    with pytest.raises(lowbit.InputError, match="a matrix"):
        dequantized(codes[0], scales)
    with pytest.raises(lowbit.UnsupportedError, match="codes of type int32"):
        dequantized(codes.astype(np.int32), scales)
    with pytest.raises(lowbit.UnsupportedError, match="scales of type bfloat16"):
        dequantized(codes, scales.astype(ml_dtypes.bfloat16))
    with pytest.raises(lowbit.InputError, match="outputs_axis"):
        dequantized(codes, np.float32(1), outputs_axis=2)


@pytest.mark.parametrize("matrix", [None, np.zeros((4, 32), np.float32)], ids=["None", "array"])
def test_what_is_no_block_matrix(matrix: Any) -> None:
    with pytest.raises(lowbit.InputError, match="matrix: expected a BlockMatrix, got "):
        lowbit.onnx.to_gguf(matrix)


def test_what_is_no_node_with_weights() -> None:
    with pytest.raises(lowbit.InputError, match="node: expected a Node, got None"):
        block_matrix(None, {})  # type: ignore[arg-type]
    node = Node.of("MatMulNBits", ["x"], ["y"], name="n", domain="com.microsoft", N=4, K=32, bits=4, block_size=32)
    with pytest.raises(lowbit.InputError, match="node n: expected an initializer with the codes, got none"):
        block_matrix(node, {})
