"""The element types of ONNX tensors (TensorProto.DataType) as NumPy dtypes, and their packing in bytes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from lowbit.base.errors import UnsupportedError

Bytes = npt.NDArray[np.uint8]


class ElementType(NamedTuple):
    """An element type: its number in files, its dtype, its bits, and the field of typed data beside raw_data.

    Elements of less than a byte are packed from the lowest bits on. Strings have the dtype `object` and no bits.
    """

    number: int
    dtype: np.dtype[Any]
    bits: int
    field: str


def _type(number: int, kind: Any, field: str, bits: int = 0) -> ElementType:
    dtype = np.dtype(kind)
    return ElementType(number, dtype, bits or 8 * dtype.itemsize, field)


_TYPES = (
    _type(1, np.float32, "float_data"),
    _type(2, np.uint8, "int32_data"),
    _type(3, np.int8, "int32_data"),
    _type(4, np.uint16, "int32_data"),
    _type(5, np.int16, "int32_data"),
    _type(6, np.int32, "int32_data"),
    _type(7, np.int64, "int64_data"),
    ElementType(8, np.dtype(object), 0, "string_data"),
    _type(9, np.bool_, "int32_data"),
    _type(10, np.float16, "int32_data"),
    _type(11, np.float64, "double_data"),
    _type(12, np.uint32, "uint64_data"),
    _type(13, np.uint64, "uint64_data"),
    _type(14, np.complex64, "float_data"),
    _type(15, np.complex128, "double_data"),
    _type(16, ml_dtypes.bfloat16, "int32_data"),
    _type(17, ml_dtypes.float8_e4m3fn, "int32_data"),
    _type(18, ml_dtypes.float8_e4m3fnuz, "int32_data"),
    _type(19, ml_dtypes.float8_e5m2, "int32_data"),
    _type(20, ml_dtypes.float8_e5m2fnuz, "int32_data"),
    _type(21, ml_dtypes.uint4, "int32_data", 4),
    _type(22, ml_dtypes.int4, "int32_data", 4),
    _type(23, ml_dtypes.float4_e2m1fn, "int32_data", 4),
    _type(24, ml_dtypes.float8_e8m0fnu, "int32_data"),
    _type(25, ml_dtypes.uint2, "int32_data", 2),
    _type(26, ml_dtypes.int2, "int32_data", 2),
    _type(27, ml_dtypes.float6_e2m3fn, "int32_data", 6),
    _type(28, ml_dtypes.float6_e3m2fn, "int32_data", 6),
)
#: By number and by dtype.
BY_NUMBER = {each.number: each for each in _TYPES}
BY_DTYPE = {each.dtype: each for each in _TYPES}


def element_type(dtype: npt.DTypeLike) -> ElementType:
    """The element type of a dtype. Raises UnsupportedError if ONNX has none."""
    try:
        return BY_DTYPE[np.dtype(dtype).newbyteorder("=")]
    except (KeyError, TypeError):
        raise UnsupportedError(f"ONNX has no element type for {dtype}") from None


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The name to show: "float32", "int4", "string"."""
    return "string" if dtype.kind == "O" else dtype.name


def pack(array: npt.NDArray[Any]) -> Bytes:
    """The elements of an array, in its order, as the little-endian bytes of raw_data. A view where that is possible."""
    bits = element_type(array.dtype).bits
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.byteorder == ">":
        flat = flat.astype(flat.dtype.newbyteorder("<"))
    raw: Bytes = flat.view(np.uint8)
    if bits >= 8:
        return raw
    num_bytes = -(-len(raw) * bits // 8)
    if bits in _WORDS:
        return _packed_words(raw, bits)[:num_bytes]
    codes = np.zeros((-(-len(raw) // len(_SHIFTS)), len(_SHIFTS)), np.uint32)
    codes.reshape(-1)[: len(raw)] = raw & (1 << bits) - 1
    words = np.bitwise_or.reduce(codes << _SHIFTS, axis=1)
    packed: Bytes = words.view(np.uint8).reshape(-1, 4)[:, :_GROUP].reshape(-1)[:num_bytes]
    return packed


#: Four elements of 6 bits fill 3 bytes.
_GROUP = 3
_SHIFTS = np.arange(0, 24, 6, dtype=np.uint32)
#: Bits -> the word of the elements that fill a byte, and the steps that pack it: a mask, and a shift by which the upper
#: half of what is left moves to the lower one.
_WORDS: dict[int, tuple[np.dtype[Any], tuple[tuple[int, int], ...]]] = {
    4: (np.dtype("<u2"), ((4, 0x0F0F),)),
    2: (np.dtype("<u4"), ((6, 0x03030303), (12, 0x000F000F))),
}


def _packed_words(raw: Bytes, bits: int) -> Bytes:
    """Elements of 2 or 4 bits, a byte each, in whole bytes: the neighbours of a word move together, pair by pair."""
    word, steps = _WORDS[bits]
    padded = raw if len(raw) % word.itemsize == 0 else np.pad(raw, (0, -len(raw) % word.itemsize))
    words = padded.view(word)
    for shift, mask in steps:
        words = words & word.type(mask)
        words |= words >> word.type(shift)
    packed: Bytes = words.astype(np.uint8)
    return packed


def _unpacked_words(raw: Bytes, bits: int) -> Bytes:
    """The inverse of `_packed_words`."""
    word, steps = _WORDS[bits]
    words = raw.astype(word)
    for shift, mask in reversed(steps):
        words |= words << word.type(shift)
        words &= word.type(mask)
    unpacked: Bytes = words.view(np.uint8)
    return unpacked


def unpack(raw: Bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """The inverse of `pack`: a view for elements of whole bytes, else a copy with one byte an element."""
    bits = element_type(dtype).bits
    elements: npt.NDArray[Any]
    if dtype == np.bool_:
        elements = raw != 0  # another byte than 0 or 1 is no valid bool of NumPy
    elif bits >= 8:
        elements = raw.view(dtype)
    elif bits in _WORDS:
        elements = _unpacked_words(raw, bits)[: math.prod(shape)].view(dtype)
    else:
        padded = np.zeros((-(-len(raw) // _GROUP), 4), np.uint8)
        padded[:, :_GROUP] = np.resize(raw, (len(padded), _GROUP))
        codes = (padded.view(np.uint32) >> _SHIFTS & np.uint32((1 << bits) - 1)).astype(np.uint8).reshape(-1)
        elements = codes[: math.prod(shape)].view(dtype)
    return elements.reshape(shape)
