"""lowbit.matmul against float64 products of the decoded weights, for every format, SIMD target and way to compute.

The bounds are derived, not measured. With u = 2**-24 (float32) and any order of additions, a sum of K products errs by
at most (K + 1) u times the sum of their magnitudes. "bf16" and "int8" are compared with products of what they round
their operands to, which NumPy computes here bit for bit, so that only the float sums are left to err; "int8" also with
the bound that src/formats/activations.h promises for the rounding itself, "int16" with a bound 254 times smaller.
"""

from __future__ import annotations

import functools

import ml_dtypes
import numpy as np
import pytest

import lowbit
from lowbit import _core

U = 2.0**-24
FORMATS = {f.name: f for f in lowbit.formats()}
FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
PACKED = [name for name in FORMATS if name not in FLOATS]
COMPUTE = ("f32", "bf16", "int8", "int16", "auto")
#: Numbers of tokens: tiles of every size, and what they leave.
NUM_TOKENS = (*range(1, 14), 16, 19, 33, 65)
#: "auto" multiplies packed weights as "int8", and float weights as "f32" for up to so many tokens, as "bf16" for more.
AUTO_F32_TOKENS = 8


@pytest.fixture(params=list(FORMATS))
def name(request) -> str:
    return request.param


def sizes(name: str) -> list[tuple[int, int]]:
    """(N, K): rows that no strip divides, columns that end in the middle of a vector or of 256."""
    block = FORMATS[name].block_size
    if block == 1:
        return [(1, 1), (3, 7), (4, 16), (6, 33), (37, 131), (5, 640)]
    return [(1, block), (3, 2 * block), (4, 3 * block), (37, 5 * block), (6, 9 * block)]


@functools.cache
def weights(name: str, N: int, K: int) -> tuple[lowbit.QTensor | np.ndarray, np.ndarray]:
    """Random weights of a format and what they decode to, in float64."""
    w = np.random.default_rng(N * 10000 + K).standard_normal((N, K)).astype(np.float32)
    if name in FLOATS:
        array = w.astype(FLOATS[name])
        return array, array.astype(np.float64)
    q = lowbit.quantize(w, name, imatrix=np.ones(K, np.float32))
    return q, q.dequantize().astype(np.float64)


def activations(num: int, K: int, seed: int = 1) -> np.ndarray:
    """Rows of different magnitudes; one column in each is far larger than the rest, as in real models."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num, K)) * np.exp2(rng.integers(-6, 6, (num, 1)))
    x[np.arange(num), rng.integers(0, K, num)] *= 20
    return x.astype(np.float32)


def int8_grid(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What "int8" rounds x to (src/formats/activations.h), and the scale at each value."""
    groups = x.reshape(len(x), -1, 32)
    scale = np.abs(groups).max(axis=-1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(scale > 0, np.float32(1) / scale, np.float32(0))
    q = np.rint(groups * inverse)
    assert np.abs(q).max(initial=0) <= 127
    rounded = q.astype(np.float64) * scale
    return rounded.reshape(x.shape), np.broadcast_to(scale, groups.shape).reshape(x.shape).astype(np.float64)


def float_sum_bound(x: np.ndarray, w: np.ndarray, unit: float = U) -> np.ndarray:
    return (x.shape[1] + 1) * unit * (np.abs(x) @ np.abs(w).T) + 1e-35


def packed_sum_bound(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """For products with packed weights, code * scale - offset, whose parts are rounded in float apart.

    Rows hold both signs, so an offset, and with it code * scale, is at most twice the largest weight of its 256 or
    fewer; each goes through a few roundings and a sum of at most K / 4 terms a lane.
    """
    K = x.shape[1]
    starts = np.arange(0, K, 256)
    largest = np.maximum.reduceat(np.abs(w), starts, axis=1)
    return (K / 4 + 16) * U * 4 * (np.add.reduceat(np.abs(x), starts, axis=1) @ largest.T) + 1e-35


def expected_and_bound(name: str, how: str, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The float64 product of the operands as they are rounded, and how far float32 sums may be from it."""
    if how == "bf16" and name != "F32":
        x, w = (a.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64) for a in (x, w))
        # A pair of products may be rounded once more, in the instructions that multiply bfloat16.
        return x @ w.T, float_sum_bound(x, w, 2 * U)
    if how == "int8" and name not in FLOATS:
        x, _ = int8_grid(x)
        return x @ w.T, packed_sum_bound(x, w)
    if how == "int16" and name not in FLOATS:
        _, scale = int8_grid(x)
        x = x.astype(np.float64)
        # The first rounding leaves half a step, the second half of a 127th of that. What is left is a float.
        left = (scale / 2 / 127 / 2 * (1 + 512 * U) + np.abs(x) * U) @ np.abs(w).T
        return x @ w.T, left + 2 * packed_sum_bound(x, w)
    x = x.astype(np.float64)
    return x @ w.T, float_sum_bound(x, w)


@pytest.mark.parametrize("compute", COMPUTE)
def test_product(simd, name, compute):
    for N, K in sizes(name):
        packed, w = weights(name, N, K)
        x = activations(max(NUM_TOKENS), K)
        results = {how: expected_and_bound(name, how, x, w) for how in ("f32", "bf16", "int8", "int16")}
        for num in NUM_TOKENS:
            how = compute
            if compute == "auto" and name in FLOATS:
                how = "f32" if num <= AUTO_F32_TOKENS else "bf16"
            elif compute == "auto":
                how = "int8"
            expected, bound = (r[:num] for r in results[how])
            error = np.abs(lowbit.matmul(x[:num], packed, compute=compute, threads=2) - expected)
            assert (error <= bound).all(), (N, K, num, (error / bound).max())


@pytest.mark.parametrize("name", PACKED)
def test_int8_errs_by_half_a_step(simd, name):
    """The bound of src/formats/activations.h: sum |w| * scale / 2, plus the rounding of the float sums.

    Weights that are floats are multiplied as such: test_product.
    """
    for N, K in sizes(name):
        packed, w = weights(name, N, K)
        x = activations(5, K, seed=2)
        _, scale = int8_grid(x)
        bound = scale / 2 * (1 + 256 * U) @ np.abs(w).T + packed_sum_bound(x, w)
        assert (np.abs(lowbit.matmul(x, packed, compute="int8") - x.astype(np.float64) @ w.T) <= bound).all()


def test_int8_is_exact_on_the_grid(simd, name):
    """Activations that 8 bits hold without rounding: what is left is the rounding of float sums."""
    rng = np.random.default_rng(3)
    for N, K in sizes(name):
        packed, w = weights(name, N, K)
        x = rng.integers(-127, 128, (6, K)).astype(np.float32)
        x[:, ::32] = 127
        x *= np.repeat(np.exp2(rng.integers(-8, 8, (6, -(-K // 32)))), 32, axis=1)[:, :K].astype(np.float32)
        error = np.abs(lowbit.matmul(x, packed, compute="int8") - x.astype(np.float64) @ w.T)
        bound = float_sum_bound(x, w) if name in FLOATS else packed_sum_bound(x, w)
        assert (error <= bound).all(), (N, K, (error / bound).max())


@pytest.mark.parametrize("name", PACKED)
def test_any_bytes(simd, name):
    """Weights of random bytes, among them codes that no encoder writes."""
    N, K = sizes(name)[3]
    row_bytes = K // FORMATS[name].block_size * FORMATS[name].block_bytes
    data = np.random.default_rng(14).integers(0, 256, (N, row_bytes), dtype=np.uint8)
    packed = lowbit.QTensor(data, name)
    w = packed.dequantize().astype(np.float64)
    usable = np.nan_to_num(np.abs(w), nan=np.inf).max(axis=1) < 1e30
    assert usable.any()
    x = activations(5, K, seed=13)
    expected, bound = expected_and_bound(name, "int8", x, w[usable])
    for num in (1, 5):
        result = lowbit.matmul(x[:num], packed, compute="int8")[:, usable]
        assert (np.abs(result - expected[:num]) <= bound[:num]).all(), num


@pytest.mark.parametrize("compute", COMPUTE)
def test_threads_change_no_bit(simd, name, compute):
    N, K = sizes(name)[3]
    packed, _ = weights(name, 5 * N, K)
    for num in (1, 3, 13):
        x = activations(num, K, seed=4)
        one = lowbit.matmul(x, packed, compute=compute, threads=1)
        for threads in (2, 3, 16):
            assert one.tobytes() == lowbit.matmul(x, packed, compute=compute, threads=threads).tobytes()


@pytest.mark.parametrize("compute", ["f32", "int8", "int16"])
def test_rows_do_not_know_each_other(simd, name, compute):
    """A token gives the same bits alone and in company, a weight row alone and among others."""
    for N, K in sizes(name):
        packed, _ = weights(name, N, K)
        x = activations(65, K, seed=5)
        together = lowbit.matmul(x, packed, compute=compute)
        for num in (1, 2, 3, 4, 5, 6, 7, 13, 64):
            pieces = [lowbit.matmul(x[t : t + num], packed, compute=compute) for t in range(0, len(x), num)]
            assert together.tobytes() == np.concatenate(pieces).tobytes(), num
        columns = [lowbit.matmul(x, packed[n : n + 1], compute=compute) for n in range(N)]
        assert together.tobytes() == np.concatenate(columns, axis=1).tobytes()


def test_tokens_of_several_blocks(simd):
    """More tokens than a thread keeps the sums of."""
    packed, _ = weights("Q4_K", 37, 256)
    x = activations(1030, 256, seed=11)
    together = lowbit.matmul(x, packed, compute="int8", threads=2)
    pieces = [lowbit.matmul(x[t : t + 100], packed, compute="int8") for t in range(0, len(x), 100)]
    assert together.tobytes() == np.concatenate(pieces).tobytes()


@pytest.mark.parametrize("compute", COMPUTE)
def test_extreme_activations(simd, name, compute):
    """Zeros give zeros; tiny, huge and denormal values neither overflow early nor turn into something else."""
    N, K = sizes(name)[3]
    packed, w = weights(name, N, K)
    assert not lowbit.matmul(np.zeros((10, K), np.float32), packed, compute=compute).any()
    for value in (1e-45, 1e-39, 1e-20, 1e20, 1e34):
        for num in (2, 10):
            x = np.full((num, K), value, np.float32)
            x[0, ::2] *= -1
            exact = x.astype(np.float64) @ w.T
            # Half a step of int8 and both roundings of bf16 are below 1/64 of the magnitudes. Scales and products below
            # the smallest normal number may count as zero.
            tolerance = (np.abs(x) / 64 + 127 * 2.0**-126) @ np.abs(w).T + K * 2.0**-126
            assert (np.abs(lowbit.matmul(x, packed, compute=compute) - exact) <= tolerance).all()


@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
def test_nonfinite_activations_show(simd, name, compute, bad):
    """NaN or infinity in one token: none of its results is finite, all of the others' are what they were."""
    for N, K in sizes(name)[2:4]:
        packed, _ = weights(name, N, K)
        for num in (3, 10):
            x = activations(num, K, seed=6)
            clean = lowbit.matmul(x, packed, compute=compute)
            for at in (0, K // 2, K - 1):
                x[1] = activations(1, K, seed=7)
                x[1, at] = bad
                result = lowbit.matmul(x, packed, compute=compute)
                # Infinity times a weight of zero is NaN.
                assert not np.isfinite(result[1]).any()
                others = np.arange(num) != 1
                assert result[others].tobytes() == clean[others].tobytes()


@pytest.mark.parametrize("compute", COMPUTE)
def test_nan_weights_show(simd, name, compute):
    """NaN in a scale: no result of that row is finite. Where scales cannot be NaN, every result is."""
    N, K = 5, sizes(name)[3][1]
    w = np.random.default_rng(8).standard_normal((N, K)).astype(np.float32)
    x = activations(10, K, seed=9)
    has_nan = name not in ("MXFP4", "NVFP4")
    if name in FLOATS:
        packed: lowbit.QTensor | np.ndarray = w.astype(FLOATS[name])
        packed[2, K // 2] = np.nan
    else:
        packed = lowbit.quantize(w, name, imatrix=np.ones(K, np.float32))
        # In whichever bytes the scale is: half-precision NaN and finite scales of few bits, but for two formats.
        block = packed.data[2, : FORMATS[name].block_bytes]
        block[:] = 0xFF if name in ("Q8_K", "IQ1_M") else 0x7F
        assert np.isfinite(packed.dequantize()[2]).all() != has_nan
    for num in (1, 10):
        finite = np.isfinite(lowbit.matmul(x[:num], packed, compute=compute))
        assert (finite[:, 2] != has_nan).all()
        assert np.delete(finite, 2, axis=1).all()


def test_any_strides_and_leading_axes(name):
    N, K = sizes(name)[3]
    packed, _ = weights(name, N, K)
    x = activations(24, 2 * K, seed=10)
    wide = x.reshape(2, 12, 2 * K)[:, ::2, ::2]
    plain = np.ascontiguousarray(wide)
    result = lowbit.matmul(wide, packed, compute="f32")
    assert result.shape == (2, 6, N)
    assert result.tobytes() == lowbit.matmul(plain.reshape(12, K), packed, compute="f32").tobytes()
    assert lowbit.matmul(plain[0, 0], packed, compute="f32").tobytes() == result[0, 0].tobytes()
    every_third = lowbit.matmul(plain, packed[::3], compute="f32")
    assert every_third.tobytes() == np.ascontiguousarray(result[..., ::3]).tobytes()
    assert lowbit.matmul(plain.astype(np.float64), packed, compute="f32").tobytes() == result.tobytes()


@pytest.mark.parametrize("compute", COMPUTE)
def test_nothing_to_do(name, compute):
    packed, _ = weights(name, 4, FORMATS[name].block_size)
    K = packed.shape[1]
    assert lowbit.matmul(np.empty((0, K), np.float32), packed, compute=compute).shape == (0, 4)
    assert lowbit.matmul(np.empty((2, 3, 0, K), np.float32), packed, compute=compute).shape == (2, 3, 0, 4)
    assert lowbit.matmul(np.ones((3, K), np.float32), packed[:0], compute=compute).shape == (3, 0)
    # A sum of nothing is zero.
    empty = np.empty((4, 0), np.float32) if name in FLOATS else lowbit.QTensor(np.empty((4, 0), np.uint8), name)
    assert lowbit.matmul(np.empty((3, 0), np.float32), empty, compute=compute).tolist() == np.zeros((3, 4)).tolist()


def test_wrong_arguments():
    q = lowbit.quantize(np.ones((4, 64), np.float32), "Q8_0")
    x = np.ones((2, 64), np.float32)
    with pytest.raises(lowbit.InputError, match=r"expected x \(..., K\) and w \(N, K\), got \(2, 32\) and \(4, 64\)"):
        lowbit.matmul(x[:, :32], q)
    with pytest.raises(lowbit.InputError, match="expected x"):
        lowbit.matmul(np.float32(1), q)
    with pytest.raises(lowbit.InputError, match="expected x"):
        lowbit.matmul(x, np.ones(64, np.float32))
    with pytest.raises(lowbit.InputError, match="w: expected an array of real numbers, got complex128"):
        lowbit.matmul(x, np.ones((4, 64), complex))
    with pytest.raises(lowbit.InputError, match="x: expected an array of real numbers, got object"):
        lowbit.matmul(x.astype(object), q)
    with pytest.raises(lowbit.InputError, match='compute: expected auto, int8, int16, bf16 or f32, got "int4"'):
        lowbit.matmul(x, q, compute="int4")
    for threads in (0, -1, 1025, 2**40):
        with pytest.raises(lowbit.InputError, match="threads"):
            lowbit.matmul(x, q, threads=threads)


def test_core_checks_sizes():
    """The core trusts no sizes either: whatever is passed, memory is not read or written beyond the arrays."""
    x, out = np.ones((2, 64), np.float32), np.empty((2, 4), np.float32)
    data = lowbit.quantize(np.ones((4, 64), np.float32), "Q8_0").data

    def call(x=x, format="Q8_0", data=data, out=out, compute="f32", threads=1):
        _core.matmul(x, format, data, out, compute, threads)

    call()
    for wrong, match in (
        ({"x": x[0]}, "2 dimensions"),
        ({"out": out[0]}, "2 dimensions"),
        ({"data": data[0]}, "2 dimensions"),
        ({"data": data[:, :-1]}, "contiguous bytes"),
        ({"data": np.ascontiguousarray(data[:, :-1])}, "expected 272 contiguous bytes of Q8_0, got 268"),
        ({"x": np.ones((2, 63), np.float32)}, "do not fit blocks of 32"),
        ({"out": np.empty((2, 5), np.float32)}, r"out of shape \(2, 4\)"),
        ({"out": np.empty((1, 4), np.float32)}, r"out of shape \(2, 4\)"),
        ({"format": "Q9_Z"}, "unknown format"),
        ({"threads": 0}, "threads"),
        ({"format": "F32", "data": np.empty(4 * 64 * 4 + 1, np.uint8)[1:].reshape(4, 256)}, "not aligned"),
    ):
        with pytest.raises(lowbit.InputError, match=match):
            call(**wrong)
    for wrong in ({"x": x.astype(np.float64)}, {"out": out.astype(np.float64)}, {"x": x[:, ::2], "out": out[::-1]}):
        with pytest.raises((lowbit.InputError, TypeError)):
            call(**wrong)
    frozen = np.zeros((2, 4), np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError):  # noqa: PT011 - the words are NumPy's
        call(out=frozen)
    assert not frozen.any()


def test_weights_that_are_no_array() -> None:
    with pytest.raises(lowbit.InputError, match="w: expected an array, got list: "):
        lowbit.matmul(np.ones((1, 2), np.float32), [[1.0, 2.0], [3.0]])
    with pytest.raises(lowbit.InputError, match="w: expected an array of real numbers, got object array"):
        lowbit.matmul(np.ones((1, 2), np.float32), object())  # type: ignore[arg-type]
