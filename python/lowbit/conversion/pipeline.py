"""Streams tensors into GGUF files: rows are read, encoded and written at the same time, a few megabytes each.

One thread reads ahead, one thread writes, and the calling thread encodes with the core's threads. Only a few chunks are
in memory, for models of any size.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lowbit import _core, gguf
from lowbit.base.atomic import remove_stale
from lowbit.base.dtypes import FLOAT_NAMES, FLOATS
from lowbit.base.errors import InputError
from lowbit.base.file_sets import replacing_set
from lowbit.base.progress import Advance
from lowbit.tensors import nonfinite
from lowbit.tensors.source import TensorSource, row_ranges

#: Weights per chunk: 8 MiB as bfloat16. Smaller chunks gain nothing, larger ones cost memory.
CHUNK_WEIGHTS = 4 << 20
#: Chunks that may be read ahead of the one being encoded, and chunks that may wait to be written.
CHUNKS_AHEAD = 2


@dataclass(frozen=True)
class Job:
    """One tensor to write."""

    source: TensorSource
    format: str
    #: float32 (matrices, columns): a tensor may stack the matrices of several experts, whose rows follow each other.
    importance: np.ndarray | None = None
    #: Weights are rounded to this format before encoding, as in the file between the reference's two tools.
    through: str | None = None

    @property
    def is_quantized(self) -> bool:
        """Whether the format is not a float format."""
        return self.format not in FLOATS

    @property
    def is_encoded(self) -> bool:
        """Whether blocks are encoded, not copied."""
        return self.is_quantized and self.source.dtype != np.uint8

    @property
    def num_rows(self) -> int:
        """Rows that share importances."""
        return self.source.shape[0] // (1 if self.importance is None else len(self.importance))

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows; all rows of a range have the same importances."""
        shape = self.source.shape
        row_size = math.prod(shape[1:])
        for first in range(0, shape[0], max(1, self.num_rows)):
            yield from row_ranges(first, first + self.num_rows, row_size, CHUNK_WEIGHTS)

    def encode(self, rows: np.ndarray, start: int, threads: int) -> np.ndarray:
        """The bytes of some rows in the file."""
        if rows.dtype == np.uint8:  # already packed
            return rows
        given = rows
        if self.through and rows.dtype != FLOATS[self.through]:
            rows = _encode_rows(rows, self.through, None, threads, True).view(FLOATS[self.through])
        if FLOAT_NAMES[rows.dtype] == self.format:
            return rows
        matrix = rows.reshape(-1, rows.shape[-1])
        first_row = start * (len(matrix) // max(1, len(rows)))
        importance = None if self.importance is None else self.importance[start // self.num_rows]
        try:
            encoded = _encode_rows(matrix, self.format, importance, threads, not self.is_quantized)
        except InputError as error:
            raise self._explained(error, given.reshape(matrix.shape), matrix, first_row) from None
        if self.is_quantized:
            self._check(encoded, first_row, threads)
        return encoded

    def _explained(self, error: InputError, given: np.ndarray, matrix: np.ndarray, first_row: int) -> InputError:
        """The error for rows that cannot be encoded. given: rows of the source. matrix: rows passed to the encoder."""
        name = self.source.name
        if found := nonfinite.place(given, first_row):
            return InputError(
                f"tensor {name}: {found}, but {self.format} can only hold finite weights: {nonfinite.ADVICE}",
                tensor=name,
            )
        if found := nonfinite.place(matrix, first_row):
            return InputError(
                f"tensor {name}: {found} in {self.through}: intermediate BF16 or F32 (--intermediate) can hold it",
                tensor=name,
            )
        error.about(f"tensor {name}, rows from {first_row}: ", tensor=name)
        return error

    def _check(self, encoded: np.ndarray, first_row: int, threads: int) -> None:
        """Refuses scales that are NaN or infinity, because llama.cpp does not load them. They result from weights or
        importances that are too large for the format."""
        try:
            _core.check_scales(encoded, self.format, first_row, threads)
        except InputError as error:
            error.about(f"tensor {self.source.name}, ", tensor=self.source.name)
            raise


def _encode_rows(
    rows: np.ndarray, format: str, importance: np.ndarray | None, threads: int, allow_nonfinite: bool
) -> np.ndarray:
    descriptor = _core.Format(format)
    out = np.empty((rows.shape[0], rows.shape[1] // descriptor.block_size * descriptor.block_bytes), np.uint8)
    _core.quantize_rows(rows, format, importance, out, allow_nonfinite, threads)
    return out


@dataclass(frozen=True)
class Target:
    """A GGUF file to write: one job per element of `infos`."""

    path: str
    metadata: Mapping[str, Any]
    infos: Sequence[gguf.TensorInfo]
    jobs: Sequence[Job]

    @property
    def file_bytes(self) -> int:
        """The exact size."""
        return gguf.file_size(self.metadata, self.infos)

    def open(self) -> gguf.Writer:
        """Creates the file under a temporary name."""
        return gguf.Writer(self.path, self.metadata, self.infos)


class Appender(Protocol):
    """An open file. Results of its jobs are appended in order. It gets its name if the `with` block succeeds."""

    def write(self, rows: np.ndarray) -> None:
        """Appends."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *exception: Any) -> None: ...


class Output(Protocol):
    """A file to write, of any kind."""

    @property
    def path(self) -> str:
        """Its final path."""

    @property
    def jobs(self) -> Sequence[Job]:
        """Its tensors, in order."""

    def open(self) -> Appender:
        """Creates the file under a temporary name."""


def write_files(
    targets: Sequence[Output],
    threads: int,
    advance: Advance,
    finishing: Callable[[Sequence[Appender]], None] = lambda files: None,
) -> dict[str, int]:
    """Writes the files, all of them or none: they get their names after all are written, the first file last.

    GGUF files replace those of an older set as `file_sets` describes.

    `advance(done, total)` counts bytes read. `finishing` is called with the complete files before they get names.
    Returns the number of weights per tensor that were too large for float16.
    """
    for target in targets[:1]:
        remove_stale(os.path.realpath(target.path))
    overflows: dict[str, int] = {}
    done, total = 0, sum(job.source.dtype.itemsize * math.prod(job.source.shape) for t in targets for job in t.jobs)
    with (
        ExitStack() as writers,
        ThreadPoolExecutor(1, "lowbit-read") as reader,
        ThreadPoolExecutor(1, "lowbit-write") as behind,
    ):
        opened = [writers.enter_context(t.open()) for t in targets]
        chunks = (
            (writer, job, start, stop)
            for target, writer in zip(targets, opened, strict=True)
            for job in target.jobs
            for start, stop in job.chunks()
        )
        reads: deque[tuple[Appender, Job, int, Future[np.ndarray]]] = deque()
        writes: deque[Future[None]] = deque()

        def read_ahead() -> None:
            for writer, job, start, stop in chunks:
                reads.append((writer, job, start, reader.submit(job.source.rows, start, stop)))
                if len(reads) > CHUNKS_AHEAD:
                    return

        read_ahead()
        while reads:
            writer, job, start, rows = reads.popleft()
            read_ahead()
            weights = rows.result()
            encoded = job.encode(weights, start, threads)
            if lost := _overflows(weights, encoded, job.format):
                overflows[job.source.name] = overflows.get(job.source.name, 0) + lost
            writes.append(behind.submit(writer.write, encoded))
            if len(writes) > CHUNKS_AHEAD:
                writes.popleft().result()
            done += weights.nbytes
            advance(done, total)
        for write in writes:
            write.result()
        finishing(opened)
        parts = [writer for writer in opened if isinstance(writer, gguf.Writer)]
        if len(parts) > 1:
            with replacing_set([target.path for target in targets], [part.temporary_path for part in parts]):
                writers.close()
    return overflows


def _overflows(weights: np.ndarray, encoded: np.ndarray, format: str) -> int:
    """Weights that became infinite in float16."""
    if format != "F16" or weights.dtype in (np.float16, np.uint8):
        return 0
    infinite = int(np.count_nonzero(np.isinf(encoded.view(np.float16))))
    return infinite and infinite - int(np.count_nonzero(np.isinf(weights)))
