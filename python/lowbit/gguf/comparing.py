"""Differences between two GGUF files: keys, tensors, and the errors of the weights."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from lowbit import _core
from lowbit.base import arguments
from lowbit.base.files import FileReader
from lowbit.base.progress import Advance, ProgressLike, steps
from lowbit.base.threads import num_threads
from lowbit.gguf.reading import DTYPES, File, Path, TensorInfo
from lowbit.gguf.values import type_name

#: Weights per step, and weights per row of it. Threads share the rows. Every block size divides a row.
_CHUNK_WEIGHTS, _ROW_WEIGHTS = 1 << 20, 4096
_CHUNKS_AHEAD = 2


@dataclass(frozen=True)
class KeyDiff:
    """A key with different values, as from `File.typed`; None if the file does not have the key."""

    key: str
    a: Any
    b: Any

    @property
    def kind(self) -> str:
        """The kind of difference: "only in a", "only in b", "type" or "value"."""
        if self.a is None or self.b is None:
            return "only in b" if self.a is None else "only in a"
        return "value" if type_name(self.a) == type_name(self.b) else "type"


@dataclass(frozen=True)
class TensorDiff:
    """A tensor that differs; None if the file does not have the tensor.

    blocks, num_blocks: for equal formats, the number of different blocks and of all blocks (single values in plain
    formats). relative: sqrt(mean((a - b)^2) / mean(a^2)). max: the largest |a - b|. Both require equal shapes and
    formats that lowbit decodes.
    """

    name: str
    a: TensorInfo | None
    b: TensorInfo | None
    blocks: int | None = None
    num_blocks: int | None = None
    relative: float | None = None
    max: float | None = None

    @property
    def kind(self) -> str:
        """The kind of difference: "only in a", "only in b", "shape", "format" or "data"."""
        if self.a is None or self.b is None:
            return "only in b" if self.a is None else "only in a"
        if self.a.shape != self.b.shape:
            return "shape"
        return "data" if self.a.format == self.b.format else "format"


@dataclass(frozen=True)
class GgufDiff:
    """All differences. key_order, tensor_order: whether common keys or tensors are in another order.

    num_keys, num_tensors: the number of compared names, those in only one file included.
    """

    keys: list[KeyDiff]
    tensors: list[TensorDiff]
    key_order: bool
    tensor_order: bool
    num_keys: int
    num_tensors: int

    @property
    def equal(self) -> bool:
        """Whether there is no difference."""
        return not (self.keys or self.tensors or self.key_order or self.tensor_order)


def diff(
    a: Path,
    b: Path,
    *,
    metadata: bool = True,
    tensors: bool = True,
    ignore: Iterable[str] = (),
    threads: int | None = None,
    progress: ProgressLike = None,
) -> GgufDiff:
    """Compares two GGUF files, or split models, key by key and tensor by tensor.

    metadata, tensors: what to compare. ignore: patterns of keys to ignore ("lowbit.*", "general.name"). Weights are
    read a few MB at a time, for files of any size. Raises FileError, FormatError and UnsupportedError as `open` does.
    """
    patterns = [ignore] if isinstance(ignore, str) else arguments.items("ignore", ignore)
    patterns = [arguments.text("ignore", pattern) for pattern in patterns]
    metadata, tensors = arguments.flag("metadata", metadata), arguments.flag("tensors", tensors)
    with File(a) as file_a, File(b) as file_b:
        names = [_names(f.metadata if metadata else (), patterns) for f in (file_a, file_b)]
        of_keys, key_order = _compare_keys(file_a, file_b, *names)
        infos = [list(f.infos) if tensors else [] for f in (file_a, file_b)]
        all_keys, all_tensors = _union(*names), _union(*infos)
        with steps("compare", "B", progress) as advance:
            comparison = _Comparison(file_a, file_b, num_threads(threads), advance)
            of_tensors = comparison.run(all_tensors)
        return GgufDiff(of_keys, of_tensors, key_order, _reordered(*infos), len(all_keys), len(all_tensors))


def _names(keys: Iterable[str], patterns: Sequence[str]) -> list[str]:
    return [key for key in keys if not any(fnmatchcase(key, pattern) for pattern in patterns)]


def _union(a: Sequence[str], b: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*a, *b]))


def _reordered(a: Sequence[str], b: Sequence[str]) -> bool:
    in_a, in_b = set(a), set(b)
    return [name for name in a if name in in_b] != [name for name in b if name in in_a]


def _compare_keys(a: File, b: File, of_a: Sequence[str], of_b: Sequence[str]) -> tuple[list[KeyDiff], bool]:
    found = []
    for key in _union(of_a, of_b):
        values = [file.typed(key) if key in file.metadata else None for file in (a, b)]
        if not _same(*values):
            found.append(KeyDiff(key, *values))
    return found, _reordered(of_a, of_b)


def _same(a: Any, b: Any) -> bool:
    """Whether two typed values have the same bytes in a file, NaN included."""
    if isinstance(a, (np.generic, np.ndarray)) and isinstance(b, (np.generic, np.ndarray)):
        return bool(type_name(a) == type_name(b) and a.tobytes() == b.tobytes())
    return type(a) is type(b) and bool(a == b)


class _Comparison:
    """Compares tensors of two files chunk by chunk, reading ahead."""

    def __init__(self, a: File, b: File, threads: int, advance: Advance) -> None:
        self.files = (a, b)
        self.readers = tuple([FileReader(FilePath(path)) for path in file.paths] for file in (a, b))
        for file in (a, b):
            file.check_in_place()
        self.threads = threads
        self.advance = advance
        self.decodable = {format.name for format in _core.formats()}
        self.done = self.total = 0

    def run(self, names: Sequence[str]) -> list[TensorDiff]:
        of_a, of_b = (file.infos for file in self.files)
        readable = [name for name in names if name in of_a and name in of_b and of_a[name].shape == of_b[name].shape]
        self.total = sum(map(self._num_bytes, readable))
        found = []
        with ThreadPoolExecutor(2, "lowbit-read") as pool:
            for name in names:
                a, b = of_a.get(name), of_b.get(name)
                if a is None or b is None or a.shape != b.shape:
                    found.append(TensorDiff(name, a, b))
                elif (tensor := self._compare(name, a, b, pool)) is not None:
                    found.append(tensor)
        return found

    def _compare(self, name: str, a: TensorInfo, b: TensorInfo, pool: ThreadPoolExecutor) -> TensorDiff | None:
        """The difference, or None for equal tensors."""
        formats = a.format, b.format
        counts: tuple[int | None, int | None] = (None, None)
        if a.format == b.format:
            block_size, block_bytes = _core.tensor_block(a.format)
            blocks = 0
            for _, of_a, of_b in self._chunks(name, formats, pool):
                if not np.array_equal(of_a, of_b):
                    differs = of_a.reshape(-1, block_bytes) != of_b.reshape(-1, block_bytes)
                    blocks += int(np.count_nonzero(differs.any(axis=1)))
            if blocks == 0:
                return None
            counts = blocks, math.prod(a.shape) // block_size
            self.total += self._num_bytes(name)  # a second pass computes the errors
        if not self.decodable.issuperset(formats):
            return TensorDiff(name, a, b, *counts)
        sums = np.zeros(3)  # squared errors, squared weights, the largest error
        for weights, of_a, of_b in self._chunks(name, formats, pool):
            rows = self._errors(of_a, a.format, of_b, b.format, weights)
            sums[:2] += rows[:, :2].sum(axis=0)
            sums[2] = np.maximum(sums[2], rows[:, 2].max())
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = 0.0 if sums[0] == 0 else float(np.sqrt(sums[0] / sums[1]))
        return TensorDiff(name, a, b, *counts, relative, float(sums[2]))

    def _num_bytes(self, name: str) -> int:
        return sum(file.num_bytes(name) for file in self.files)

    def _errors(self, a: np.ndarray, format_a: str, b: np.ndarray, format_b: str, weights: int) -> np.ndarray:
        """(rows, 3): squared error, squared weight and largest error."""
        num_rows = weights // _ROW_WEIGHTS if weights % _ROW_WEIGHTS == 0 else 1
        if format_a in DTYPES:
            floats = a.view(DTYPES[format_a]).reshape(num_rows, -1)
        else:
            floats = np.empty((num_rows, weights // num_rows), np.float32)
            _core.dequantize_rows(a.reshape(num_rows, -1), format_a, floats, self.threads)
        return _core.compare_rows(floats, b.reshape(num_rows, -1), format_b, self.threads)

    def _chunks(
        self, name: str, formats: tuple[str, str], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(number of weights, bytes in a, bytes in b) for each chunk; some chunks are read ahead."""
        weights = math.prod(self.files[0].infos[name].shape)
        places = [file.place(name) for file in self.files]
        blocks = [_core.tensor_block(format) for format in formats]
        reads: deque[tuple[int, list[Future[bytes]]]] = deque()
        starts = iter(range(0, weights, _CHUNK_WEIGHTS))

        def read_ahead() -> None:
            for start in starts:
                size = min(_CHUNK_WEIGHTS, weights - start)
                futures = []
                for place, (length, num_bytes), readers in zip(places, blocks, self.readers, strict=True):
                    at = place.offset + start // length * num_bytes
                    futures.append(pool.submit(readers[place.path].read, at, size // length * num_bytes))
                reads.append((size, futures))
                if len(reads) > _CHUNKS_AHEAD:
                    return

        read_ahead()
        while reads:
            size, futures = reads.popleft()
            read_ahead()
            of_a, of_b = (np.frombuffer(future.result(), np.uint8) for future in futures)
            yield size, of_a, of_b
            self.done += len(of_a) + len(of_b)
            self.advance(self.done, self.total)
