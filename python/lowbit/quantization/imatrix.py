"""Importance matrices: for each column of a weight matrix, the mean square of its inputs.

`Sums` holds sums of squares, as a file of llama-imatrix does. `load_imatrix` computes the importances for `quantize`
and `convert` from them. `lowbit.evaluate.imatrix` collects sums.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lowbit import gguf
from lowbit.base import arguments
from lowbit.base.errors import Error, FormatError, InputError
from lowbit.base.files import FileReader
from lowbit.base.foreign import named
from lowbit.base.paths import AnyPath, checked
from lowbit.base.quoting import shown

__all__ = ["Coverage", "Entry", "Imatrix", "Sums", "load_imatrix", "merge", "read"]

#: llama-quantize truncates texts in metadata to this length.
MAX_TEXT = 127
#: Limits for files of the old form: bytes of a tensor's name, columns of all its experts, bytes of a text.
MAX_NAME, MAX_COLUMNS, MAX_LEGACY_TEXT = 1 << 10, 1 << 26, 1 << 20
#: Default tokens per chunk.
CHUNK_SIZE = 512


@dataclass
class Imatrix:
    """Importances by tensor name, float32 (columns,), and their source.

    notes: warnings about a tensor's importances, by tensor name.
    """

    values: dict[str, np.ndarray]
    path: str | None = None
    datasets: list[str] = field(default_factory=list)
    chunks: int = 0
    notes: dict[str, str] = field(default_factory=dict)

    def metadata(self) -> dict[str, Any]:
        """The keys quantize.imatrix.* of a file that is quantized with these importances."""
        result: dict[str, Any] = {}
        if self.path is not None:
            result["quantize.imatrix.file"] = _cut(self.path)
        if self.datasets:
            result["quantize.imatrix.dataset"] = _cut(self.datasets[0])
        result["quantize.imatrix.entries_count"] = len(self.values)
        if self.chunks > 0:
            result["quantize.imatrix.chunks_count"] = self.chunks
        return result

    def importance(self, name: str, columns: int) -> np.ndarray | None:
        """Importances of a tensor's columns, float32 (columns,); None if there are none.

        Raises InputError if their number differs, except for embeddings, which are looked up and not multiplied: these
        have none then.
        """
        values = self.values.get(name)
        if values is not None and len(values) != columns:
            if name in ("token_embd.weight", "per_layer_token_embd.weight"):
                return None
            raise InputError(f"imatrix: {name}:", tensor=name, expected=f"{columns} values", found=len(values))
        return values


def _cut(text: str) -> str:
    return text.encode()[:MAX_TEXT].decode("utf-8", errors="ignore")


class Entry(NamedTuple):
    """Sums of squares of one tensor's inputs, and the numbers of tokens in the sums.

    A layer of experts has one row of sums and one count per expert; other tensors have one.
    """

    sums: npt.NDArray[np.float32]  # (matrices, columns)
    counts: npt.NDArray[np.int64]  # (matrices,)

    def importances(self) -> npt.NDArray[np.float32]:
        """Mean squares, float32 (matrices * columns,); 1 for a matrix without tokens, as in llama-quantize."""
        counted = self.counts[:, None] > 0
        divisor = np.where(counted, self.counts[:, None], 1).astype(np.float32)
        with np.errstate(all="ignore"):
            means: npt.NDArray[np.float32] = np.where(counted, self.sums / divisor, np.float32(1))
        return means.reshape(-1)


@dataclass(frozen=True)
class Coverage:
    """How much of a tensor the text has covered."""

    name: str
    columns: int
    matrices: int
    matrices_seen: int  # number of matrices with at least one token
    tokens: int  # number of tokens of the matrix with the most
    columns_unseen: list[int]  # matrix * columns + column, for sums of zero in matrices with tokens

    def note(self) -> str | None:
        """A warning if columns will have equal weights because there is no data for them, else None."""
        if self.matrices_seen < self.matrices:
            missing = self.matrices - self.matrices_seen
            which = "" if self.matrices == 1 else f" ({missing} of {self.matrices} experts)"
            return f"the importance matrix has no tokens for {self.name}{which}: all its columns get the same weight"
        if self.matrices_seen and len(self.columns_unseen) == self.columns * self.matrices:
            return f"the importance matrix has only zeros for {self.name}"
        return None


@dataclass
class Sums:
    """Sums of squares by tensor name, and the name of their text: the content of a file of llama-imatrix."""

    entries: dict[str, Entry]
    datasets: list[str] = field(default_factory=list)
    chunk_count: int = 0
    chunk_size: int = CHUNK_SIZE  # 0 in files of the old form, which count chunks instead of tokens

    def save(self, path: AnyPath) -> None:
        """Writes a GGUF file equal to that of llama-imatrix, completely or not at all. Raises FileError."""
        metadata: dict[str, Any] = {
            "general.type": "imatrix",
            "imatrix.datasets": self.datasets,
            "imatrix.chunk_count": np.uint32(self.chunk_count),
            "imatrix.chunk_size": np.uint32(self.chunk_size),
        }
        tensors: dict[str, npt.NDArray[Any]] = {}
        for name in sorted(self.entries, key=str.encode):
            sums, counts = self.entries[name]
            single = len(counts) == 1
            tensors[f"{name}.in_sum2"] = sums[0] if single else sums
            tensors[f"{name}.counts"] = counts.astype(np.float32) if single else counts.astype(np.float32)[:, None]
        gguf.write(path, metadata, tensors)

    def coverage(self) -> list[Coverage]:
        """One report per tensor, sorted by name."""
        result = []
        for name in sorted(self.entries, key=str.encode):
            sums, counts = self.entries[name]
            unseen = np.flatnonzero((sums == 0) & (counts[:, None] > 0)).tolist()
            seen = int(np.count_nonzero(counts > 0))
            result.append(Coverage(name, sums.shape[1], len(counts), seen, int(counts.max()), unseen))
        return result

    def imatrix(self, path: str | None = None) -> Imatrix:
        """Computes the importances. Raises FormatError for sums that are negative or not finite."""
        values = {n: _checked(FormatError, n, e.importances(), path) for n, e in sorted(self.entries.items())}
        notes = {report.name: note for report in self.coverage() if (note := report.note())}
        return Imatrix(values, path, self.datasets, self.chunk_count, notes)


def load_imatrix(imatrix: AnyPath | Mapping[str, Any] | Imatrix | Sums) -> Imatrix:
    """Importances from a file of llama-imatrix (GGUF or the old form), a result of `collect`, or a mapping from tensor
    names to arrays (columns,).

    Raises FileError for an unreadable file, FormatError for an invalid one, InputError for other invalid values.
    """
    if isinstance(imatrix, Imatrix):
        return imatrix
    if isinstance(imatrix, Sums):
        return imatrix.imatrix()
    if isinstance(imatrix, Mapping):
        return Imatrix(
            {
                name: _checked(InputError, name, arguments.floats(f"imatrix: {shown(name)}", v))
                for name, v in imatrix.items()
            }
        )
    if not isinstance(imatrix, (str, bytes, os.PathLike)):
        raise arguments.wrong(
            "imatrix", "a path, a result of lowbit.imatrix, or a mapping from names to arrays", imatrix
        )
    path = checked(imatrix)
    return read(path).imatrix(path)


def _checked(error: type[Error], name: str, values: np.ndarray, path: str | None = None) -> np.ndarray:
    if values.ndim != 1 or not np.all(np.isfinite(values)) or np.any(values < 0):
        raise error(
            f"imatrix: {name}:", path=path, tensor=name, expected="finite, non-negative numbers in one dimension"
        )
    return values


def read(path: AnyPath) -> Sums:
    """Reads a file of llama-imatrix: GGUF, or the older form (.dat).

    Raises FileError if it cannot be read, FormatError if it is not an importance matrix.
    """
    path = checked(path)
    file = FileReader(Path(path))
    if file.size < 4 or file.read(0, 4) != b"GGUF":
        with named(path):
            return _Legacy(file).sums()
    with gguf.open(path) as opened:
        sums = {name.removesuffix(".in_sum2") for name in opened.infos if name.endswith(".in_sum2")}
        counts = {name.removesuffix(".counts") for name in opened.infos if name.endswith(".counts")}
        if not sums or "imatrix.chunk_count" not in opened.metadata:
            raise FormatError(
                "not an importance matrix", path=path, expected="tensors .in_sum2 and the key imatrix.chunk_count"
            )
        if odd := min(sums ^ counts, default=None):
            raise FormatError(
                f"{odd}:", path=path, tensor=odd, expected="both .in_sum2 and .counts", found="one of them"
            )
        entries = {
            name: _entry(path, name, opened.tensors[f"{name}.in_sum2"], opened.tensors[f"{name}.counts"])
            for name in sorted(sums)
        }
        datasets = opened.metadata.get("imatrix.datasets", [])
        numbers = [opened.metadata.get(f"imatrix.{key}", 0) for key in ("chunk_count", "chunk_size")]
    chunk_count, chunk_size = (n if type(n) is int and 0 <= n < 1 << 32 else 0 for n in numbers)
    return Sums(entries, datasets if isinstance(datasets, list) else [], chunk_count, chunk_size)


def _entry(path: str, name: str, sums: Any, counts: Any) -> Entry:
    def error(text: str) -> FormatError:
        return FormatError(f"{name}: {text}", path=path, tensor=name)

    if not all(isinstance(array, np.ndarray) and array.dtype == np.float32 for array in (sums, counts)):
        raise error("sums and counts are not F32")
    if sums.size == 0 or counts.size == 0 or sums.size % counts.size:
        raise error(f"{sums.size} sums for {counts.size} counts")
    # Every integer below 2^53 is exact as a double, and no text has more tokens.
    if not (np.abs(counts) < 1 << 53).all():
        raise error("counts must be non-negative integers")
    exact = counts.astype(np.float64).reshape(-1)
    return Entry(np.array(sums).reshape(len(exact), -1), np.trunc(exact + np.copysign(0.5, exact)).astype(np.int64))


class _Legacy:
    """A file of the old form: 32-bit numbers and names, one tensor after another, with sums divided by tokens.

    Each part is checked before the next is read, so a large file of another kind is refused after its first bytes.
    """

    def __init__(self, file: FileReader) -> None:
        self.file = file
        self.at = 0

    def sums(self) -> Sums:
        """Reads the whole file. If it has no chunk count, its sums already are the importances."""
        num = self._int("number of tensors", 1)
        entries: dict[str, Entry] = {}
        for _ in range(num):
            name = self._text("name", 1, MAX_NAME)
            if name in entries:
                raise self._error(f"a second tensor {name}", tensor=name)
            calls = self._int(f"chunks of {name}")
            columns = self._int(f"columns of {name}", 1, MAX_COLUMNS)
            sums = np.frombuffer(self._bytes(4 * columns, f"sums of {name}"), "<f4").astype(np.float32)
            entries[name] = Entry(sums[None], np.array([max(calls, 1)], np.int64))
        if self.at == self.file.size:  # the older of two versions ends here
            return Sums(entries, [], 0, 0)
        chunks = max(self._int("number of chunks"), 0)
        text = self._text("text", 0, MAX_LEGACY_TEXT) if self.at < self.file.size else ""
        return Sums(entries, [text] if text else [], chunks, 0)

    def _error(self, text: str, **fields: Any) -> FormatError:
        return FormatError(
            f"not an importance matrix: offset {self.at}: {text}", path=self.file.path, offset=self.at, **fields
        )

    def _bytes(self, num: int, what: str) -> bytes:
        if num > self.file.size - self.at:
            raise self._error(f"{what}:", expected=f"{num} bytes", found=self.file.size - self.at)
        self.at += num
        return self.file.read(self.at - num, num)

    def _int(self, what: str, least: int = -(1 << 31), most: int = (1 << 31) - 1) -> int:
        value = int.from_bytes(self._bytes(4, what), "little", signed=True)
        if not least <= value <= most:
            raise self._error(f"{what}:", expected=f"{least} to {most}", found=value)
        return value

    def _text(self, what: str, least: int, most: int) -> str:
        data = self._bytes(self._int(f"length of a {what}", least, most), what)
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self._error(f"{what}: not UTF-8") from None


@np.errstate(all="ignore")  # a damaged file can overflow; the importances are checked later
def merge(parts: Iterable[Sums]) -> Sums:
    """Merges importance matrices: adds sums and counts, as llama-imatrix does with several --in-file.

    The chunk size is that of the last part that has one (files of the old form do not), else 512. Raises InputError if
    there are no parts, or if a tensor has different numbers of columns or experts in two parts.

        sums = lowbit.imatrix.merge([lowbit.imatrix.read("a.gguf"), lowbit.imatrix.read("b.dat")])
        sums.save("both.gguf")

    """
    parts = arguments.items("parts", parts)
    if wrong_parts := [part for part in parts if not isinstance(part, Sums)]:
        raise arguments.wrong("parts", "results of lowbit.imatrix.read or collect", wrong_parts[0])
    if not parts:
        raise InputError("merge:", expected="at least one importance matrix")
    chunk_size = next((part.chunk_size for part in reversed(parts) if part.chunk_size), CHUNK_SIZE)
    entries: dict[str, Entry] = {}
    for part in parts:
        scale = 1 if part.chunk_size else chunk_size
        for name, (sums, counts) in part.entries.items():
            entry = Entry(sums * np.float32(scale), counts * scale)
            entries[name] = _added(name, entries[name], entry) if name in entries else entry
    most = max((int(entry.counts.max()) for entry in entries.values()), default=0)
    return Sums(entries, [text for part in parts for text in part.datasets], most // chunk_size, chunk_size)


def _added(name: str, a: Entry, b: Entry) -> Entry:
    """Adds two entries. A single count applies to every expert."""
    matrices = max(len(a.counts), len(b.counts))
    if a.sums.size != b.sums.size or any(len(entry.counts) not in (1, matrices) for entry in (a, b)):
        shapes = " and ".join(f"{entry.sums.size} sums for {len(entry.counts)} counts" for entry in (a, b))
        raise InputError(f"merge: {name} has {shapes}", tensor=name)
    sums = a.sums.reshape(matrices, -1) + b.sums.reshape(matrices, -1)
    return Entry(sums, np.broadcast_to(a.counts, matrices) + b.counts)
