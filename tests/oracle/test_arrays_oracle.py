"""Tensors of PyTorch in and out of packed arrays, without lowbit knowing of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lowbit

pytestmark = pytest.mark.oracle


def test_tensors_are_arrays() -> None:
    w = torch.randn((6, 256), generator=torch.Generator().manual_seed(1))
    q = lowbit.quantize(w, "Q8_0")
    assert q == lowbit.quantize(w.numpy(), "Q8_0")
    for same in (w.double(), w.T.contiguous().T, [*w]):
        assert lowbit.quantize(same, "Q8_0") == q
    assert lowbit.quantize(w.half(), "Q8_0") == lowbit.quantize(w.half().numpy(), "Q8_0")
    assert lowbit.compare(w, q) == lowbit.compare(w.numpy(), q)
    np.testing.assert_array_equal(lowbit.matmul(w, q), lowbit.matmul(w.numpy(), q))
    expected = w.double() @ w.double().T
    for product in (q @ w.T, w @ q.T):
        np.testing.assert_allclose(product, expected, atol=1)  # what Q8_0 rounds away
    decoded = torch.from_numpy(np.asarray(q))
    assert torch.equal(decoded, torch.as_tensor(q))
    assert lowbit.quantize(decoded, "Q8_0") == q


def test_tensors_that_are_none_say_what_to_do() -> None:
    w = torch.ones((2, 32))
    with pytest.raises(lowbit.InputError, match="weights: expected an array, got Parameter: "):
        lowbit.quantize(torch.nn.Parameter(w), "Q8_0")
    for other in (w.to(torch.bfloat16), torch.empty((2, 32), device="meta"), w.to_sparse()):
        with pytest.raises(lowbit.InputError, match="weights: expected an array, got Tensor: "):
            lowbit.quantize(other, "Q8_0")
