"""GGUF formats as ONNX operators hold them, and back, against ggml's decoded values (tests/data/golden.npz)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import lowbit
from lowbit.onnx import BlockMatrix, from_gguf, to_gguf

Array = npt.NDArray[Any]

with np.load(Path(__file__).parents[1] / "data" / "golden.npz") as file:
    GOLDEN = dict(file)
#: ggml's blocks by key, some with importances; and the values that ggml decodes.
PACKED = {key: GOLDEN[key] for key in GOLDEN if key.split(".")[0] not in ("input", "imatrix") and "dequant" not in key}
DECODED = {key.removesuffix(".dequant"): GOLDEN[key] for key in GOLDEN if key.endswith(".dequant")}
#: Levels on a grid, or formats of activations.
NO_WAY_BACK = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "Q8_1", "Q8_K")
FLOATS = ("F16", "BF16")
LAYOUTS = ("MatMulNBits", "DequantizeLinear", "Gather")
FORMATS = sorted({key.split(".")[0] for key in PACKED})


def weights(key: str) -> lowbit.QTensor:
    return lowbit.QTensor(PACKED[key], key.split(".")[0])


def values(matrix: BlockMatrix) -> Array:
    """The weights (outputs, inputs), by the operators' definitions."""
    outputs, inputs = matrix.shape
    columns = matrix.layout == "DequantizeLinear"
    arrays = {
        name: None if tensor is None else (tensor.array.T if columns else tensor.array)
        for name, tensor in vars(matrix).items()
        if name in ("codes", "scales", "zero_points", "offsets")
    }
    codes, zeros = arrays["codes"], arrays["zero_points"]
    if matrix.scales is None:
        return np.asarray(matrix.codes.array.astype(np.float32))
    if matrix.layout == "MatMulNBits":
        codes = spread(codes.reshape(outputs, -1), matrix.bits)[:, :inputs]
        if zeros is None:
            zeros = np.full((outputs, matrix.num_blocks), 1 << matrix.bits - 1)
        elif zeros.dtype == np.uint8:
            zeros = spread(zeros, matrix.bits)[:, : matrix.num_blocks]
    at = np.arange(inputs) // matrix.block_size
    result = codes.astype(np.float32)
    with np.errstate(all="ignore"):
        if zeros is not None:
            result = result - zeros.astype(np.float32)[:, at]
        result = result * arrays["scales"][:, at]
        if arrays["offsets"] is not None:
            result = result + arrays["offsets"][:, at]
    assert result.dtype == np.float32
    return result


def spread(raw: Array, bits: int) -> Array:
    """Codes of bytes from the lowest bits on, along the last axis."""
    return (raw[..., None] >> np.arange(0, 8, bits) & (1 << bits) - 1).reshape(*raw.shape[:-1], -1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("key", sorted(PACKED))
def test_every_format_has_a_form_with_its_values(key: str, layout: str, simd: str) -> None:
    q = weights(key)
    blocks = from_gguf("w", q, layout=layout, exact=True)
    assert (blocks.format, blocks.fidelity.label, blocks.fidelity.error) == (q.format, "exact", 0.0)
    expected = DECODED.get(key, q.dequantize())
    np.testing.assert_array_equal(values(blocks.matrix), expected)
    assert blocks.bytes_before == q.nbytes
    assert blocks.bytes_after == sum(tensor.raw.nbytes for tensor in blocks.matrix.tensors)


def test_minima_as_float_zero_points_are_within_the_bound() -> None:
    for key in ("Q4_1", "Q4_1.imatrix", "Q4_K", "Q4_K.imatrix", "Q2_K", "Q2_K.imatrix"):
        q = weights(key)
        blocks = from_gguf("w", q, float_zero_points=True)
        assert blocks.matrix.offsets is None
        assert blocks.fidelity.label == "bounded"
        assert "slower" in blocks.note
        difference = np.abs(values(blocks.matrix).astype(np.float64) - q.dequantize())
        assert 0 < (difference / terms(q)).max() <= blocks.fidelity.bound
        with pytest.raises(lowbit.UnsupportedError, match=rf"tensor 'w': {q.format} with float zero points") as caught:
            from_gguf("w", q, float_zero_points=True, exact=True)
        assert caught.value.tensor == "w"


def terms(q: lowbit.QTensor) -> Array:
    """|scale * level| + |minimum| of the formats with a minimum, from the offsets of the exact form."""
    matrix = from_gguf("w", q, layout="Gather").matrix
    at = np.arange(q.shape[1]) // matrix.block_size
    offsets = matrix.offsets.array.astype(np.float64)[:, at]
    return np.asarray(np.abs(q.dequantize() - offsets) + np.abs(offsets) + np.finfo(np.float64).tiny)


def test_blocks_without_a_scale_keep_their_minimum_as_float_zero_points() -> None:
    """Q4_1 writes a block of equal weights as scale 0 and a minimum; codes of such a block may be anything."""
    q = lowbit.quantize(np.full((3, 64), 0.75, np.float32), "Q4_1").copy()
    q.data[:, 4:20] = 0x5A
    np.testing.assert_array_equal(values(from_gguf("w", q, float_zero_points=True).matrix), 0.75)
    np.testing.assert_array_equal(values(from_gguf("w", q).matrix), 0.75)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("format", [name for name in FORMATS if name not in FLOATS])
def test_any_bytes_keep_their_values(format: str, layout: str) -> None:
    """Random bytes: scales that are negative, 0, subnormal, infinite or NaN, and codes that encoders do not write."""
    random = np.random.default_rng(sum(format.encode()))
    data = random.integers(0, 256, (64, PACKED_BYTES[format] * 2), np.uint8)
    halves = np.array([0, 1, 0x3FF, 0x8001, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0x8000], "<u2")
    q = lowbit.QTensor(data, format)
    for row, value in enumerate(np.tile(halves, 3)):
        for at in range(0, data.shape[1] - 1, 2) if row < len(halves) else (0, data.shape[1] - 2):
            if row < len(halves) or at:
                data[row, at : at + 2] = np.frombuffer(value.tobytes(), np.uint8)
    found, expected = values(from_gguf("w", q, layout=layout).matrix), q.dequantize()
    if format in ("IQ1_S", "IQ3_S"):  # sums of two terms: infinity may become NaN
        assert not np.isfinite(found[~np.isfinite(expected)]).any()
        found = np.where(np.isfinite(expected), found, expected)
    np.testing.assert_array_equal(found, expected)


PACKED_BYTES = {format.name: format.block_bytes for format in lowbit.formats()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("key", sorted(PACKED))
def test_what_came_from_gguf_goes_back(key: str, layout: str) -> None:
    """The bytes are those of the file but for zeros with a minus (Q4_1, Q5_1), and one block of Q3_K whose scales have
    31 and -31 as the largest integers: d and all of them may have the other sign."""
    q = weights(key)
    matrix = from_gguf("w", q, layout=layout).matrix
    if q.format in NO_WAY_BACK:
        found = to_gguf(matrix)
        difference = np.linalg.norm(found.weights.dequantize() - q.dequantize()) / np.linalg.norm(q.dequantize())
        assert found.fidelity.error == pytest.approx(difference)
    else:
        found = to_gguf(matrix, format=q.format, exact=True)
        assert found.fidelity.label == "exact"
        differing = (found.weights.data != q.data).sum()
        assert differing <= {"Q4_1": 2, "Q4_1.imatrix": 2, "Q5_1": 2, "Q5_1.imatrix": 2, "Q3_K.imatrix": 13}.get(key, 0)
        np.testing.assert_array_equal(found.weights.dequantize(), DECODED.get(key, q.dequantize()))
    assert found.bytes_before == matrix.nbytes
    assert found.bytes_after == found.weights.nbytes


def test_tensors_are_made_one_matrix_at_a_time() -> None:
    """The bytes of a large matrix are made when one is read, and forgotten when each was read."""
    calls = []

    class Rows:
        format = "Q4_K"
        shape = (4096, 1024)

        def rows(self, start: int, stop: int) -> Array:
            calls.append((start, stop))
            return np.zeros((stop - start, 576), np.uint8)

    matrix = from_gguf("w", Rows()).matrix
    assert calls == []
    for _ in range(2):
        for tensor in matrix.tensors:
            assert not tensor.raw.any()
        assert calls == [(start, start + 1024) for start in range(0, 4096, 1024)]
        calls.clear()


def test_what_is_no_matrix_and_options_that_do_not_exist() -> None:
    q = weights("Q4_K")
    with pytest.raises(lowbit.InputError, match="tensor 'w': expected a matrix"):
        from_gguf("w", q[0])
    with pytest.raises(lowbit.InputError, match="tensor 'w': expected a matrix"):
        from_gguf("w", q[:0])
    with pytest.raises(lowbit.InputError, match="weights: expected a QTensor"):
        from_gguf("w", np.zeros((2, 2)))  # type: ignore[arg-type]
    with pytest.raises(lowbit.InputError, match=r"layout: expected one of MatMulNBits, .*, got rows"):
        from_gguf("w", q, layout="rows")
    for key, layout in (("Q4_0", "MatMulNBits"), ("Q5_1", "MatMulNBits"), ("Q4_K", "DequantizeLinear")):
        with pytest.raises(lowbit.UnsupportedError, match="has no float zero points"):
            from_gguf("w", weights(key), layout=layout, float_zero_points=True)
    matrix = from_gguf("w", q, layout="Gather").matrix
    with pytest.raises(lowbit.InputError, match="matrix 'w': expected a layout for products"):
        matrix.product("x", "y")
    with pytest.raises(lowbit.InputError, match="matrix 'w': expected a layout with rows"):
        from_gguf("w", q, layout="DequantizeLinear").matrix.gather("ids", "y")


def test_table_of_the_page() -> None:
    """docs/onnx.md has a row for each format: bits, block, offsets, sizes and label."""
    page = (Path(__file__).parents[2] / "docs" / "onnx.md").read_text(encoding="utf-8")
    table = page.split("<!-- formats:")[1].split("<!-- end of formats")[0]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines() if "|" in line][2:]
    assert {name for row in rows for name in row[0].split(", ")} == {format.name for format in lowbit.formats()}
    for name, before, codes, offsets, after, gather, label, _ in rows[:-2]:
        format = lowbit.Format(name)
        q = lowbit.QTensor(np.zeros((64, 4096 // format.block_size * format.block_bytes), np.uint8), name)
        forms = [from_gguf("w", q, layout=layout) for layout in LAYOUTS]
        matrix = forms[0].matrix
        assert [float(before), label] == [format.bits_per_weight, forms[0].fidelity.label]
        assert codes == f"{matrix.bits} bits, {matrix.block_size}"
        assert bool(offsets) == (matrix.offsets is not None)
        sizes = [form.bytes_after * 8 / q.size for form in forms]
        assert sizes == [float(after), float(after), float(gather)]


def test_arguments_of_other_types() -> None:
    weights = lowbit.quantize(np.ones((4, 32), np.float32), "Q4_0")
    with pytest.raises(lowbit.InputError, match="name: expected a str, got 5"):
        from_gguf(5, weights)  # type: ignore[arg-type]
    with pytest.raises(lowbit.InputError, match="exact: expected a bool, got 'yes'"):
        from_gguf("w", weights, exact="yes")  # type: ignore[arg-type]
    with pytest.raises(lowbit.InputError, match="rank: expected an integer, got 'a'"):
        from_gguf("w", weights).matrix.product("x", "y", rank="a")  # type: ignore[arg-type]
    with pytest.raises(lowbit.InputError, match="exact: expected a bool, got 'yes'"):
        to_gguf(from_gguf("w", weights).matrix, exact="yes")  # type: ignore[arg-type]
