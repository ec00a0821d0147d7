"""Models in several files: where the next file starts, file names, and the keys that identify the files."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbit.base import arguments
from lowbit.base.errors import InputError
from lowbit.base.paths import is_dir
from lowbit.base.quoting import shown
from lowbit.gguf.reading import SPLIT_KEYS

#: llama-gguf-split includes the padding after a tensor in its size; convert_hf_to_gguf.py does not.
PADDED = 32
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_MOST_TENSORS = (1 << 31) - 1  # split.tensors.count is an int32
_MOST_FILES = 65535  # split.count is a uint16


@dataclass(frozen=True)
class SplitLimits:
    """Limits of a file of a model. A tensor that would exceed one starts the next file. 0: no limit.

    no_tensor_first: the first file has only metadata.
    """

    max_bytes: int = 0
    max_tensors: int = 0
    no_tensor_first: bool = False

    @classmethod
    def parsed(cls, max_size: int | str, max_tensors: int, no_tensor_first: bool) -> SplitLimits:
        """max_size: bytes, or text: a number with K, M or G (powers of 1000). Raises InputError."""
        is_size = isinstance(max_size, (int, np.integer, str)) and not isinstance(max_size, bool)
        match = re.fullmatch(r"(\d{1,18})([KMG]?)", shown(max_size), re.ASCII) if is_size else None
        if not match:
            raise arguments.wrong("split_max_size", "a number of bytes such as 2000000000 or 2G", max_size)
        tensors = arguments.integer("split_max_tensors", max_tensors, 0, _MOST_TENSORS)
        limits = cls(
            int(match[1]) * _UNITS[match[2]], tensors, arguments.flag("no_tensor_first_split", no_tensor_first)
        )
        if limits.max_bytes and limits.max_tensors:
            raise InputError("split_max_size and split_max_tensors exclude each other")
        if no_tensor_first and not limits:
            raise InputError("no_tensor_first_split:", expected="split_max_size or split_max_tensors with it")
        return limits

    def __bool__(self) -> bool:
        """Whether there is a limit."""
        return bool(self.max_bytes or self.max_tensors)

    def files(self, sizes: Sequence[int], padded_to: int = 1) -> list[int]:
        """The file number of each tensor, given its bytes. A tensor that exceeds the limit gets its own file."""
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
            raise InputError(f"the split model would have {result[-1] + 1} files", expected=f"at most {_MOST_FILES}")
        return result


def file_name(path: str, index: int, num_files: int) -> str:
    """The name of file `index` (from 0) of a split model whose single file would be `path`."""
    return f"{path.removesuffix('.gguf')}-{index + 1:05d}-of-{num_files:05d}.gguf"


def whole_name(path: str) -> str:
    """The name of a file or folder without .gguf and, of a file of a split model, without its number."""
    name = os.path.basename(os.path.abspath(path)).removesuffix(".gguf")
    return re.sub(r"-\d{5}-of-\d{5}$", "", name, flags=re.ASCII)


def other_sets(path: str, num_files: int) -> list[str]:
    """Notes on other split models with this name in the folder: one note for each number of files."""
    folder, name = os.path.split(path.removesuffix(".gguf"))
    found: dict[int, int] = {}
    if num_files > 1 and is_dir(folder or "."):
        for other in os.listdir(folder or "."):
            match = re.fullmatch(rf"{re.escape(name)}-\d{{5}}-of-(\d{{5}})\.gguf", other, re.ASCII)
            if match and int(match[1]) != num_files:
                found[int(match[1])] = found.get(int(match[1]), 0) + 1
    return [
        f"{n} of {count} files of an older model {file_name(path, 0, count)} remain: this one has {num_files}"
        for count, n in sorted(found.items())
    ]


def split_keys(index: int, num_files: int, num_tensors: int, *, count_last: bool) -> dict[str, Any]:
    """The keys that identify a file. count_last: in the order of llama-gguf-split, else of other tools."""
    number, count, tensors = SPLIT_KEYS
    keys = {number: np.uint16(index), count: np.uint16(num_files), tensors: np.int32(num_tensors)}
    return {number: keys[number], tensors: keys[tensors], count: keys[count]} if count_last else keys
