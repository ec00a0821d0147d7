"""Tensors of an ONNX model: in the file, beside it, or made of an array."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit import _core
from lowbit.base.errors import Error, FormatError, InputError, UnsupportedError
from lowbit.base.quoting import shown
from lowbit.onnx.dtypes import BY_NUMBER, Bytes, dtype_name, element_type, pack, unpack
from lowbit.onnx.message import Message, pairs, read_pairs, with_bytes

#: data_location of a tensor whose bytes are in another file.
_EXTERNAL = 1
_MOST_ELEMENTS = 2**60
#: NumPy's limit.
_MOST_DIMENSIONS = 64
#: From so many bytes on, the writer asks for them when it writes them.
_LATE = 1 << 16


@dataclass(frozen=True)
class External:
    """The place of a tensor's bytes in a file beside the model. length: None to the end of the file."""

    location: str
    offset: int = 0
    length: int | None = None

    def entries(self) -> dict[str, str]:
        """The entries of TensorProto.external_data."""
        entries = {"location": self.location, "offset": str(self.offset)}
        return entries if self.length is None else entries | {"length": str(self.length)}


@dataclass(frozen=True, eq=False)
class InPieces:
    """The source of a tensor that is never in memory as a whole when it is written. pieces: returns its bytes."""

    pieces: Callable[[], Iterator[Bytes]]

    def __call__(self) -> Bytes:
        """All bytes."""
        return np.concatenate([*self.pieces()])


#: Returns the bytes of a place, of which a tensor needs so many.
Fetch = Callable[[External, int], Bytes]


@dataclass(frozen=True, eq=False)
class Tensor(Message):
    """A TensorProto. `shape`: numbers of elements. `dtype`: a NumPy or ml_dtypes dtype; `object` for strings.

    Make one with `Tensor.of`. Only `bytes` and `array` touch the elements.
    """

    NAME = "TensorProto"

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    source: Callable[[], Bytes] | list[bytes]
    external: External | None = None
    rest: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, array: npt.ArrayLike) -> Tensor:
        """A tensor with the elements of an array, which is not copied if it is contiguous.

        int4, uint4, int2, uint2 and float4 are ml_dtypes' and are packed. Raises UnsupportedError for other dtypes.
        """
        array = np.asarray(array)
        if array.dtype == object or array.dtype.kind in "US":
            return cls(name, np.dtype(object), array.shape, [_text(name, each) for each in array.reshape(-1).tolist()])
        element_type(array.dtype)
        return cls(name, array.dtype.newbyteorder("="), array.shape, _Elements(array))

    @classmethod
    def packed(cls, name: str, raw: Bytes, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> Tensor:
        """A tensor of bytes as in raw_data: little-endian, small elements packed from the lowest bits on."""
        kind = element_type(dtype)
        if kind.bits == 0:
            raise InputError(f"tensor {shown(name)}: strings are not packed: use Tensor.of", tensor=name)
        tensor = cls(name, kind.dtype, tuple(shape), _Raw(raw))
        _check_size(tensor, raw, InputError)
        return tensor

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes in a file; of strings, without their lengths."""
        if isinstance(self.source, list):
            return sum(map(len, self.source))
        return -(-self.size * element_type(self.dtype).bits // 8)

    @property
    def raw(self) -> Bytes:
        """The elements as in raw_data. Raises FormatError if the source returns another number of bytes."""
        if isinstance(self.source, list):
            raise InputError(f"tensor {shown(self.name)} has strings", tensor=self.name)
        raw = self.source()
        _check_size(self, raw, FormatError)
        return np.ascontiguousarray(raw)

    def pieces(self) -> Iterator[Bytes]:
        """The bytes of `raw` one after the other; several if the source is InPieces."""
        if not isinstance(self.source, InPieces):
            yield self.raw
            return
        rest = self.nbytes
        for piece in self.source.pieces():
            rest -= len(piece)
            yield piece
        if rest:
            found = str(self.nbytes - rest)
            text = f"tensor {shown(self.name)}:"
            raise FormatError(text, tensor=self.name, expected=f"{self.nbytes} bytes", found=found)

    @property
    def array(self) -> npt.NDArray[Any]:
        """The elements, read-only: a view of the file if it has them as an array, else a new array."""
        try:
            if isinstance(self.source, list):
                elements: npt.NDArray[Any] = np.empty(len(self.source), object)
                elements[:] = self.source
                elements = elements.reshape(self.shape)
            else:
                elements = unpack(self.raw, self.dtype, self.shape).view()
            elements.flags.writeable = False  # a change would be lost
            return elements
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            text = f"tensor {shown(self.name)}: no array has the shape {list(self.shape)}"
            raise FormatError(text, tensor=self.name) from None

    def release(self) -> None:
        """Takes the elements out of memory if they are in a mapped file. They are read again when they are needed."""
        if isinstance(self.source, _Raw):
            _core.MappedFile.release(self.source.array)

    @property
    def sharing(self) -> tuple[Any, ...]:
        """Equal for tensors whose bytes are the same memory or come from the same source."""
        if isinstance(self.source, (_Raw, _Elements)):
            array = self.source.array
            return array.__array_interface__["data"][0], array.dtype, array.shape, array.strides
        return (id(self.source),)

    def fields(self) -> dict[str, Any]:
        """As `Message.fields`. `raw_data` is the tensor itself if it has many bytes, to be read late."""
        kind = element_type(self.dtype)
        fields = {**self.rest, "name": self.name or None, "dims": self.shape, "data_type": kind.number}
        if isinstance(self.source, list):
            return fields | {"string_data": self.source}
        if self.external is None:
            return fields | {"raw_data": self.raw if self.nbytes < _LATE else self}
        return fields | {"external_data": pairs(self.external.entries()), "data_location": _EXTERNAL}


def _text(name: str, element: object) -> bytes:
    if isinstance(element, (str, bytes)):
        return element.encode() if isinstance(element, str) else element
    found = type(element).__name__
    raise InputError(f"tensor {shown(name)}:", tensor=name, expected="str or bytes", found=found)


def read_tensor(encoded: Bytes, fetch: Fetch) -> Tensor:
    """A tensor of a file. Raises FormatError or UnsupportedError, before its elements are read."""
    fields = _core.onnx_fields(Tensor.NAME, encoded)
    name = fields.pop("name", "")
    about = f"tensor {shown(name)}"
    number = fields.pop("data_type", 0)
    if number not in BY_NUMBER:
        raise UnsupportedError(f"{about}: unknown element type {number}", tensor=name)
    kind = BY_NUMBER[number]
    shape = tuple(fields.pop("dims", ()))
    if len(shape) > _MOST_DIMENSIONS:
        raise UnsupportedError(f"{about}: {len(shape)} dimensions, more than {_MOST_DIMENSIONS}", tensor=name)
    if any(dim < 0 for dim in shape) or math.prod(shape) > _MOST_ELEMENTS:
        raise FormatError(f"{about}: the shape {shown(list(shape))} is not valid", tensor=name)
    if "segment" in fields:
        raise UnsupportedError(f"{about} is stored in segments", tensor=name)
    external = None
    source: Callable[[], Bytes] | list[bytes]
    is_external = fields.pop("data_location", 0) == _EXTERNAL
    if kind.bits == 0 and (is_external or "raw_data" in fields):
        found = "external_data" if is_external else "raw_data"
        raise FormatError(f"{about}:", tensor=name, expected=f"strings in {kind.field}", found=found)
    if is_external:
        external = _external(read_pairs(fields.pop("external_data", ())), name)
        nbytes = -(-math.prod(shape) * kind.bits // 8)
        try:
            source = _Raw(fetch(external, nbytes))
        except Error as error:
            error.about(f"{about}: ", tensor=name)
            raise
    elif "raw_data" in fields:
        source = _Raw(fields.pop("raw_data"))
    elif kind.bits == 0:
        source = strings = _core.onnx_elements(encoded, kind.field)
        if len(strings) != math.prod(shape):
            expected = f"{math.prod(shape)} strings"
            raise FormatError(f"{about}:", tensor=name, expected=expected, found=str(len(strings)))
    else:
        source = _Typed(encoded, kind.field, kind.number)
    for each in ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data"):
        fields.pop(each, None)
    tensor = Tensor(name, kind.dtype, shape, source, external, fields)
    if isinstance(source, _Raw):
        _check_size(tensor, source.array, FormatError)
    return with_bytes(tensor, encoded)


def _check_size(tensor: Tensor, raw: Bytes, kind: type[FormatError] | type[InputError]) -> None:
    what = f"tensor {shown(tensor.name)}: {dtype_name(tensor.dtype)} {list(tensor.shape)}:"
    if not isinstance(raw, np.ndarray) or raw.dtype != np.uint8 or raw.ndim != 1:
        raise InputError(what, tensor=tensor.name, expected="bytes as an array of uint8", found=type(raw).__name__)
    if len(raw) != tensor.nbytes:
        raise kind(what, tensor=tensor.name, expected=f"{tensor.nbytes} bytes", found=str(len(raw)))


def _external(pairs: Mapping[str, str], name: str) -> External:
    """Raises FormatError for anything but a location and decimal numbers."""
    location = pairs.get("location", "")
    numbers = {key: pairs[key] for key in ("offset", "length") if key in pairs}
    for key, text in numbers.items():
        if not (text.isascii() and text.isdecimal() and len(text) < 19):
            raise FormatError(f"tensor {shown(name)}: {key}:", tensor=name, expected="a number of bytes", found=text)
    length = int(numbers["length"]) if "length" in numbers else None
    return External(location, int(numbers.get("offset", 0)), length)


@dataclass(frozen=True)
class _Raw:
    array: Bytes

    def __call__(self) -> Bytes:
        return self.array


@dataclass(frozen=True)
class _Elements:
    array: npt.NDArray[Any]

    def __call__(self) -> Bytes:
        return pack(self.array)


@dataclass(frozen=True)
class _Typed:
    """Elements in a field of numbers."""

    encoded: Bytes
    field: str
    number: int

    def __call__(self) -> Bytes:
        numbers = _core.onnx_elements(self.encoded, self.field)
        kind = BY_NUMBER[self.number]
        if self.field in ("float_data", "double_data", "int64_data"):
            return pack(numbers)
        # int32_data has elements one by one, but those of 2 and 4 bits byte by byte.
        stored = numbers.astype(f"<u{max(kind.bits // 8, 1)}")
        return pack(stored.view(kind.dtype) if kind.bits == 6 else stored)
