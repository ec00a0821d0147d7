"""`convert` and `quantize_file`: a checkpoint or a GGUF file becomes a GGUF file in another format."""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lowbit import _core, gguf
from lowbit._core import InputError
from lowbit.arch import open_checkpoint
from lowbit.imatrix import Imatrix, load_imatrix
from lowbit.pipeline import Job, write_file
from lowbit.progress import progress_bar
from lowbit.qtensor import QTensor
from lowbit.recipes import Assignment, Mix, Network, Stored, assign, file_order, find_mix
from lowbit.tensor_source import ArraySource, TensorSource
from lowbit.threads import num_threads

Path = str | os.PathLike[str]
#: Keys that tell the parts of a split file apart; a whole file has none.
SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")


@dataclass
class Report:
    """What a conversion wrote, or would write.

    tensors: (name, shape, format, fallback) of each, in file order. notes: what the file does not keep of its source.
    """

    path: str
    format: str
    file_bytes: int
    tensors: list[Assignment] = field(repr=False)
    notes: list[str]

    @property
    def fallbacks(self) -> list[str]:
        """Tensors that did not get the mix's format because its blocks do not divide their rows."""
        return [tensor.fallback for tensor in self.tensors if tensor.fallback]

    @property
    def bits_per_weight(self) -> float:
        """Bits a weight, over all tensors."""
        bits = sum(math.prod(t.shape) * _core.get_format(t.format).bits_per_weight for t in self.tensors)
        return bits / max(1, sum(math.prod(t.shape) for t in self.tensors))


def convert(
    src: Path,
    dst: Path,
    format: str = "Q4_K_M",
    imatrix: Path | Mapping[str, Any] | Imatrix | None = None,
    progress: bool = True,
    threads: int | None = None,
    dry_run: bool = False,
    tensor_types: Iterable[tuple[str, str]] = (),
    pure: bool = False,
) -> Report:
    """Makes a GGUF file of a Hugging Face folder or hub id, the same that the reference tools make.

    format: a mix ("Q4_K_M"), a format ("Q8_0"), or "BF16", "F16", "F32". Quantized weights go through bfloat16 first,
    whatever the checkpoint has, as through the reference's intermediate file. imatrix: a file of llama-imatrix, or
    importances by tensor name. tensor_types: (regular expression, format) pairs that go before the mix. pure: no mix.
    With progress, a bar and notes go to stderr. With dry_run nothing is written, and the report says what would be.

    The target appears whole or not at all, and memory stays at a few chunks of rows. Raises FileError, FormatError,
    UnsupportedError (architecture, tokenizer, quantized checkpoint) or InputError (format, NaN in the weights).
    """
    mix = find_mix(format)
    opened = open_checkpoint(src)
    sources = {tensor.name: tensor for tensor in opened.tensors}
    stored = {name: Stored(name, source.shape, _in_bf16_file(source)) for name, source in sources.items()}
    names = list(sources) if mix.is_float else file_order(sources)
    metadata = dict(opened.metadata)
    if mix.is_float:
        metadata["general.file_type"] = mix.file_type  # where the reference converter has it
    else:
        metadata = _requantized(metadata, mix)
    plan = _Plan(mix, sources, [stored[name] for name in names], metadata, opened.notes, through_bfloat16=True)
    return plan.run(dst, imatrix, progress, threads, dry_run, tensor_types, pure)


def quantize_file(
    src: Path,
    dst: Path,
    format: str,
    imatrix: Path | Mapping[str, Any] | Imatrix | None = None,
    progress: bool = True,
    threads: int | None = None,
    dry_run: bool = False,
    tensor_types: Iterable[tuple[str, str]] = (),
    pure: bool = False,
) -> Report:
    """Quantizes a GGUF file of floats, as llama-quantize does. The parameters are those of `convert`.

    Tensors that have the wanted format already are copied. Raises InputError for others that are quantized: what one
    format lost, the next would take for truth.
    """
    mix = find_mix(format)
    with gguf.open(src) as file:
        sources = {name: _source(name, tensor) for name, tensor in file.tensors.items()}
        stored = [Stored(*file.infos[name]) for name in file_order(sources)]
        metadata = {key: file.typed(key) for key in file.metadata if key not in SPLIT_KEYS}
        plan = _Plan(mix, sources, stored, _requantized(metadata, mix), [], through_bfloat16=False)
        return plan.run(dst, imatrix, progress, threads, dry_run, tensor_types, pure)


class _Packed(ArraySource):
    """The packed bytes of a tensor that may only be copied."""

    def __init__(self, name: str, tensor: QTensor) -> None:
        super().__init__(name, tensor.data)
        self.packed_shape = tensor.shape


def _source(name: str, tensor: QTensor | np.ndarray) -> TensorSource:
    return _Packed(name, tensor) if isinstance(tensor, QTensor) else ArraySource(name, tensor)


def _in_bf16_file(source: TensorSource) -> str:
    """The format that a tensor has in the reference's intermediate file."""
    return "F32" if source.dtype == np.float32 and len(source.shape) <= 1 else "BF16"


def _requantized(metadata: dict[str, Any], mix: Mix) -> dict[str, Any]:
    """Metadata as llama-quantize leaves it: these two keys come last."""
    last = {"general.quantization_version": np.uint32(2), "general.file_type": np.uint32(mix.file_type)}
    return {key: value for key, value in metadata.items() if key not in last} | last


def _print_notes(lines: list[str]) -> None:
    for line in lines:
        # Names come from files: what they say must not drive a terminal.
        print("note:", "".join(c if c.isprintable() else "?" for c in line), file=sys.stderr)


@dataclass
class _Plan:
    """Everything about a file to write but the choices of formats."""

    mix: Mix
    sources: dict[str, TensorSource]
    stored: list[Stored]
    metadata: dict[str, Any]
    notes: list[str]
    through_bfloat16: bool

    @functools.cached_property
    def formats(self) -> dict[str, str]:
        """Formats before, by name."""
        return {stored.name: stored.format for stored in self.stored}

    def run(
        self,
        dst: Path,
        imatrix: Path | Mapping[str, Any] | Imatrix | None,
        progress: bool,
        threads: int | None,
        dry_run: bool,
        tensor_types: Iterable[tuple[str, str]],
        pure: bool,
    ) -> Report:
        """Assigns formats, and writes the file unless it is a dry run."""
        count = num_threads(threads)
        importances = None if imatrix is None else load_imatrix(imatrix)
        tensors = assign(
            self.mix,
            self.stored,
            Network.of(self.metadata),
            has_imatrix=importances is not None,
            tensor_types=tensor_types,
            pure=pure,
        )
        if importances is not None:
            self.metadata |= importances.metadata()
        infos = [gguf.TensorInfo(tensor.name, tensor.shape, tensor.format) for tensor in tensors]
        file_bytes = gguf.file_size(self.metadata, infos)
        jobs = [self._job(tensor, importances) for tensor in tensors]
        report = Report(os.fspath(dst), self.mix.name, file_bytes, tensors, list(self.notes))
        without = [job.source.name for job in jobs if importances and job.importance is None and job.is_quantized]
        if without:
            report.notes.append(f"the importance matrix has nothing for {', '.join(without)}: encoded without")
        if importances:
            used = (job.source.name for job in jobs if job.importance is not None)
            report.notes += [importances.notes[name] for name in used if name in importances.notes]
        if progress:
            _print_notes([*report.notes, *report.fallbacks])
        if not dry_run:
            with progress_bar(self.mix.name, unit="B", enabled=progress) as advance:
                overflows = write_file(dst, self.metadata, infos, jobs, count, advance)
            lost = [f"{name}: {n} weights exceed float16 and became infinite" for name, n in overflows.items()]
            report.notes.extend(lost)
            if progress:
                _print_notes(lost)
        return report

    def _job(self, tensor: Assignment, importances: Imatrix | None) -> Job:
        source = self.sources[tensor.name]
        before = self.formats[tensor.name]
        if isinstance(source, _Packed) and before != tensor.format:
            raise InputError(f"tensor {tensor.name} is {before} already: quantize from a file of floats")
        rounded = self.through_bfloat16 and not self.mix.is_float and before == "BF16"
        job = Job(source, tensor.format, through_bfloat16=rounded)
        if importances and job.is_quantized:
            job = replace(job, importance=importances.importance(tensor.name, tensor.shape[-1]))
        return job
