"""Tensors that are made in pieces while they are written, so that memory does not depend on their size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lowbit
from lowbit.onnx import blocks
from lowbit.onnx.blocks import BlockFormat, block_tensors
from lowbit.onnx.graph import Graph, Model
from lowbit.onnx.tensor import InPieces, Tensor


def model_of(tensor: Tensor) -> Model:
    return Model(Graph("g", (), {tensor.name: tensor}, (), ()), {"": 21}, 10)


def test_large_tensors_need_little_padding(tmp_path: Path) -> None:
    """They start at multiples of 64 KiB; behind each small one, there would be almost 64 KiB of zeros."""
    sizes = {f"{kind}{i}": count for i in range(8) for kind, count in (("small", 300), ("large", 1 << 18))}
    tensors = {name: Tensor.of(name, np.arange(count, dtype=np.float32)) for name, count in sizes.items()}
    model = Model(Graph("g", (), tensors, (), ()), {"": 21}, 10)
    lowbit.onnx.write(tmp_path / "m.onnx", model, external_data=True)
    total = sum(tensor.nbytes for tensor in tensors.values())
    assert 0 <= (tmp_path / "m.onnx.data").stat().st_size - total < 1 << 12
    read = lowbit.onnx.open(tmp_path / "m.onnx").graph.tensors
    assert [*read] == [*tensors]
    for name, tensor in read.items():
        np.testing.assert_array_equal(tensor.array, tensors[name].array)


def test_pieces_are_written_one_after_the_other(tmp_path: Path) -> None:
    size = 2 << 20  # in which files are written
    made: list[int] = []
    path = tmp_path / "m.onnx"

    def pieces() -> Iterator[np.ndarray]:
        for i in range(8):
            made.append(sum(file.stat().st_size for file in tmp_path.iterdir() if "data" in file.name))
            yield np.full(size, i, np.uint8)

    tensor = Tensor("w", np.dtype(np.uint8), (8, size), InPieces(pieces))
    lowbit.onnx.write(path, model_of(tensor), external_data=True)
    assert made == [i * size for i in range(8)]  # what was before is in the file already
    array = lowbit.onnx.open(path).initializers["w"]
    assert array[:, -1].tolist() == [*range(8)]
    np.testing.assert_array_equal(tensor.array, array)


def test_pieces_of_another_size_are_an_error(tmp_path: Path) -> None:
    tensor = Tensor("w", np.dtype(np.uint8), (3000,), InPieces(lambda: iter([np.zeros(2000, np.uint8)])))
    with pytest.raises(lowbit.FormatError, match="tensor w: expected 3000 bytes, found 2000"):
        lowbit.onnx.write(tmp_path / "m.onnx", model_of(tensor), external_data=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_columns_made_in_pieces_have_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, bits: int, symmetric: bool
) -> None:
    weights = np.random.default_rng(0).standard_normal((200, 96)).astype(np.float32)
    weights[3] *= 100  # errors of pieces differ

    def made() -> list[Any]:
        format = BlockFormat(bits, 32, symmetric, "search", "columns")
        result = block_tensors("w", lambda: weights, weights.shape, np.dtype(np.float32), format, 2)
        tensors = [result.codes, result.scales, *([result.zero_points] if result.zero_points else [])]
        return [*(np.array(tensor.raw).tolist() for tensor in tensors), pytest.approx(result.error())]

    whole = made()
    monkeypatch.setattr(blocks, "_AT_ONCE", 96 * 40)
    assert made() == whole
