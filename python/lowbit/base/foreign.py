"""Recognises files of an unexpected kind: git-lfs pointers, server pages, archives, other formats.

Readers use it only after they failed, so valid files cost nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lowbit.base.errors import FormatError, UnsupportedError
from lowbit.base.files import FileReader, read_text
from lowbit.base.paths import is_file

_HEAD_BYTES = 1024  # a pointer has about 130
_AGAIN = "download it again"
_FLOATS = "lowbit reads safetensors and GGUF"

#: How files begin, as regular expressions. A safetensors file has the length of its header in 8 bytes, then JSON.
GGUF_MAGIC, ZIP_MAGIC, SAFETENSORS = b"GGUF", b"PK\x03\x04", rb"[\0-\xff]{6}\0\0\{"
#: First bytes of files -> the kind of file, with advice.
_MAGICS: tuple[tuple[bytes, str], ...] = (
    (GGUF_MAGIC, "a GGUF file: pass it where a GGUF file is expected, not a checkpoint"),
    (b"lmgg", f"a GGML file from before August 2023: convert the model again; {_FLOATS}"),
    (b"fmgg", f"a GGMF file from before August 2023: convert the model again; {_FLOATS}"),
    (b"tjgg", f"a GGJT file from before August 2023: convert the model again; {_FLOATS}"),
    (b"algg", "a GGLA adapter from before 2024: use --lora with the PEFT adapter that it was made from"),
    (ZIP_MAGIC, f"a zip archive, as torch.save writes: {_FLOATS}"),
    (b"\x80\x02", f"a pickle, as torch.save wrote before 2020: {_FLOATS}"),
    (b"\x80\x03", f"a pickle: {_FLOATS}"),
    (b"\x80\x04", f"a pickle: {_FLOATS}"),
    (b"\x80\x05", f"a pickle: {_FLOATS}"),
    (b"\x1f\x8b", "a file compressed with gzip: decompress it first"),
    (b"\x28\xb5\x2f\xfd", "a file compressed with zstd: decompress it first"),
    (b"\xfd7zXZ\x00", "a file compressed with xz: decompress it first"),
    (b"BZh", "a file compressed with bzip2: decompress it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"\x89HDF\r\n", f"an HDF5 file, as Keras writes: {_FLOATS}"),
    (b"\x93NUMPY", f"an array of NumPy: {_FLOATS}"),
    (b"%PDF", f"a PDF document: {_AGAIN}"),
)
_POINTER = re.compile(rb"version https?://[^\n]*git-lfs[^\n]*\n(?:[^\n]*\n)*?size (\d{1,20})\r?\n")
_HTML = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<!--.*?-->\s*)?<(?:!doctype html|html|head|body)\b", re.I | re.S)
_XML = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:\?xml|Error>)")
#: Keys of JSON errors that servers send instead of a file.
ERROR_KEYS = frozenset({"error", "errors", "message", "detail", "status", "statusCode"})
_JSON_ERROR = re.compile(rb"\s*\{\s*\"(?:%s)\"\s*:" % "|".join(sorted(ERROR_KEYS)).encode())
_TAR_AT, _TAR = 257, b"ustar"
#: ONNX has no magic bytes. All exporters write the IR version first, then the producer, the graph or another field of
#: ModelProto.
_ONNX = re.compile(rb"\x08[\x01-\x1f][\x12\x1a\x22\x28\x32\x3a\x42\x72]")


def is_onnx(path: Path) -> bool:
    """Whether a file is an ONNX model, by its suffix or its first bytes."""
    return path.suffix == ".onnx" or (is_file(path) and _ONNX.match(_head(FileReader(path))) is not None)


def what_is(head: bytes, size: int, expected: bytes = b"") -> str | None:
    """Describes a file by its first bytes and its size, with advice; None if it is unknown.

    expected: how a file of the expected kind begins, a regular expression.
    """
    if expected and re.match(expected, head):
        return None
    if size == 0:
        return f"the file is empty: {_AGAIN}"
    if match := _POINTER.match(head):
        num_bytes = int(match[1])
        return (
            f"this is a git-lfs pointer, not the file of {num_bytes} bytes that it stands for: run `git lfs pull` in "
            f"its folder, or {_AGAIN}"
        )
    if _HTML.match(head):
        return f"this is an HTML page, as a server sends for an error or a login: {_AGAIN}"
    if _XML.match(head):
        return f"this is an XML page, as a server sends for an error: {_AGAIN}"
    if _JSON_ERROR.match(head):
        return f"this is a server's error message in JSON: {_AGAIN}"
    for magic, kind in _MAGICS:
        if head.startswith(magic):
            return f"this is {kind}"
    if re.match(SAFETENSORS, head):
        return "this is a safetensors file: pass the folder of its checkpoint where a checkpoint is expected"
    if _ONNX.match(head):
        return "this is an ONNX model: lowbit inspect, lowbit onnx and lowbit.onnx read it"
    if head[_TAR_AT:].startswith(_TAR):
        return "this is a tar archive: unpack it first"
    if size >= _HEAD_BYTES and not head.strip(b"\0"):
        return f"the file begins with {len(head)} zero bytes, as an unfinished download does: {_AGAIN}"
    return None


def read_own_text(path: Path, max_bytes: int) -> str:
    """A text in a format without a header (templates, merges). Raises FormatError if `what_is` recognises the file as
    another kind, otherwise as `read_text` does."""
    text = read_text(path, max_bytes)
    if text and (kind := what_is(text[:_HEAD_BYTES].encode(), len(text))):
        raise FormatError(kind, path=path)
    return text


@contextmanager
def named(*paths: str | os.PathLike[str], expected: bytes = b"") -> Iterator[None]:
    """Replaces a FormatError in the block by the kind of the first of these files that `what_is` recognises, if any."""
    try:
        yield
    except FormatError:
        for path in filter(Path.is_file, map(Path, paths)):
            file = FileReader(path)
            if kind := what_is(_head(file), file.size, expected):
                raise FormatError(kind, path=path) from None
        raise


def _head(file: FileReader) -> bytes:
    return file.read(0, min(file.size, _HEAD_BYTES))


@contextmanager
def of_file(path: str | os.PathLike[str]) -> Iterator[None]:
    """Adds the path to errors in the block that are about the file's metadata."""
    try:
        yield
    except (FormatError, UnsupportedError) as error:
        error.about(path=path)
        raise
