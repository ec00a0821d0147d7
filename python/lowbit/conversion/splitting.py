"""`split_file` and `merge_files`: split a model into several files, and merge it into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbit import gguf
from lowbit.base import arguments
from lowbit.base.errors import InputError
from lowbit.base.folders import made
from lowbit.base.operation import operation, replacing
from lowbit.base.paths import AnyPath, checked
from lowbit.base.progress import ProgressLike, steps
from lowbit.conversion.names import Destination, destination
from lowbit.conversion.pipeline import Job, Target, write_files
from lowbit.gguf.source import GgufTensor, gguf_tensors
from lowbit.gguf.splits import PADDED, SplitLimits, file_name, split_keys, whole_name


@dataclass(frozen=True)
class SplitReport:
    """The files that were written, or would be: path, size in bytes and number of tensors of each."""

    paths: list[str]
    file_bytes: list[int]
    tensors: list[int]


@operation()
def split_file(
    path: AnyPath,
    target: AnyPath,
    *,
    split_max_size: int | str = 0,
    split_max_tensors: int = 0,
    no_tensor_first_split: bool = False,
    progress: ProgressLike = None,
    dry_run: bool = False,
) -> SplitReport:
    """Splits a GGUF file into files TARGET-00001-of-0000N.gguf, which equal those of llama-gguf-split.

    target: the files' name without the number, or a folder; in a folder the files have the name of `path`.
    split_max_size: most bytes of tensors per file, or text such as "2G" (2 * 10**9). A larger tensor gets its own file.
    split_max_tensors: most tensors per file. Exactly one of the two limits is required.
    no_tensor_first_split: writes only metadata to the first file.
    dry_run: writes nothing; the report describes the files that would be written.

    Either all files appear or none. Raises FileError, FormatError, and InputError for invalid limits or if a file
    would replace one that is read.

        report = lowbit.split_file("model.gguf", "model", split_max_size="2G")
        print(report.paths)
    """
    dry_run = arguments.flag("dry_run", dry_run)
    limits = SplitLimits.parsed(split_max_size, split_max_tensors, no_tensor_first_split)
    if not limits:
        raise InputError("limits:", expected="split_max_size or split_max_tensors", found="neither")
    with gguf.open(path) as file:
        files = limits.files([file.num_bytes(name) for name in file.infos], PADDED)
        metadata, tensors = _whole_metadata(file), list(gguf_tensors(file).values())
        num_files = max(files, default=int(no_tensor_first_split)) + 1
        targets = []
        to = destination(checked(target), whole_name(file.path))
        for index in range(num_files):
            keys = split_keys(index, num_files, len(tensors), count_last=True)
            here = [tensor for tensor, number in zip(tensors, files, strict=True) if number == index]
            name = file_name(to.path, index, num_files)
            targets.append(_copy(name, (metadata if index == 0 else {}) | keys, here))
        return _written(to, targets, "split", progress, dry_run)


@operation()
def merge_files(path: AnyPath, target: AnyPath, *, progress: ProgressLike = None, dry_run: bool = False) -> SplitReport:
    """Merges a split model into one file, which equals that of llama-gguf-split.

    path: any file of the split model.
    target: the file to write, or a folder; in a folder the file has the name of `path` without its number.

    As in llama-gguf-split, split.no and split.tensors.count are kept, and split.count becomes 0 (a whole model).
    Raises FileError for a missing file, FormatError, and InputError if the model is not split or the target would
    replace one of its files.

        lowbit.merge_files("model-00001-of-00003.gguf", "model.gguf")
    """
    dry_run = arguments.flag("dry_run", dry_run)
    with gguf.open(path) as file:
        count = gguf.SPLIT_KEYS[1]
        if not file.metadata.get(count):
            raise InputError(path=file.path, expected="a file of a split model", found="a whole one")
        metadata = {key: file.typed(key) for key in file.metadata if key != count} | {count: np.uint16(0)}
        to = destination(checked(target), f"{whole_name(file.path)}.gguf")
        whole = _copy(to.path, metadata, list(gguf_tensors(file).values()))
        return _written(to, [whole], "merge", progress, dry_run)


def _whole_metadata(file: gguf.File) -> dict[str, Any]:
    return {key: file.typed(key) for key in file.metadata if key not in gguf.SPLIT_KEYS}


def _copy(path: str, metadata: Mapping[str, Any], tensors: Sequence[GgufTensor]) -> Target:
    jobs = [Job(tensor(tensor.info.format), tensor.info.format) for tensor in tensors]
    return Target(path, metadata, [tensor.info for tensor in tensors], jobs)


def _written(
    to: Destination, targets: Sequence[Target], title: str, progress: ProgressLike, dry_run: bool
) -> SplitReport:
    replacing(target.path for target in targets)
    if not dry_run:
        with made(to.new_folder), steps(title, "B", progress) as advance:
            write_files(targets, 1, advance)
    return SplitReport(
        [target.path for target in targets],
        [target.file_bytes for target in targets],
        [len(target.infos) for target in targets],
    )
