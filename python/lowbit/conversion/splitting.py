"""Models in several files: where the next one begins, what tells them apart, `split_file` and `merge_files`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbit import gguf
from lowbit.base import arguments
from lowbit.base.errors import InputError
from lowbit.base.operation import operation, replacing
from lowbit.base.paths import AnyPath, checked, is_dir
from lowbit.base.progress import ProgressLike, steps
from lowbit.base.quoting import shown
from lowbit.conversion.pipeline import Job, Target, write_files
from lowbit.gguf.source import GgufTensor, gguf_tensors

#: llama-gguf-split counts a tensor's bytes with the padding behind it, convert_hf_to_gguf.py without.
PADDED = 32
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_MOST_FILES = 65535  # split.count is a uint16


@dataclass(frozen=True)
class SplitLimits:
    """When a model's next file begins: before a tensor that would exceed a limit; 0 is none.

    no_tensor_first: the first file has metadata alone.
    """

    max_bytes: int = 0
    max_tensors: int = 0
    no_tensor_first: bool = False

    @classmethod
    def parsed(cls, max_size: int | str, max_tensors: int, no_tensor_first: bool) -> SplitLimits:
        """max_size: bytes, or text with K, M or G (thousands) behind a number. Raises InputError."""
        is_size = isinstance(max_size, (int, np.integer, str)) and not isinstance(max_size, bool)
        match = re.fullmatch(r"(\d{1,18})([KMG]?)", shown(max_size), re.ASCII) if is_size else None
        if not match:
            raise arguments.wrong("split_max_size", "a number of bytes such as 2000000000 or 2G", max_size)
        tensors = arguments.integer("split_max_tensors", max_tensors, 0)
        limits = cls(
            int(match[1]) * _UNITS[match[2]], tensors, arguments.flag("no_tensor_first_split", no_tensor_first)
        )
        if limits.max_bytes and limits.max_tensors:
            raise InputError("split_max_size and split_max_tensors exclude each other")
        if no_tensor_first and not limits:
            raise InputError("no_tensor_first_split: nothing says where to split")
        return limits

    def __bool__(self) -> bool:
        """Whether there is a limit."""
        return bool(self.max_bytes or self.max_tensors)

    def files(self, sizes: Sequence[int], padded_to: int = 1) -> list[int]:
        """For each tensor of so many bytes the number of its file. One that exceeds the limit alone has its own."""
        number, used, count, result = int(self.no_tensor_first), 0, 0, []
        for size in sizes:
            padded = -(-size // padded_to) * padded_to
            full = (self.max_bytes and used + padded > self.max_bytes) or (
                self.max_tensors and count >= self.max_tensors
            )
            if count and full:
                number, used, count = number + 1, 0, 0
            used, count = used + padded, count + 1
            result.append(number)
        if result and result[-1] >= _MOST_FILES:
            raise InputError(f"{result[-1] + 1} files are more than a split model may have, {_MOST_FILES}")
        return result


def file_name(path: str, index: int, num_files: int) -> str:
    """The name of file `index` (from 0) of a model that would be `path` in one."""
    return f"{path.removesuffix('.gguf')}-{index + 1:05d}-of-{num_files:05d}.gguf"


def other_sets(path: str, num_files: int) -> list[str]:
    """Notes on split models of this name that have another number of files and stay: one for each number."""
    folder, name = os.path.split(path.removesuffix(".gguf"))
    found: dict[int, int] = {}
    if num_files > 1 and is_dir(folder or "."):
        for other in os.listdir(folder or "."):
            match = re.fullmatch(rf"{re.escape(name)}-\d{{5}}-of-(\d{{5}})\.gguf", other, re.ASCII)
            if match and int(match[1]) != num_files:
                found[int(match[1])] = found.get(int(match[1]), 0) + 1
    return [
        f"{n} of {count} files of another model {file_name(path, 0, count)} stay there: this one has {num_files}"
        for count, n in sorted(found.items())
    ]


def split_keys(index: int, num_files: int, num_tensors: int, *, count_last: bool) -> dict[str, Any]:
    """What tells a file from the others. count_last: in the order of llama-gguf-split, else that of other tools."""
    number, count, tensors = gguf.SPLIT_KEYS
    keys = {number: np.uint16(index), count: np.uint16(num_files), tensors: np.int32(num_tensors)}
    return {number: keys[number], tensors: keys[tensors], count: keys[count]} if count_last else keys


@dataclass(frozen=True)
class SplitReport:
    """The files that were written, or would be, with their sizes and numbers of tensors."""

    paths: list[str]
    file_bytes: list[int]
    tensors: list[int]


@operation()
def split_file(
    src: AnyPath,
    dst: AnyPath,
    *,
    split_max_size: int | str = 0,
    split_max_tensors: int = 0,
    no_tensor_first_split: bool = False,
    progress: ProgressLike = None,
    dry_run: bool = False,
) -> SplitReport:
    """Splits a GGUF file into DST-00001-of-0000N.gguf and so on, which equal llama-gguf-split's.

    split_max_size: bytes of tensors a file, or text such as "2G" (2 * 10**9); split_max_tensors: tensors a file; one of
    them must be given. A tensor larger than that has a file of its own. All files appear, or none.

    Raises InputError for limits that are none and for a file that would replace one of those it reads.
    """
    dry_run = arguments.flag("dry_run", dry_run)
    limits = SplitLimits.parsed(split_max_size, split_max_tensors, no_tensor_first_split)
    if not limits:
        raise InputError("split_max_size or split_max_tensors must say where to split")
    with gguf.open(src) as file:
        files = limits.files([file.num_bytes(name) for name in file.infos], PADDED)
        metadata, tensors = _whole_metadata(file), list(gguf_tensors(file).values())
        num_files = max(files, default=int(no_tensor_first_split)) + 1
        targets = []
        for index in range(num_files):
            keys = split_keys(index, num_files, len(tensors), count_last=True)
            here = [tensor for tensor, number in zip(tensors, files, strict=True) if number == index]
            path = file_name(checked(dst), index, num_files)
            targets.append(_copy(path, (metadata if index == 0 else {}) | keys, here))
        return _written(targets, "split", progress, dry_run)


@operation()
def merge_files(src: AnyPath, dst: AnyPath, *, progress: ProgressLike = None, dry_run: bool = False) -> SplitReport:
    """Makes one file of a split model, whichever of its files `src` names. It equals llama-gguf-split's.

    Like that, it keeps split.no and split.tensors.count; split.count is 0, which says that it is whole. Raises
    InputError if it is whole already or would replace one of the files it reads, FileError that names a missing file.
    """
    dry_run = arguments.flag("dry_run", dry_run)
    with gguf.open(src) as file:
        count = gguf.SPLIT_KEYS[1]
        if not file.metadata.get(count):
            raise InputError(f"{file.path}: expected a file of a split model, found a whole one")
        metadata = {key: file.typed(key) for key in file.metadata if key != count} | {count: np.uint16(0)}
        target = _copy(checked(dst), metadata, list(gguf_tensors(file).values()))
        return _written([target], "merge", progress, dry_run)


def _whole_metadata(file: gguf.File) -> dict[str, Any]:
    return {key: file.typed(key) for key in file.metadata if key not in gguf.SPLIT_KEYS}


def _copy(path: str, metadata: Mapping[str, Any], tensors: Sequence[GgufTensor]) -> Target:
    jobs = [Job(tensor(tensor.info.format), tensor.info.format) for tensor in tensors]
    return Target(path, metadata, [tensor.info for tensor in tensors], jobs)


def _written(targets: Sequence[Target], title: str, progress: ProgressLike, dry_run: bool) -> SplitReport:
    replacing(target.path for target in targets)
    if not dry_run:
        with steps(title, "B", progress) as advance:
            write_files(targets, 1, advance)
    return SplitReport(
        [target.path for target in targets],
        [target.file_bytes for target in targets],
        [len(target.infos) for target in targets],
    )
