"""Writes safetensors files: a header of JSON, then the tensors' bytes one after the other."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from lowbit.base.atomic import AtomicFile
from lowbit.base.errors import InputError
from lowbit.conversion.pipeline import Job
from lowbit.hf.checkpoint import ITEM_BYTES, MAX_HEADER_BYTES

#: The header ends at a multiple of this, so that elements of all types are aligned in a map of the file.
_ALIGNMENT = 8


@dataclass(frozen=True)
class Shard:
    """A safetensors file to write: `pipeline.write_files` takes it as it takes a GGUF file.

    Formats are those of floats, and U8 of sources that are bytes.
    """

    path: str
    jobs: Sequence[Job]

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(map(job_bytes, self.jobs))

    def open(self) -> ShardWriter:
        """Creates the file under a temporary name."""
        return ShardWriter(self.path, self._header())

    def _header(self) -> bytes:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for job in self.jobs:
            end = at + job_bytes(job)
            shape = list(job.source.shape)
            header[job.source.name] = {"dtype": job.format, "shape": shape, "data_offsets": [at, end]}
            at = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        if len(text) > MAX_HEADER_BYTES:
            raise InputError(
                f"a header of {len(text)} bytes",
                path=self.path,
                expected=f"at most {MAX_HEADER_BYTES}",
                found=len(text),
            )
        return len(text).to_bytes(8, "little") + text


def job_bytes(job: Job) -> int:
    """Bytes of a job's tensor in the file."""
    return math.prod(job.source.shape) * ITEM_BYTES[job.format]


class ShardWriter:
    """Appends tensors behind the header; the file has its name when the `with` block ends without an exception."""

    def __init__(self, path: str | os.PathLike[str], header: bytes) -> None:
        self._file = AtomicFile(path)
        self._file.write(header)

    def write(self, rows: np.ndarray) -> None:
        """Appends rows of a tensor, or bytes of it."""
        self._file.write(rows.reshape(-1).view(np.uint8))

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, value, where)
