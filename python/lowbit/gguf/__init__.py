"""GGUF files: `open` for reading, `write` and `Writer` for writing, `edit` for changing metadata, `diff` for comparing.

Reading maps the file. Opening takes time and memory for the metadata only. Tensors are read-only views of the map; the
map lives as long as any of them. Replacing an open file by rename is safe (`Writer` does so), and so is `edit`. If
another program truncates an open file (`cp` onto it, `wget -O`), lowbit's calls raise FileError, but NumPy's reads of a
view end the process (SIGBUS).
"""

from __future__ import annotations

from lowbit.base import lazy

TYPE_CHECKING = False  # as in lowbit/__init__.py
if TYPE_CHECKING:
    from lowbit.gguf.comparing import GgufDiff, KeyDiff, TensorDiff, diff
    from lowbit.gguf.editing import PADDING_KEY, RESERVED_BYTES, Change, Edit, edit, edit_unfinished, padding
    from lowbit.gguf.reading import DTYPES, SPLIT_KEYS, File, Place, TensorInfo, open
    from lowbit.gguf.writing import Writer, file_size, write

__all__ = [
    "DTYPES",
    "PADDING_KEY",
    "RESERVED_BYTES",
    "SPLIT_KEYS",
    "Change",
    "Edit",
    "File",
    "GgufDiff",
    "KeyDiff",
    "Place",
    "TensorDiff",
    "TensorInfo",
    "Writer",
    "diff",
    "edit",
    "edit_unfinished",
    "file_size",
    "open",
    "padding",
    "write",
]

#: The module of each name: reading a file does not load what edits and compares files.
_NAMES = {
    "comparing": (
        "GgufDiff",
        "KeyDiff",
        "TensorDiff",
        "diff",
    ),
    "editing": (
        "PADDING_KEY",
        "RESERVED_BYTES",
        "Change",
        "Edit",
        "edit",
        "edit_unfinished",
        "padding",
    ),
    "reading": (
        "DTYPES",
        "SPLIT_KEYS",
        "File",
        "Place",
        "TensorInfo",
        "open",
    ),
    "writing": (
        "Writer",
        "file_size",
        "write",
    ),
}
__getattr__ = lazy.names_of(__name__, _NAMES)


def __dir__() -> list[str]:
    return sorted(__all__)
