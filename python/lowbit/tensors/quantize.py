"""`quantize` and `dequantize`: arrays to packed weights and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit import _core
from lowbit.base import arguments
from lowbit.base.dtypes import FLOAT_NAMES
from lowbit.base.errors import InputError
from lowbit.base.quoting import quoted
from lowbit.base.threads import num_threads
from lowbit.tensors.formats import AnyFormat, find_format
from lowbit.tensors.qtensor import QTensor
from lowbit.tensors.rows import as_matrix, is_matrix, output


def quantize(
    w: npt.ArrayLike,
    format: AnyFormat,
    *,
    imatrix: npt.ArrayLike | None = None,
    allow_nonfinite: bool = False,
    out: QTensor | npt.NDArray[np.uint8] | None = None,
    threads: int | None = None,
) -> QTensor:
    """Encodes `w` (..., K), byte for byte as ggml does.

    `w`: an array with any strides, or an array-like: lists, PyTorch tensors in memory, pandas tables. float32, float16
    and bfloat16 are read in place. Other real numbers (float64, integers) are first rounded to float32; numbers beyond
    its range count as infinite.

    `format`: a name such as "Q4_K", or a `Format`. `imatrix`: the importance of each column, float (K,), finite and not
    negative. `threads` never changes the result. `out`: the array for the bytes, uint8 (..., row bytes), or a QTensor
    of the format; it is C-contiguous and shares no memory with `w`.

    With `allow_nonfinite`, F32, F16 and BF16 keep NaN and infinity. In the other formats the weights of a block with
    such a value are lost: its bytes are the result of ggml's arithmetic. With `imatrix`, some formats lose the row.

    Raises InputError if `w` is not an array of real numbers, the block size does not divide K, an importance is
    invalid, `out` does not fit, or `w` has NaN or infinity. The last error names the row and column of the first such
    weight; `out` is then partly written.
    """
    descriptor = find_format(format)
    weights = arguments.floats("weights", w, FLOAT_NAMES)
    if weights.ndim == 0:
        raise InputError("weights:", expected="at least one axis", found="a scalar")
    K = weights.shape[-1]
    if K % descriptor.block_size:
        raise InputError(
            f"{descriptor.name}: rows have {K} weights",
            expected=f"a multiple of the block size {descriptor.block_size}",
            found=K,
        )
    importance = None if imatrix is None else np.require(arguments.floats("imatrix", imatrix), None, ["C", "A"])
    allow_nonfinite = arguments.flag("allow_nonfinite", allow_nonfinite)
    count = num_threads(threads)
    if isinstance(out, QTensor):
        if out.format != descriptor.name:
            raise InputError("out:", expected=descriptor.name, found=out.format)
        out = out.data
    shape = (*weights.shape[:-1], K // descriptor.block_size * descriptor.block_bytes)
    inputs = {"w": weights} if importance is None else {"w": weights, "imatrix": importance}
    packed = output(out, np.dtype(np.uint8), shape, inputs)
    if is_matrix(weights):
        _core.quantize_rows(as_matrix(weights), descriptor.name, importance, as_matrix(packed), allow_nonfinite, count)
        return QTensor(packed, descriptor.name)
    # The rows are not evenly spaced: one matrix at a time.
    for index in np.ndindex(weights.shape[:-2]):
        try:
            _core.quantize_rows(weights[index], descriptor.name, importance, packed[index], allow_nonfinite, count)
        except InputError as error:
            error.about(f"matrix {index}: ")
            raise
    return QTensor(packed, descriptor.name)


def dequantize(
    q: QTensor | npt.NDArray[np.uint8],
    format: AnyFormat | None = None,
    *,
    dtype: npt.DTypeLike | None = None,
    out: npt.NDArray[Any] | None = None,
    threads: int | None = None,
) -> npt.NDArray[Any]:
    """Decodes a QTensor, or packed bytes uint8 (..., row bytes) with the name of their format, to (..., K).

    `dtype` and `out`: as in `QTensor.dequantize`. Raises InputError if the bytes are not whole blocks, `dtype` is not
    float32, float16 or bfloat16, or `out` does not fit.
    """
    if isinstance(q, QTensor):
        if format is not None and (given := find_format(format).name) != q.format:
            raise InputError("format:", expected=f"{q.format}, the tensor's format", found=quoted(given))
        return q.dequantize(dtype, out=out, threads=threads)
    if format is None:
        raise InputError("format:", expected="the name of the format of packed bytes")
    return QTensor(q, format).dequantize(dtype, out=out, threads=threads)
