"""`export_hf`: converts a GGUF file to a Hugging Face folder that transformers loads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lowbit import gguf
from lowbit.arch import Architecture, of_metadata
from lowbit.arch.hf_values import decimal
from lowbit.arch.to_hf import hf_tensors
from lowbit.base import arguments
from lowbit.base.dtypes import FLOATS
from lowbit.base.errors import FormatError, InputError, UnsupportedError
from lowbit.base.folders import new_folder
from lowbit.base.foreign import of_file
from lowbit.base.log import log_notes
from lowbit.base.paths import AnyPath, checked
from lowbit.base.progress import ProgressLike, steps
from lowbit.base.quoting import quoted, shown
from lowbit.base.threads import num_threads
from lowbit.conversion.pipeline import Job, write_files
from lowbit.gguf.source import gguf_tensors
from lowbit.hf.config import Config
from lowbit.hf.model_card import SAMPLING, card_text
from lowbit.hf.safetensors_writer import SafetensorsWriter, TensorInfo
from lowbit.tokenizer.load import Tokenizer
from lowbit.tokenizer.to_hf import tokenizer_files

__all__ = ["ExportReport", "export_hf", "generation_config"]

_UNITS = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "KB": 10**3, "B": 1}


@dataclass(frozen=True)
class ExportReport:
    """The result of `export_hf`. notes: facts that the folder cannot hold, one sentence each."""

    path: str
    dtype: str
    num_bytes: int
    shards: list[str] = field(repr=False)
    tensors: list[str] = field(repr=False)
    notes: list[str]


def export_hf(
    path: AnyPath,
    target: AnyPath,
    *,
    dtype: str | None = None,
    max_shard_size: int | str = "50GB",
    threads: int | None = None,
    progress: ProgressLike = None,
) -> ExportReport:
    """Converts a GGUF file to a Hugging Face folder: config.json, generation_config.json, tokenizer, safetensors files.

    target: the folder to write; it must be new or empty.
    dtype: "BF16", "F16" or "F32" for all weights. None: the format of the file's matrices if all have the same float
        format, else BF16. Quantized weights are decoded and rounded to it; F32 holds them exactly. BitNet's ternary
        matrices are always packed, four weights in a byte.
    max_shard_size: most bytes of weights per safetensors file, or text such as "500MB" or "5GB". A larger tensor gets
        its own file.

    The folder appears complete or not at all. Memory use is a few chunks of rows.

    Raises FileError, FormatError, InputError for a wrong argument, UnsupportedError for a model that a checkpoint
    cannot hold.

        report = lowbit.export_hf("model-Q4_K_M.gguf", "model-hf", dtype="F32")
    """
    shard_bytes = parse_size(max_shard_size)
    path, target = checked(path), checked(target)
    with gguf.open(path) as file, of_file(path):
        sources = {name: tensor.weights() for name, tensor in gguf_tensors(file).items()}
        arch = of_metadata(file.metadata, file.infos)
        values = arch.hf_config(file.metadata, sources)
        config = arch.text_config(Config(values, f"{path}: config.json of its metadata"))
        tensors = hf_tensors(arch, sources, config)
        notes = _unkept(arch, file.metadata, config)
        tokenizer, files = tokenizer_files(file.metadata, config.integer("max_position_embeddings"))
        notes += tokenizer.notes
        generation = generation_config(file.metadata, tokenizer)
        card = card_text(file.metadata)
        format = _format(file, dtype)
    files |= {"config.json": {**values, "dtype": FLOATS[format].name}, "generation_config.json": generation}
    contents = {name: value if isinstance(value, bytes) else _json(value) for name, value in files.items()}
    if card:
        contents["README.md"] = card.encode()
    jobs = [Job(tensor, arch.hf_format(tensor, format)) for tensor in tensors]
    with new_folder(Path(target)) as folder:
        shards = _shards(folder, jobs, shard_bytes)
        if len(shards) > 1:
            contents["model.safetensors.index.json"] = _json(_index(shards))
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        with steps(f"export to {format}", "B", progress) as advance:
            overflows = write_files(shards, num_threads(threads), advance)
    notes += [f"{name}: {n} weights exceed float16 and became infinite" for name, n in overflows.items()]
    log_notes(notes)
    names = [Path(shard.path).name for shard in shards]
    num_bytes = sum(shard.num_bytes for shard in shards)
    return ExportReport(target, format, num_bytes, names, [tensor.name for tensor in tensors], notes)


def parse_size(size: int | str) -> int:
    """The bytes of `max_shard_size`. Raises InputError."""
    if not isinstance(size, str):
        return arguments.integer("max_shard_size", size, 1)
    text = size.strip().upper()
    unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
    number = text.removesuffix(unit).strip()
    if not number.isascii() or not number.isdecimal() or len(number) > 18 or not int(number):
        raise arguments.wrong("max_shard_size", "a size such as 500MB or 5GB", size)
    return int(number) * _UNITS.get(unit, 1)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _format(file: gguf.File, dtype: str | None) -> str:
    if dtype is not None:
        if arguments.text("dtype", dtype).upper() not in FLOATS:
            raise InputError("dtype:", expected=f"one of {', '.join(FLOATS)}", found=quoted(dtype))
        return dtype.upper()
    matrices = {info.format for info in file.infos.values() if len(info.shape) > 1}
    return matrices.pop() if len(matrices) == 1 and matrices <= FLOATS.keys() else "BF16"


def _unkept(arch: Architecture, metadata: Mapping[str, Any], config: Config) -> list[str]:
    """Notes on the architecture's keys that config.json cannot represent.

    Converting the folder again must give the keys of the file; otherwise the network would change silently. Raises
    UnsupportedError for a key that would get another value.
    """
    again = {**arch.first_metadata(config), **arch.metadata(config), **arch.late_metadata(config)}
    notes = []
    for key, value in metadata.items():
        if not key.startswith(f"{arch.name}."):
            continue
        if key not in again:
            notes.append(f"{key} is lost: config.json has no key for it")
        elif not np.array_equal(_rounded(value), _rounded(again[key])):
            raise UnsupportedError(
                f"{key} is {shown(value, 60)}, but config.json can only express {shown(again[key], 60)}", key=key
            )
    return notes


def _rounded(value: Any) -> Any:
    """Floats rounded as in GGUF."""
    with np.errstate(over="ignore"):
        return np.float32(value) if isinstance(value, float) else value


def generation_config(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """generation_config.json: the tokens that end a text, and the recommended sampling."""
    first = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    ends = [*first, *sorted(tokenizer.eos_ids - {*first})]
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends or None, "pad_token_id": tokenizer.pad_id}
    sampling: dict[str, Any] = {}
    for keys, name, _ in SAMPLING:
        key = f"general.sampling.{name}"
        value = metadata.get(key)
        if isinstance(value, (list, np.ndarray)):
            raise FormatError(f"{key}:", key=key, expected="one value", found="an array")
        if isinstance(value, np.generic):
            value = value.item()
        if value is not None:
            sampling[keys[-1]] = decimal(value) if isinstance(value, float) else value
    if sampling:
        sampling["do_sample"] = True
    return {**{key: value for key, value in ids.items() if value is not None}, **sampling}


@dataclass(frozen=True)
class _Shard:
    """A safetensors file to write, in the form that `write_files` accepts."""

    path: str
    jobs: Sequence[Job]

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(_info(job).num_bytes for job in self.jobs)

    def open(self) -> SafetensorsWriter:
        """Creates the file under a temporary name."""
        return SafetensorsWriter(self.path, map(_info, self.jobs))


def _info(job: Job) -> TensorInfo:
    return TensorInfo(job.source.name, job.format, job.source.shape)


def _shards(folder: Path, jobs: Sequence[Job], shard_bytes: int) -> list[_Shard]:
    """The files to write, with transformers' names. A tensor is never split."""
    parts: list[list[Job]] = [[]]
    filled = 0
    for job in jobs:
        num_bytes = _info(job).num_bytes
        if filled and filled + num_bytes > shard_bytes:
            parts.append([])
            filled = 0
        parts[-1].append(job)
        filled += num_bytes
    names = [f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors" for i in range(len(parts))]
    names = names if len(parts) > 1 else ["model.safetensors"]
    return [_Shard(str(folder / name), part) for name, part in zip(names, parts, strict=True)]


def _index(shards: Sequence[_Shard]) -> dict[str, Any]:
    weight_map = {job.source.name: Path(shard.path).name for shard in shards for job in shard.jobs}
    total = sum(shard.num_bytes for shard in shards)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
