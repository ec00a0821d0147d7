"""Every format against what ggml's quantizers wrote (data/golden.npz), on every SIMD target of this CPU."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

import lowbit

HERE = Path(__file__).parent
ROWS = list(csv.DictReader((HERE / "formats.csv").read_text().splitlines()))
NAMES = [row["name"] for row in ROWS]


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    with np.load(HERE / "data" / "golden.npz") as file:
        vectors = dict(file)
    # The one format without vectors: its blocks are the input.
    return vectors | {"F32": vectors["input"].view(np.uint8), "F32.dequant": vectors["input"]}


@pytest.fixture(params=lowbit.simd.targets())
def simd(request):
    with lowbit.simd.force(request.param):
        yield request.param


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


def test_table_is_registry():
    """formats.csv holds exactly the registered formats, by id, with their sizes."""
    registered = [(f.name, f.ggml_type, f.block_size, f.block_bytes) for f in lowbit.formats()]
    table = [(r["name"], int(r["ggml_type"]), int(r["block_size"]), int(r["block_bytes"])) for r in ROWS]
    assert table == registered


def test_encode_golden(simd, name, golden):
    """Without importances the bytes are ggml's."""
    np.testing.assert_array_equal(lowbit.quantize(golden["input"], name).data, golden[name])


def test_encode_importance_golden(simd, name, golden):
    """With importances the bytes are ggml's."""
    expected = golden.get(f"{name}.imatrix", golden.get(name))
    np.testing.assert_array_equal(lowbit.quantize(golden["input"], name, imatrix=golden["imatrix"]).data, expected)


def test_decode_golden(simd, name, golden):
    """Decoded values are ggml's, bit for bit."""
    decoded = lowbit.dequantize(golden[name], name)
    np.testing.assert_array_equal(decoded.view(np.uint32), golden[f"{name}.dequant"].view(np.uint32))
