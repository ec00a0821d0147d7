"""Differences between the tensors of a GGUF file and its source, compared in pieces and in any order."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lowbit import _core
from lowbit.base.dtypes import FLOATS
from lowbit.conversion.pipeline import CHUNK_WEIGHTS, Job
from lowbit.gguf.source import GgufTensor
from lowbit.tensors import nonfinite
from lowbit.tensors.source import TensorSource, num_elements, row_ranges

#: The largest relative error of a weight that is rounded to half of its bits.
_ROUNDING = {"F32": 0.0, "F16": 2.0**-11, "BF16": 2.0**-8}
#: The largest difference from another order of summation in merging, relative to the weights' root mean square.
_MERGED = 2.0**-20
#: The relative error of a row of zeros. Every encoder's error is smaller.
_ZEROS = 1 - 1e-6

Rows = npt.NDArray[Any]


class TensorErrors(NamedTuple):
    """Relative root mean square error of a tensor and of its worst row.

    A row's error is relative to the larger of its own and the tensor's root mean square, so nearly empty rows may
    become zero. problem: why the tensor fails, else None. odd: the place of a non-finite weight in the source.
    """

    rmse: float
    worst_row: float
    problem: str | None
    odd: str | None = None


class TensorPair:
    """The same tensor in a source and in a file. Both are read in pieces; neither is mapped.

    Rows are those of the matrix (..., K) -> (rows, K); a vector is one row.
    """

    def __init__(self, source: TensorSource, tensor: GgufTensor, threads: int, exact: bool, merged: bool) -> None:
        """exact: the format can keep this source's tensors exactly. merged: adapters were merged into the source."""
        self.source = source
        self.format = tensor.info.format
        self.shape = source.shape if len(source.shape) > 1 else (1, *source.shape)
        self._packed = tensor(self.format)
        self._threads = threads
        self._exact = exact
        self._merged = merged and source.dtype == np.float32
        num_rows = num_elements(self.shape[:-1])
        self._sums = np.zeros((num_rows, 3))
        self._compared = np.zeros(num_rows, bool)
        # Formats to which the source's weights may have been rounded before they were written to this float format.
        self._intermediates: list[str | None] = [None, *FLOATS] if self.format in FLOATS else []

    @property
    def num_compared(self) -> int:
        """Number of weights compared so far."""
        return int(np.count_nonzero(self._compared)) * self.shape[-1]

    def source_rows(self, start: int, stop: int) -> Rows:
        """Rows of the source, (stop - start, K), float32, float16 or bfloat16."""
        if len(self.source.shape) == 1:
            return self.source.rows(0, self.source.shape[0]).reshape(1, -1)
        return self.source.rows(start, stop).reshape(stop - start, self.shape[-1])

    def file_rows(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Rows as stored in the file, (stop - start, row bytes)."""
        return self._packed.rows(start, stop)

    def compare(self, start: int, rows: Rows, data: npt.NDArray[np.uint8]) -> None:
        """Compares rows that are already read, from row `start` on."""
        stop = start + len(rows)
        self._sums[start:stop] = _core.compare_rows(rows, data, self.format, self._threads)
        while self._intermediates and not self._gives(rows, self._intermediates[0], data):
            del self._intermediates[0]
            self._compared[:] = False  # the next format must also match the earlier pieces
        self._compared[start:stop] = True

    def complete(self) -> None:
        """Compares the remaining rows."""
        while not self._compared.all():
            for start, stop in row_ranges(0, len(self._compared), self.shape[-1], CHUNK_WEIGHTS):
                if not self._compared[start:stop].all():
                    self.compare(start, self.source_rows(start, stop), self.file_rows(start, stop))

    def errors(self) -> TensorErrors:
        """The errors of a complete tensor."""
        squared, signal = self._sums[:, 0], self._sums[:, 1]
        whole, row, worst = 0.0, 0.0, 0
        if squared.any():
            with np.errstate(divide="ignore", invalid="ignore"):
                whole = float(np.sqrt(squared.sum() / signal.sum()))
                rows = np.sqrt(squared / np.maximum(signal, signal.mean()))
            row, worst = float(rows.max()), int(rows.argmax())
        if not np.isfinite(row):
            return self._errors_of_nonfinite()
        return TensorErrors(whole, row, self._problem(row, worst))

    def _errors_of_nonfinite(self) -> TensorErrors:
        """The result for non-finite weights, which have no error. In a float format they may equal the source's."""
        first = int(np.flatnonzero(~np.isfinite(self._sums).all(axis=1))[0])
        odd = nonfinite.place(self.source_rows(first, first + 1), first)
        if odd is None:
            return TensorErrors(math.nan, math.nan, f"is not finite in row {first}, but the source is")
        problem = None if self._intermediates else f"cannot be compared: in the source {odd}; {nonfinite.ADVICE}"
        return TensorErrors(0.0 if self._intermediates else math.nan, math.nan, problem, odd)

    def _gives(self, rows: Rows, through: str | None, data: npt.NDArray[np.uint8]) -> bool:
        """Whether rows of the source, rounded through a format, equal the file's."""

        def encoded(rows: Rows) -> npt.NDArray[np.uint8]:
            return Job(self.source, self.format, through=through).encode(rows, 0, self._threads).view(np.uint8)

        if np.array_equal(encoded(rows), data):
            return True
        if not self._merged:
            return False
        near = np.float32(_MERGED * math.sqrt(np.square(rows, dtype=np.float64).mean()))
        low, found, high = (x.view(FLOATS[self.format]) for x in (encoded(rows - near), data, encoded(rows + near)))
        return bool(((low <= found) & (found <= high)).all())

    def _loses(self, row: int) -> bool:
        """Whether encoding a row of the source loses information."""
        rows = self.source_rows(row, row + 1)
        encoded = Job(self.source, self.format).encode(rows, 0, self._threads)
        return bool(_core.compare_rows(rows, encoded, self.format, self._threads)[0, 0])

    def _problem(self, row: float, worst: int) -> str | None:
        if self.format in FLOATS:
            if self._intermediates:
                return None
            limit = 0.0 if FLOATS[self.format] == self.source.dtype else _ROUNDING[self.format]
            if row <= limit:
                return f"has weights other than the source's, rounded to {self.format}"
        else:
            limit = min(_ZEROS, float(8 * 2.0 ** -_core.Format(self.format).bits_per_weight))
            if self._exact and not self._loses(worst):
                limit = 0.0
            if row <= limit:
                return None
        return f"is off by {row:.3g} in one row, expected at most {limit:.3g}"


def tensor_pairs(
    sources: Mapping[str, TensorSource],
    tensors: Mapping[str, GgufTensor],
    threads: int,
    *,
    exact: Container[str] = (),
    merged: bool = False,
) -> dict[str, TensorPair]:
    """Pairs the tensors of a source and a file, which must have the same names and shapes.

    exact: formats that keep some tensors exactly. merged: adapters were merged into the source; the last bits of these
    sums depend on the number of rows and on the CPU."""
    return {
        name: TensorPair(source, tensors[name], threads, tensors[name].info.format in exact, merged)
        for name, source in sources.items()
    }
