"""Tensors of ONNX models as arrays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import lowbit
from lowbit import _core
from lowbit.onnx.tensor import Tensor, read_tensor


def test_arrays_are_read_only() -> None:
    """A change would be lost: the tensor keeps what it was made of."""
    given = np.arange(3, dtype=np.float32)
    encoded = b"".join(_core.encode_onnx("TensorProto", {"dims": [3], "data_type": 1, "float_data": given}))
    stored = read_tensor(np.frombuffer(encoded, np.uint8), lambda place, size: pytest.fail("no file"))
    for tensor in (stored, Tensor.of("a", given), Tensor.of("a", given > 1), replace(stored, name="b")):
        with pytest.raises(ValueError, match="read-only"):
            tensor.array[0] = 1
    given[0] = 7  # the caller's own stays writeable


@pytest.mark.parametrize("wrong", [[{}], [None, "a"], [1.5, "a"]])
def test_objects_other_than_text(wrong: list[object], tmp_path: Path) -> None:
    with pytest.raises(lowbit.InputError, match="tensor a: expected str or bytes"):
        Tensor.of("a", np.array(wrong, object))
