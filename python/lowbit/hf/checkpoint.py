"""Hugging Face checkpoints: lazy named tensors from a folder with config.json and safetensors files.

Files are hostile until checked: header sizes are limited, offsets must cover the file exactly, and names in the index
must stay in the folder. Every error names the file and the tensor. Nothing is mapped: rows are read with pread, so a
conversion's resident memory is the rows it holds.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from lowbit.base.dtypes import FLOATS
from lowbit.base.errors import Error, FileError, FormatError, UnsupportedError
from lowbit.base.files import FileReader, read_bytes
from lowbit.base.foreign import ERROR_KEYS, SAFETENSORS, named
from lowbit.base.operation import reading
from lowbit.base.paths import AnyPath, checked, is_dir, is_file
from lowbit.base.quoting import listed, quoted, reason, shown
from lowbit.tensors.source import FileRows, Renamed, TensorSource, read

MAX_HEADER_BYTES = 100 << 20  # the limit of the safetensors library
MAX_JSON_BYTES = 128 << 20  # tokenizer.json of the largest vocabularies is below 40 MB
MAX_CONFIG_BYTES = 16 << 20  # parsed objects take up to thirty times as many bytes
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
#: Names of weight files, also those that may be a second copy of the weights.
WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*", "consolidated*.pth")
#: Other files that a conversion reads if they exist.
SIDE_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json", "README.md",
)  # fmt: skip
#: The same as patterns, plus files of only some checkpoints.
SMALL_FILES = [
    *SIDE_FILES, "*.safetensors.index.json", "adapter_config.json", "vocab.json", "merges.txt",
    "additional_chat_templates/*.jinja", "modules.json", "*_Pooling/config.json",
]  # fmt: skip
MAX_DIMS = 8
MAX_SHARDS = 100_000

#: Bytes per element of every type in the safetensors format.
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip

_Error = TypeVar("_Error", bound=Error)


class StoredTensor:
    """A tensor in a safetensors file; a TensorSource.

    shard: the name of its file; it determines the order of tensors in a conversion.
    """

    def __init__(self, file: FileReader, name: str, dtype_name: str, shape: tuple[int, ...], offset: int) -> None:
        self.file = file
        self.shard = file.path.name
        self.name = name
        self.dtype_name = dtype_name
        self.shape = shape
        self.offset = offset

    def error(self, kind: type[_Error], what: str, **fields: Any) -> _Error:
        """An error about this tensor. what: the text after the tensor's name."""
        return kind(f"tensor {self.name!r}{what}", path=self.file.path, tensor=self.name, **fields)

    @property
    def dtype(self) -> np.dtype:
        """float32, float16 or bfloat16; UnsupportedError for anything else."""
        if self.dtype_name not in FLOATS:
            raise self.error(
                UnsupportedError,
                f" has type {self.dtype_name}",
                expected=f"one of {', '.join(FLOATS)}",
                found=self.dtype_name,
            )
        return FLOATS[self.dtype_name]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of the first axis, freshly read."""
        return self.in_file.rows(start, stop)

    @property
    def in_file(self) -> FileRows:
        """The place of the rows."""
        return FileRows(self.name, self.shape, self.dtype, self.file, self.offset)


def mapped(source: TensorSource) -> np.ndarray:
    """A whole tensor: mapped if a file has it unchanged, else read."""
    while type(source) is Renamed:  # classes derived from Renamed and StoredTensor change values
        source = source.source
    if type(source) is StoredTensor:
        source = source.in_file
    return source.mapped() if type(source) is FileRows else read(source)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        name = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise FormatError(f"duplicate name {name!r}", key=name)
    return result


def parse_json_value(data: bytes, path: Path, part: str = "") -> Any:
    """Parses JSON; duplicate names are refused. part: start of the error message. Raises FormatError."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{part}not valid JSON ({reason(error)})", path=path) from None
    except FormatError as error:
        error.about(part, path=path)
        raise


def parse_json(data: bytes, path: Path, part: str = "") -> dict[str, Any]:
    """Parses a JSON object, as `parse_json_value` does."""
    value = parse_json_value(data, path, part)
    if not isinstance(value, dict):
        raise FormatError(part.rstrip(), path=path, expected="a JSON object", found=type(value).__name__)
    return value


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a file. Raises FileError or FormatError."""
    with named(path):
        value = parse_json(read_bytes(path, max_bytes), path)
        if value and value.keys() <= ERROR_KEYS:
            raise FormatError(path=path, expected="a file of settings", found=f"a server's error {shown(value, 80)}")
        return value


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _entry(file: FileReader, data_start: int, name: str, entry: Any) -> tuple[int, int, StoredTensor]:
    """Checks one tensor of a header: (begin, end, tensor)."""
    tensor = StoredTensor(file, name, "", (), 0)  # for errors; replaced at the end
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise tensor.error(FormatError, ":", expected="an object with dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise tensor.error(FormatError, f": unknown type {quoted(dtype, 40)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(map(_is_size, shape)):
        raise tensor.error(
            FormatError, f": shape {shown(shape, 80)}", expected=f"at most {MAX_DIMS} sizes", found=shape
        )
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise tensor.error(FormatError, f": data_offsets {shown(offsets, 80)}", expected="[begin, end]", found=offsets)
    begin, end = offsets
    expected = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != expected:
        text = f": offsets {begin}..{end} hold {end - begin} bytes"
        raise tensor.error(FormatError, text, expected=f"{expected} for {dtype} {shape}", found=end - begin)
    return begin, end, StoredTensor(file, name, dtype, tuple(shape), data_start + begin)


def read_safetensors(path: AnyPath) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, ordered by name. Reads only the header. Raises FileError or FormatError."""
    where = Path(checked(path))
    with named(where, expected=SAFETENSORS):
        return _tensors(FileReader(where))


def _tensors(file: FileReader) -> dict[str, StoredTensor]:
    path = file.path
    if file.size < 8:
        raise FormatError(
            f"{file.size} bytes", path=path, expected="at least the 8 of a safetensors file", found=file.size
        )
    header_bytes = int.from_bytes(file.read(0, 8), "little")
    if file.size - 8 < header_bytes <= MAX_HEADER_BYTES and file.read(8, min(1, file.size - 8)) in (b"", b"{"):
        raise FormatError(
            "the file is cut off:",
            path=path,
            expected=f"{header_bytes + 8} bytes for its header alone",
            found=file.size,
            rest="; download it again",
        )
    if header_bytes > (most := min(MAX_HEADER_BYTES, file.size - 8)):
        raise FormatError(f"header of {header_bytes} bytes", path=path, expected=f"at most {most}", found=header_bytes)
    header = parse_json(file.read(8, header_bytes), path, "header: ")
    header.pop("__metadata__", None)
    data_start = 8 + header_bytes
    entries = sorted((_entry(file, data_start, name, value) for name, value in header.items()), key=lambda e: e[:2])
    at = 0
    for begin, end, tensor in entries:
        if begin != at:
            problem = "overlaps the tensor before it" if begin < at else "leaves a hole before it"
            raise tensor.error(FormatError, f" at offset {begin} {problem}", offset=begin, expected=at)
        at = end
    if data_start + at != file.size:
        cut = ": it is cut off, download it again" if file.size < data_start + at else ""
        raise FormatError(f"the tensors end at byte {data_start + at}, but the file at {file.size}{cut}", path=path)
    return {tensor.name: tensor for tensor in sorted((e[2] for e in entries), key=lambda t: t.name)}


def index_shards(index: Path) -> tuple[list[str], set[str]]:
    """File names, sorted, and tensor names of model.safetensors.index.json."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError("no weight_map", path=index, key="weight_map")
    for name, shard in weight_map.items():
        # Only plain names: an index may not refer outside its folder. (Links inside the folder are the owner's.)
        if not isinstance(shard, str) or not re.fullmatch(r"[\w.-]{1,200}\.safetensors", shard, re.ASCII):
            raise FormatError(
                f"tensor {name!r} is in file {quoted(shard, 80)}",
                path=index,
                tensor=name,
                expected="a plain file name",
                found=shard,
            )
    return sorted(set(weight_map.values())), set(weight_map)


class WeightFiles(NamedTuple):
    """Files with a checkpoint's weights. listing: the index that names them. tensors: the names in that index."""

    names: list[str]
    listing: Path | None = None
    tensors: set[str] | None = None


def weight_files(folder: Path, config: dict[str, Any]) -> WeightFiles:
    """The files that transformers reads, in its order: those that transformers_weights in config.json names,
    model.safetensors, the files of the index. If there are none: numbered and other files model*.safetensors.

    Raises FileError or FormatError for an index that cannot be read, and for a name that is not a plain file name.
    """
    explicit = config.get("transformers_weights")
    if explicit is not None and not (
        isinstance(explicit, str) and re.fullmatch(r"[\w.-]{1,200}\.safetensors(\.index\.json)?", explicit, re.ASCII)
    ):
        raise FormatError(
            f"'transformers_weights' is {quoted(explicit, 80)}",
            path=folder / "config.json",
            key="transformers_weights",
            expected="the plain name of a safetensors file or its index",
            found=explicit,
        )
    if explicit is None and is_file(folder / SINGLE):
        explicit = SINGLE
    if explicit and not explicit.endswith(".json"):
        return WeightFiles([explicit])
    index = folder / (explicit or INDEX)
    if explicit or is_file(index):
        names, tensors = index_shards(index)
        return WeightFiles(names, index, tensors)
    return WeightFiles(_unindexed_shards(folder))


def _unindexed_shards(folder: Path) -> list[str]:
    """The files model*.safetensors of a folder without an index. Numbered files must be complete."""
    names = sorted(path.name for path in folder.glob("model*.safetensors"))
    for name in names:
        if match := re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.safetensors", name, re.ASCII):
            return [f"{match[1]}-{i:05d}-of-{match[2]}.safetensors" for i in range(1, int(match[2]) + 1)]
    return names


def _pickle(folder: Path, name: str) -> Error:
    return UnsupportedError(
        f"{name} is a pickle, and loading a pickle can run code: lowbit reads only safetensors; if you trust the file, "
        "convert it with AutoModelForCausalLM.from_pretrained(d).save_pretrained(d), or look for safetensors on the "
        "hub, proposed as revision refs/pr/N",
        path=folder,
    )


def _not_a_checkpoint(folder: Path, missing: str) -> Error:
    """Describes a folder that is not a checkpoint, with advice."""

    def found(*patterns: str) -> str:
        paths = (path for pattern in patterns for path in sorted(folder.glob(pattern)))
        return next((str(path.relative_to(folder)) for path in paths), "")

    if name := found("adapter_config.json"):
        return UnsupportedError(
            f"this is a LoRA adapter, not a model: convert its base model (base_model_name_or_path in {name}) with "
            "--lora and this folder",
            path=folder,
        )
    if found("model_index.json"):
        return UnsupportedError("this is a diffusers pipeline; lowbit reads language models", path=folder)
    if name := found("*.gguf"):
        return UnsupportedError(
            f"this folder has GGUF files, not a checkpoint: use the path {folder / name}", path=folder
        )
    if name := found("*.onnx", "onnx/*.onnx"):
        return UnsupportedError(
            f"{name} is an ONNX model: lowbit convert makes a GGUF file of a language model's folder, and lowbit "
            "inspect and lowbit onnx take any model",
            path=folder,
        )
    if name := found("consolidated*", "params.json"):
        return UnsupportedError(
            f"{name} is in the format of the model's authors; use the checkpoint for transformers", path=folder
        )
    if name := found(*(f"*{suffix}" for suffix in PICKLES)):
        return _pickle(folder, name)
    hint = ""
    if name := found("*/config.json"):
        hint = f"; the folder has {name}"
    elif name := found("tokenizer.json", "tokenizer.model"):
        hint = f"; the folder has {name}, but no model"
    return FileError(f"no {missing}{hint}", path=folder, errno=errno.ENOENT)


class Checkpoint:
    """A folder with config.json and safetensors files.

    Attributes: folder, config (the JSON object), tensors (name -> StoredTensor in the order of file and name), notes
    (on ignored weight files).

    Raises FileError, FormatError and UnsupportedError with advice for folders that are not checkpoints, incomplete ones
    and damaged files.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(checked(folder))
        if is_file(self.folder):
            if self.folder.suffix in PICKLES:
                raise _pickle(self.folder.parent, self.folder.name)
            commands = {
                ".gguf": "; lowbit quantize takes GGUF files",
                ".onnx": "; lowbit onnx takes ONNX models, and lowbit convert the folder of a language model",
            }
            other = commands.get(self.folder.suffix, "")
            raise FileError(
                "a file", path=self.folder, errno=errno.ENOTDIR, expected=f"the folder of a checkpoint{other}"
            )
        if not is_dir(self.folder):
            raise FileError(
                "no such folder, and no hub id such as Qwen/Qwen3-0.6B", path=self.folder, errno=errno.ENOENT
            )
        if not is_file(self.folder / "config.json"):
            raise _not_a_checkpoint(self.folder, "config.json")
        # All files of the checkpoint are protected from being replaced, also those that are read later or never.
        for path in (path for pattern in (*SMALL_FILES, *WEIGHT_PATTERNS) for path in self.folder.glob(pattern)):
            reading(path)
        self.config = read_json(self.folder / "config.json", MAX_CONFIG_BYTES)
        shards, index, expected = weight_files(self.folder, self.config)
        if not shards:
            raise _not_a_checkpoint(self.folder, "model.safetensors")
        if len(shards) > MAX_SHARDS:
            raise FormatError(
                f"{len(shards)} files", path=self.folder, expected=f"at most {MAX_SHARDS}", found=len(shards)
            )
        if missing := [name for name in shards if not is_file(self.folder / name)]:
            raise FileError(
                f"{len(missing)} of {len(shards)} files are missing: {listed(missing)}",
                path=self.folder,
                errno=errno.ENOENT,
            )
        self.tensors: dict[str, StoredTensor] = {}
        for shard in shards:
            for name, tensor in read_safetensors(self.folder / shard).items():
                if name in self.tensors:
                    raise tensor.error(FormatError, f" is also in {self.tensors[name].file.path.name}")
                self.tensors[name] = tensor
        self.notes = _notes_on_others(self.folder, shards, index)
        if index is not None and expected is not None and expected != self.tensors.keys():
            for problem, names in (("lack", expected - self.tensors.keys()), ("have", self.tensors.keys() - expected)):
                if names:
                    raise FormatError(
                        f"the files {problem} {listed(sorted(names))}, unlike the index",
                        path=index,
                        tensor=min(names),
                    )


def _notes_on_others(folder: Path, shards: list[str], index: Path | None) -> list[str]:
    """A note on ignored weight files, if there are any."""
    read_names = {*shards, index.name if index else ""}
    left = sorted({path.name for pattern in WEIGHT_PATTERNS for path in folder.glob(pattern)} - read_names)
    if not left:
        return []
    return [f"weights are read from {listed([index.name] if index else shards)}; ignored: {listed(left)}"]
