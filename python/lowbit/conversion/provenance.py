"""lowbit.provenance.*: keys at the end of a file's metadata, with its sources and the steps that made it.

   source, revision            folder or hub id, and its commit if known
   files, sha256               name and hash of each file that was read
   recipe, version, options    per step (a conversion, or a quantization of its file): the format, lowbit's version, and
                               a JSON object with the options that differ from their defaults

Source files are hashed during the conversion. A separate thread reads them through the page cache: the conversion reads
rows in the target's order, and SHA-256 needs the order of the file. Large files in the hub's cache are named after
their SHA-256, which is used without computing it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from lowbit.base.errors import FormatError
from lowbit.base.files import FileReader
from lowbit.base.paths import is_file
from lowbit.base.version import __version__
from lowbit.gguf.values import type_name
from lowbit.hf.checkpoint import SIDE_FILES

if TYPE_CHECKING:
    from lowbit.conversion.open import Origin

PREFIX = "lowbit.provenance."
_CHUNK_BYTES = 1 << 20


class SourceFile(NamedTuple):
    """A file that a conversion reads, and its name in the keys, which do not reveal the user's folders."""

    name: str
    path: Path


def source_files(origin: Origin, imatrix: str | None) -> list[SourceFile]:
    """The files that a conversion reads: weights, then LoRA adapters, then the importance matrix if it is a file."""
    side = [origin.folder / name for name in SIDE_FILES if is_file(origin.folder / name)]
    files = [SourceFile(path.name, path) for path in (*origin.weights, *side)]
    for number, folder in enumerate(origin.adapters):
        files += [SourceFile(f"lora.{number}/{path.name}", path) for path in sorted(folder.glob("adapter_*.*"))]
    if imatrix is not None:
        files.append(_imatrix_file(imatrix))
    return files


def _imatrix_file(path: str) -> SourceFile:
    return SourceFile(f"imatrix/{Path(path).name}", Path(path))


class Hashing:
    """Computes the SHA-256 of files in the background, as a context manager. Leaving it cancels the work."""

    def __init__(self, files: Sequence[SourceFile]) -> None:
        self.files = list(files)
        self._cancelled = threading.Event()
        self._pool = ThreadPoolExecutor(1, "lowbit-hash")
        self._hashes: list[Future[str]] = []

    def __enter__(self) -> Hashing:
        self._hashes = [self._pool.submit(self._hash, file.path) for file in self.files]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self._cancelled.set()
        self._pool.shutdown(cancel_futures=True)

    def metadata(self) -> dict[str, Any]:
        """Waits for the hashes. Returns keys with the files' names and hashes. Raises FileError."""
        hashes = [future.result() for future in self._hashes]
        return {f"{PREFIX}files": [file.name for file in self.files], f"{PREFIX}sha256": hashes}

    def _hash(self, path: Path) -> str:
        known = _named_by_hash(path)
        return known if known else sha256(path, self._cancelled)


def _named_by_hash(path: Path) -> str | None:
    """The SHA-256 in the file's name in the hub's cache; None for other files."""
    target = Path(os.path.realpath(path))
    is_blob = target != path.absolute() and target.parent.name == "blobs"
    return target.name if is_blob and re.fullmatch("[0-9a-f]{64}", target.name) else None


def sha256(path: Path, cancelled: threading.Event | None = None) -> str:
    """The hash of a file; "" if it was cancelled. Raises FileError."""
    digest, file = hashlib.sha256(), FileReader(path)
    view = memoryview(bytearray(_CHUNK_BYTES))
    for begin in range(0, file.size, _CHUNK_BYTES):
        piece = view[: min(_CHUNK_BYTES, file.size - begin)]
        file.read_into(begin, piece)
        digest.update(piece)
        if cancelled is not None and cancelled.is_set():
            return ""
    return digest.hexdigest()


def _step(format: str, options: Mapping[str, Any]) -> dict[str, str]:
    return {"recipe": format, "version": __version__, "options": json.dumps(options, ensure_ascii=False, default=str)}


def recipe_metadata(format: str, options: Mapping[str, Any], origin: Origin) -> dict[str, Any]:
    """Keys for the step and the source of a conversion."""
    keys: dict[str, Any] = {name: [value] for name, value in _step(format, options).items()}
    keys["source"] = origin.hub_id or origin.folder.resolve().name
    if origin.hub_id and re.fullmatch(
        "[0-9a-f]{40}", origin.folder.name
    ):  # in the cache, a snapshot is named after its commit
        keys["revision"] = origin.folder.name
    return {PREFIX + key: value for key, value in keys.items()}


def with_step(
    metadata: Mapping[str, Any], path: str, format: str, options: Mapping[str, Any], imatrix: str | None
) -> dict[str, Any]:
    """The metadata of a file with one more step, if the file has keys lowbit.provenance.*.

    If the importance matrix is a file, it is added to the files. Raises FileError, and FormatError for malformed keys.
    """
    if f"{PREFIX}recipe" not in metadata:
        return dict(metadata)
    added = _step(format, options)
    if imatrix is not None:
        file = _imatrix_file(imatrix)
        added |= {"files": file.name, "sha256": sha256(file.path)}
    result = dict(metadata)
    for name, value in added.items():
        before = metadata.get(PREFIX + name)
        if not isinstance(before, list):
            found = "nothing" if before is None else type_name(before)
            raise FormatError(
                f"{PREFIX}{name}:", path=path, key=PREFIX + name, expected="an array of texts", found=found
            )
        result[PREFIX + name] = [*before, value]
    return result


def reserved_bytes(files: Sequence[SourceFile], options: Mapping[str, Any]) -> int:
    """The largest size of this module's keys in bytes."""
    return 2048 + sum(128 + 4 * len(file.name) for file in files) + 4 * len(json.dumps(options, default=str))
