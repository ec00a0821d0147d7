"""Packed tensors and formats are copied, pickled and sent to other processes as NumPy's arrays and dtypes are."""

from __future__ import annotations

import copy
import pickle

import pytest

import lowbit

PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)
FORMATS = lowbit.formats()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_formats(protocol: int) -> None:
    for format, again in zip(FORMATS, pickle.loads(pickle.dumps(FORMATS, protocol)), strict=True):
        assert (again.name, again.ggml_type, again.block_size) == (format.name, format.ggml_type, format.block_size)
        assert again == format
        assert hash(again) == hash(format)
    assert b"_core" not in pickle.dumps(FORMATS[0], protocol)  # the public name, which stays


def test_formats_are_values() -> None:
    q4_k, q4_0 = lowbit.Format("q4_k"), lowbit.Format("Q4_0")
    assert q4_k == copy.copy(q4_k) == copy.deepcopy(q4_k)
    assert q4_k != q4_0
    assert q4_k != "Q4_K"
    assert len({*FORMATS, *lowbit.formats(), *copy.deepcopy(FORMATS)}) == len(FORMATS)
    assert {format: format.name for format in FORMATS}[q4_k] == "Q4_K"
    assert repr(q4_k) == "<Format Q4_K: 256 weights in 144 bytes>"
    assert repr(lowbit.Format("F32")) == "<Format F32: 1 weight in 4 bytes>"
    with pytest.raises(lowbit.InputError, match='unknown format "Q9_9"; known: F32, F16'):
        lowbit.Format("Q9_9")
    with pytest.raises(AttributeError):
        q4_k.block_size = 1  # type: ignore[misc]
