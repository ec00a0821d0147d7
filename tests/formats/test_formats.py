"""Every format against what ggml's quantizers wrote (data/golden.npz), on every SIMD target of this CPU."""

from __future__ import annotations

import csv
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbit

HERE = Path(__file__).parents[1]
ROWS = list(csv.DictReader((HERE / "formats.csv").read_text().splitlines()))
NAMES = [row["name"] for row in ROWS]
FORMATS = {f.name: f for f in lowbit.formats()}
#: Formats that are encoded without importances.
PLAIN_NAMES = [name for name in NAMES if not FORMATS[name].needs_imatrix]

#: Formats that store several weights together, as a point of a grid.
GRIDS = {name for name in NAMES if name.startswith(("IQ1", "IQ2", "IQ3"))}

# The float formats as NumPy types.
KINDS = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def half(data: np.ndarray) -> np.ndarray:
    """Two columns of bytes as one of half-precision numbers."""
    return np.ascontiguousarray(data).view(np.float16).astype(np.float32)


def decode_q1_0(data: np.ndarray) -> np.ndarray:
    d = half(data[:, :2])
    return np.where(np.unpackbits(data[:, 2:], axis=1, bitorder="little") == 1, d, -d)


def decode_q2_0(data: np.ndarray) -> np.ndarray:
    codes = data[:, 2:, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3
    return (codes.reshape(len(data), 64).astype(np.float32) - 1) * half(data[:, :2])


def decode_q8_1(data: np.ndarray) -> np.ndarray:
    return half(data[:, :2]) * data[:, 4:].view(np.int8)


def decode_q8_k(data: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(data[:, :4]).view(np.float32) * data[:, 4:260].view(np.int8)


# Formats that the gguf package does not decode, after the structs in ggml-common.h: blocks, one a row, to weights.
DECODERS = {"Q1_0": decode_q1_0, "Q2_0": decode_q2_0, "Q8_1": decode_q8_1, "Q8_K": decode_q8_k}

# Views of an array of 7 rows and 512 columns.
LAYOUTS = {
    "contiguous": lambda x: x,
    "every other row": lambda x: x[::2],
    "backwards": lambda x: x[::-1, ::-1],
    "every other column": lambda x: x[:, ::2],
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "broadcast": lambda x: np.broadcast_to(x[3], (5, 512)),
    "one column for all": lambda x: np.broadcast_to(x[:, :1], (7, 512)),
    "three axes": lambda x: x[:6].reshape(2, 3, 512)[:, ::2],
    "three axes, crossed": lambda x: x[:6].reshape(2, 3, 512).transpose(1, 0, 2)[:, ::-1],
    "one axis": lambda x: x[2, ::-1],
}


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    with np.load(HERE / "data" / "golden.npz") as file:
        vectors = dict(file)
    # The one format without vectors: its blocks are the input.
    return vectors | {"F32": vectors["input"].view(np.uint8), "F32.dequant": vectors["input"]}


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture(params=PLAIN_NAMES)
def plain_name(request) -> str:
    """A format that is encoded without importances."""
    return request.param


def blocks_of(golden: dict[str, np.ndarray], name: str) -> np.ndarray:
    """The reference's blocks, of an encoding without importances where there is one."""
    return golden[f"{name}.imatrix" if FORMATS[name].needs_imatrix else name]


def floats_of(golden: dict[str, np.ndarray], name: str) -> np.ndarray:
    """What the reference decodes blocks_of to; of Q8_1 and Q8_K there are only blocks."""
    if f"{name}.dequant" not in golden and name in DECODERS:
        blocks = golden[name].reshape(-1, FORMATS[name].block_bytes)
        return DECODERS[name](blocks).reshape(golden["input"].shape)
    return golden[f"{name}.imatrix.dequant" if FORMATS[name].needs_imatrix else f"{name}.dequant"]


def ones_if_needed(name: str, columns: int = 512) -> np.ndarray | None:
    """Importances for the formats that cannot be encoded without."""
    return np.ones(columns, np.float32) if FORMATS[name].needs_imatrix else None


@pytest.fixture
def needed(name, golden) -> np.ndarray | None:
    """The importances that made blocks_of."""
    return golden["imatrix"] if FORMATS[name].needs_imatrix else None


def test_table_is_registry():
    """formats.csv holds exactly the registered formats, by id, with their sizes."""
    registered = [(f.name, f.ggml_type, f.block_size, f.block_bytes) for f in lowbit.formats()]
    table = [(r["name"], int(r["ggml_type"]), int(r["block_size"]), int(r["block_bytes"])) for r in ROWS]
    assert table == registered


def test_encode_golden(simd, plain_name, golden):
    """Without importances the bytes are ggml's."""
    np.testing.assert_array_equal(lowbit.quantize(golden["input"], plain_name).data, golden[plain_name])


def test_encode_importance_golden(simd, name, golden):
    """With importances the bytes are ggml's."""
    expected = golden.get(f"{name}.imatrix", golden.get(name))
    np.testing.assert_array_equal(lowbit.quantize(golden["input"], name, imatrix=golden["imatrix"]).data, expected)


def test_decode_golden(simd, name, golden):
    """Decoded values are ggml's, bit for bit."""
    decoded = lowbit.dequantize(blocks_of(golden, name), name)
    np.testing.assert_array_equal(decoded.view(np.uint32), floats_of(golden, name).view(np.uint32))


def test_one_row_at_a_time(simd, name, golden, needed):
    """Rows do not depend on their neighbours: odd numbers of rows leave lanes empty, the bytes stay."""
    for rows in ([0], [5, 3], [1, 2, 4], [0, 1, 2, 3, 4]):
        x = golden["input"][rows]
        np.testing.assert_array_equal(lowbit.quantize(x, name, imatrix=needed).data, blocks_of(golden, name)[rows])
        expected = golden.get(f"{name}.imatrix", golden.get(name))[rows]
        np.testing.assert_array_equal(lowbit.quantize(x, name, imatrix=golden["imatrix"]).data, expected)


def test_rows_of_one_block(simd, plain_name, golden):
    """Without importances blocks do not depend on their row."""
    f = FORMATS[plain_name]
    x = golden["input"].reshape(-1, f.block_size)
    blocks = golden[plain_name].reshape(-1, f.block_bytes)
    np.testing.assert_array_equal(lowbit.quantize(x, plain_name).data, blocks)
    np.testing.assert_array_equal(lowbit.quantize(x[7], plain_name).data, blocks[7])


def test_misaligned(simd, name, golden, needed):
    """Neither weights nor blocks need an aligned address."""
    rows, K = golden["input"].shape
    raw = np.zeros(rows * K * 4 + 1, np.uint8)
    x = np.ndarray((rows, K), np.float32, buffer=raw, offset=1)
    x[:] = golden["input"]
    assert not x.flags.aligned
    blocks = blocks_of(golden, name)
    np.testing.assert_array_equal(lowbit.quantize(x, name, imatrix=needed).data, blocks)
    raw = np.zeros(blocks.size + 1, np.uint8)
    raw[1:] = blocks.ravel()
    decoded = lowbit.dequantize(raw[1:].reshape(blocks.shape), name)
    np.testing.assert_array_equal(decoded.view(np.uint32), floats_of(golden, name).view(np.uint32))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_and_types(simd, name, layout, dtype):
    """An array of any strides and float type gives the bytes of its float32 copy."""
    x = LAYOUTS[layout](np.random.default_rng(5).standard_normal((7, 512)).astype(dtype))
    assert x.shape[-1] % 256 == 0
    imatrix = ones_if_needed(name, x.shape[-1])
    expected = lowbit.quantize(np.ascontiguousarray(x, np.float32), name, imatrix=imatrix)
    q = lowbit.quantize(x, name, imatrix=imatrix)
    assert q.shape == x.shape
    np.testing.assert_array_equal(q.data, expected.data)


def test_threads_do_not_change_bytes(name):
    """Several chunks of rows, by one to three threads, from an array read in place and from one that is not."""
    rng = np.random.default_rng(11)
    x = rng.standard_normal((301, 768)).astype(np.float32)
    importance = rng.random(768).astype(np.float32)
    for imatrix in (importance,) if FORMATS[name].needs_imatrix else (None, importance):
        one = lowbit.quantize(x, name, imatrix=imatrix, threads=1)
        for threads in (2, 3):
            for w in (x, np.asfortranarray(x)):
                many = lowbit.quantize(w, name, imatrix=imatrix, threads=threads)
                np.testing.assert_array_equal(one.data, many.data)
            np.testing.assert_array_equal(one.dequantize(threads=1), one.dequantize(threads=threads))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_is_refused(simd, name, value, dtype):
    """The error names the first of several, whatever the threads."""
    x = np.zeros((300, 768), dtype)
    x[299, 3] = x[173, 700] = value
    x[173, 517] = value
    for threads in (1, 3):
        with pytest.raises(
            lowbit.InputError, match=r"row 173, column 517 is (NaN|infinity|-infinity), expected a finite"
        ):
            lowbit.quantize(x, name, imatrix=ones_if_needed(name, 768), threads=threads)


def test_nonfinite_is_allowed(simd, name):
    """Float formats keep NaN and infinities; other blocks stay; the bytes are the same on every target."""
    x = np.random.default_rng(2).standard_normal((9, 512)).astype(np.float32)
    imatrix = ones_if_needed(name)
    clean = lowbit.quantize(x, name, imatrix=imatrix).data
    x[1, 5], x[4, 300], x[8, 511] = np.nan, np.inf, -np.inf
    data = lowbit.quantize(x, name, imatrix=imatrix, allow_nonfinite=True).data
    with lowbit.simd.force(lowbit.simd.targets()[-1]):
        again = lowbit.quantize(x, name, imatrix=imatrix, allow_nonfinite=True).data
        np.testing.assert_array_equal(data, again)
        weighted = lowbit.quantize(x, name, imatrix=np.ones(512), allow_nonfinite=True).data
    np.testing.assert_array_equal(weighted, lowbit.quantize(x, name, imatrix=np.ones(512), allow_nonfinite=True).data)
    size = FORMATS[name].block_bytes
    changed = (data.reshape(-1, size) != clean.reshape(-1, size)).any(axis=1)
    block = FORMATS[name].block_size
    assert set(np.flatnonzero(changed)) <= {(512 + 5) // block, (4 * 512 + 300) // block, (8 * 512 + 511) // block}
    if block == 1:
        decoded = lowbit.dequantize(data, name)
        np.testing.assert_array_equal(decoded[[1, 4, 8], [5, 300, 511]], x[[1, 4, 8], [5, 300, 511]])


def test_extreme_weights(simd, name):
    """Zeros stay zeros, one value stays near itself, and neither huge nor tiny weights do harm."""
    rows = [np.zeros(512), np.full(512, 0.25), np.full(512, -3.0), np.full(512, 3e38), np.full(512, 1e-45)]
    rows.append(np.tile([3e38, -3e38], 256))
    x = np.array(rows, np.float32)
    for imatrix in (ones_if_needed(name), np.zeros(512), np.ones(512)):
        decoded = lowbit.quantize(x, name, imatrix=imatrix).dequantize()
        assert (decoded[0] == 0).all()
        assert np.isfinite(decoded[:3]).all()
    decoded = lowbit.quantize(x, name, imatrix=ones_if_needed(name)).dequantize()
    for row in (1, 2):
        error = np.sqrt(np.square(decoded[row] / x[row] - 1).mean())
        # Half a step of the coarsest format's four levels, between 0 and the value; grids lack many points.
        assert error <= (1 / 2 if name in GRIDS else 1 / 6)


def test_empty(name):
    """No rows, and rows without weights."""
    for shape in ((0, 512), (3, 0), (0,), (2, 0, 512)):
        q = lowbit.quantize(np.zeros(shape, np.float32), name, imatrix=ones_if_needed(name, shape[-1]))
        assert q.shape == shape
        assert q.dequantize().shape == shape


def test_any_blocks_decode(simd, name):
    """Whatever bytes a file holds: the gguf package reads the same from them, or the definition. NaN equals NaN."""
    f = FORMATS[name]
    data = np.random.default_rng(3).integers(0, 256, (257, f.block_bytes), np.uint8)
    with np.errstate(all="ignore"):
        if name in KINDS:
            expected = data.view(KINDS[name]).astype(np.float32)
        elif name in DECODERS:
            expected = DECODERS[name](data)
        else:
            expected = gguf.dequantize(data, gguf.GGMLQuantizationType(f.ggml_type))
    np.testing.assert_array_equal(lowbit.dequantize(data, name), expected)


@settings(max_examples=60, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 9), blocks=st.integers(1, 40), exponent=st.integers(-60, 60))
@pytest.mark.parametrize("legacy", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16"])
def test_encode_as_the_gguf_package(legacy, seed, rows, blocks, exponent):
    """The gguf package encodes some formats, without importances: the same bytes for any weights, full of ties."""
    rng = np.random.default_rng(seed)
    x = rng.choice([rng.standard_normal((rows, 32 * blocks)), rng.integers(-16, 17, (rows, 32 * blocks)) / 2])
    x = (x * np.exp2(exponent)).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = gguf.quantize(x, gguf.GGMLQuantizationType[legacy])
    for target in lowbit.simd.targets():
        with lowbit.simd.force(target):
            np.testing.assert_array_equal(lowbit.quantize(x, legacy).data, expected.view(np.uint8))


def test_int8_product_is_near_the_exact_one(simd, name, golden):
    """Against the decoded weights in float64, within the bound of src/formats/activations.h and float rounding."""
    q = lowbit.QTensor(blocks_of(golden, name)[[0, 1, 2, 4, 5]], name)
    w = q.dequantize().astype(np.float64)
    K = w.shape[1]
    for tokens in (1, 3, 4, 6):
        x = np.random.default_rng(tokens).standard_normal((tokens, K)).astype(np.float32)
        if FORMATS[name].block_size == 1:
            step = np.zeros((tokens, K))  # floats are multiplied as floats
        else:
            step = np.repeat(np.abs(x.reshape(tokens, -1, 32)).max(-1), 32, axis=1) / 127
        rounding = (K / 8 + 32) * 2.0**-24 * np.abs(x).sum(1)[:, None] * 3 * np.abs(w).max(1)
        bound = step / 2 @ np.abs(w).T + rounding
        error = np.abs(lowbit.matmul(x, q, compute="int8") - x.astype(np.float64) @ w.T)
        assert (error <= bound).all()


def test_wrong_arguments(name):
    """What is wrong, what was expected and what came."""
    block = FORMATS[name].block_size
    x = np.zeros((2, 512), np.float32)
    cases = [
        (
            {"w": x.astype(complex)},
            r"weights: expected an array of real numbers, got complex128 array of shape \(2, 512\)",
        ),
        ({"w": x.astype("S4")}, r"weights: expected an array of real numbers, got \|S4 array"),
        ({"w": np.float32(1)}, r"weights: expected at least one axis"),
        (
            {"w": x, "imatrix": np.ones(511)},
            r"imatrix: expected float32 array of shape \(512,\), got float32 array of shape \(511,\)",
        ),
        ({"w": x, "imatrix": np.full(512, -1.0)}, r"importance of column 0 is -1, expected a finite value"),
        ({"w": x, "imatrix": np.full(512, np.nan)}, r"importance of column 0 is nan"),
        ({"w": x, "imatrix": np.full(512, np.inf)}, r"importance of column 0 is inf"),
        ({"w": x, "threads": 0}, r"threads: expected 1 to 1024, got 0"),
        ({"w": x, "threads": 10**6}, r"threads: expected 1 to 1024, got 1000000"),
    ]
    if block > 1:
        cases.append(
            ({"w": x[:, : block + 1]}, rf"{name}: rows have {block + 1} weights, expected a multiple of .* {block}$")
        )
        cases.append(({"w": np.zeros((2, 1), np.float32)}, rf"{name}: rows have 1 weights"))
    for arguments, message in cases:
        with pytest.raises(lowbit.InputError, match=message):
            lowbit.quantize(**{"format": name, "imatrix": ones_if_needed(name), **arguments})
    if FORMATS[name].needs_imatrix:
        with pytest.raises(lowbit.InputError, match=f"{name} needs an importance matrix"):
            lowbit.quantize(x, name)
    with pytest.raises(lowbit.InputError, match='unknown format "Q9_9"; known: F32, F16'):
        lowbit.quantize(x, "Q9_9")
    with pytest.raises(lowbit.InputError, match=r"unknown format 'Q4_K_M', did you mean Q4_K\b"):
        lowbit.quantize(x, "Q4_K_M")


def test_smallest_scales(simd):
    """1 / d overflows for denormal weights: ggml's codes are then 0, and so are ours."""
    x = np.full((1, 32), 1e-40, np.float32)
    assert lowbit.quantize(x, "Q8_0").data.tobytes() == bytes(34)
    assert lowbit.quantize(x, "Q4_0").data.tobytes() == b"\x00\x80" + bytes(16)


def test_signs_of_zero(simd):
    """The smallest weight of a block is the first of equals, with the sign it has."""
    x = np.zeros((2, 32), np.float32)
    x[0, 1], x[1, 0] = -0.0, -0.0
    minima = lowbit.quantize(x, "Q4_1").data[:, 2:4]
    np.testing.assert_array_equal(minima, [[0, 0], [0, 0x80]])
