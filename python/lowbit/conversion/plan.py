"""Plans a conversion: formats, metadata, files and jobs. All refusals happen here, before the first byte is written."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lowbit import gguf
from lowbit.base.dtypes import FLOATS
from lowbit.base.errors import InputError, UnsupportedError
from lowbit.base.folders import made
from lowbit.base.log import log_notes
from lowbit.base.operation import replacing
from lowbit.base.progress import ProgressLike, steps
from lowbit.base.quoting import quoted
from lowbit.conversion.names import Destination
from lowbit.conversion.pipeline import Appender, Job, Target, write_files
from lowbit.gguf.splits import PADDED, file_name, other_sets, split_keys
from lowbit.quantization.assignment import Assignment, Stored, assign, needs_imatrix, num_experts
from lowbit.quantization.imatrix import Imatrix
from lowbit.quantization.options import ConvertOptions, moved_last, override
from lowbit.quantization.recipes import Mix
from lowbit.tensors.source import TensorSource

if TYPE_CHECKING:
    from lowbit.conversion.verification import Verdict


@dataclass
class Report:
    """The result of a conversion, or of its dry run.

    path, paths: the file, or all files of a split model.
    format: the mix.
    file_bytes: size of all files together.
    tensors: name, shape, format before, format, fallback and num_bytes of each tensor, in file order.
    notes: warnings and facts of the source that the file does not hold, one sentence each.
    verdict: the result of the verification; None if there was none.
    """

    path: str
    format: str
    file_bytes: int
    tensors: list[Assignment] = field(repr=False)
    notes: list[str]
    paths: list[str] = field(repr=False)
    verdict: Verdict | None = field(default=None, compare=False, repr=False)

    @property
    def fallbacks(self) -> list[str]:
        """A sentence for each tensor whose row length is not a multiple of the block size of the mix's format."""
        return [tensor.fallback for tensor in self.tensors if tensor.fallback]

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight over all tensors."""
        return 8 * sum(t.num_bytes for t in self.tensors) / max(1, sum(math.prod(t.shape) for t in self.tensors))


class Input(NamedTuple):
    """A tensor to write. open: returns its source for a target format.

    origin: its name in the source, which is its name in an importance matrix. file: index of its file in a split model.
    """

    stored: Stored
    open: Callable[[str], TensorSource]
    origin: str
    file: int = 0


class Finishing(NamedTuple):
    """Keys that are known only when all tensors are written.

    reserved: bytes to reserve for the keys and for later edits.
    made_of: returns the keys of the provenance.
    verdict: verifies the complete file at its temporary path. Raises if the file must not get its name.
    """

    reserved: int
    made_of: Callable[[], Mapping[str, Any]] | None
    verdict: Callable[[str], Verdict] | None


@dataclass
class Plan:
    """Everything that a conversion needs, except the tensors' formats.

    intermediate: for a checkpoint, the format to which weights are rounded before they are quantized.
    num_files: number of files if a model stays split.
    """

    mix: Mix
    inputs: Sequence[Input]
    metadata: dict[str, Any]
    notes: list[str]
    options: ConvertOptions
    intermediate: str | None = None
    allow_requantize: bool = False
    num_files: int | None = None
    finishing: Finishing | None = None

    def run(
        self, to: Destination, importances: Imatrix | None, progress: ProgressLike, threads: int, dry_run: bool
    ) -> Report:
        """Assigns formats, and writes the files unless it is a dry run."""
        self.options.check(self.mix, importances is not None)
        metadata = model = override(self.metadata, self.options.override_kv or {})
        if importances:
            importances = choose_entries(importances, self.options)
        if importances:
            metadata = moved_last(metadata, importances.metadata())
        inputs, metadata = prune(self.inputs, metadata, self.options)
        if self.finishing:
            metadata = moved_last(metadata, gguf.padding(self.finishing.reserved))
        tensors, jobs = self.assigned(inputs, model, importances)
        targets = self._targets(to.path, metadata, [tensor.file for tensor in inputs], tensors, jobs)
        replacing(target.path for target in targets)
        file_bytes = sum(target.file_bytes for target in targets)
        paths = [target.path for target in targets]
        report = Report(to.path, self.mix.name, file_bytes, tensors, list(self.notes), paths)
        report.notes += self.without_importances(tensors, jobs, importances, dry_run)
        report.notes += other_sets(to.path, len(targets))
        if importances:
            used = (tensor.origin for tensor, job in zip(inputs, jobs, strict=True) if job.importance is not None)
            report.notes += [importances.notes[name] for name in used if name in importances.notes]
        log_notes([*report.notes, *_grouped(report.fallbacks)])
        if not dry_run:
            with made(to.new_folder), steps(f"write {self.mix.name}", "B", progress) as advance:
                overflows = write_files(targets, threads, advance, partial(self._finish, report))
            lost = [f"{name}: {n} weights exceed float16 and became infinite" for name, n in overflows.items()]
            lost += report.verdict.warnings if report.verdict else []
            report.notes.extend(lost)
            log_notes(lost)
        return report

    def assigned(
        self, inputs: Sequence[Input], metadata: Mapping[str, Any], importances: Imatrix | None
    ) -> tuple[list[Assignment], list[Job]]:
        """The format of each tensor, and the job that encodes it. metadata: GGUF keys of the model."""
        stored = [tensor.stored for tensor in inputs]
        tensors = assign(self.mix, stored, metadata, self.options, has_imatrix=importances is not None)
        return tensors, [self._job(tensor, chosen, importances) for tensor, chosen in zip(inputs, tensors, strict=True)]

    def _finish(self, report: Report, files: Sequence[Appender]) -> None:
        first = files[0]
        if self.finishing and isinstance(first, gguf.Writer):
            keys = dict(self.finishing.made_of() if self.finishing.made_of else {})
            if self.finishing.verdict:
                report.verdict = self.finishing.verdict(first.temporary_path)
                keys |= report.verdict.metadata()
            gguf.edit_unfinished(first.temporary_path, keys)

    def _job(self, tensor: Input, chosen: Assignment, importances: Imatrix | None) -> Job:
        name, shape, before = tensor.stored
        is_packed = before not in gguf.DTYPES
        if chosen.format != before:
            if is_packed and not self.allow_requantize:
                raise requantizing(name, before)
            if shape and not shape[-1]:
                raise UnsupportedError(
                    f"tensor {name}: {before} {list(shape)} has empty rows, which have no blocks", tensor=name
                )
            if not is_packed and before not in FLOATS:
                raise UnsupportedError(f"tensor {name}: {before} cannot be quantized", tensor=name)
        through = before if self.intermediate and before != "F32" and not self.mix.is_float else None
        job = Job(tensor.open(chosen.format), chosen.format, through=through)
        if importances and job.is_encoded:
            matrices = num_experts(shape)
            importance = importances.importance(tensor.origin, matrices * shape[-1])
            job = replace(job, importance=None if importance is None else importance.reshape(matrices, -1))
        return job

    def without_importances(
        self, tensors: list[Assignment], jobs: list[Job], importances: Imatrix | None, dry_run: bool
    ) -> list[str]:
        """Notes on tensors that are encoded without importances. Raises InputError if a format needs them."""
        bare = [t for t, job in zip(tensors, jobs, strict=True) if job.is_encoded and job.importance is None]
        needing = [t for t in bare if needs_imatrix(self.mix, t)]
        if needing:
            more = f" and {len(needing) - 1} more" if len(needing) > 1 else ""
            missing = (
                f"the importance matrix has none for {'them' if more else 'it'}" if importances else "there are none"
            )
            reason = f"{needing[0].name} ({needing[0].format}){more}: unusable without importances, but {missing}"
            if not dry_run:
                raise InputError(
                    f"{reason}; collect them with lowbit imatrix and pass the file as imatrix (--imatrix)",
                    tensor=needing[0].name,
                )
            return [reason]
        if importances and bare:
            return [f"the importance matrix has no entries for {', '.join(t.name for t in bare)}: encoded without them"]
        return []

    def _targets(
        self, dst: str, metadata: dict[str, Any], files: list[int], tensors: list[Assignment], jobs: list[Job]
    ) -> list[Target]:
        infos = [gguf.TensorInfo(tensor.name, tensor.shape, tensor.format) for tensor in tensors]
        num_files, limits = self.num_files, self.options.split_limits
        # A checkpoint converted to floats is split as by the reference converter, all else as by llama-gguf-split.
        is_converter = self.intermediate and self.mix.is_float
        if limits:
            files = limits.files([tensor.num_bytes for tensor in tensors], 1 if is_converter else PADDED)
            num_files = max(files, default=0) + 1
        if num_files is None or (limits and num_files == 1):
            return [Target(dst, metadata, infos, jobs)]
        targets = []
        for i in range(num_files):
            inside = [k for k, file in enumerate(files) if file == i]
            keys = {} if i else metadata
            if num_files > 1:
                keys = keys | split_keys(i, num_files, len(tensors), count_last=bool(limits) and not is_converter)
            path = file_name(dst, i, num_files)
            targets.append(Target(path, keys, [infos[k] for k in inside], [jobs[k] for k in inside]))
        return targets


def requantizing(name: str, format: str) -> InputError:
    """The error for a tensor that would be quantized again."""
    advice = "use a file of floats, or allow_requantize (--allow-requantize)"
    return InputError(f"tensor {name} is already quantized ({format}): {advice}", tensor=name)


def _grouped(fallbacks: Sequence[str]) -> list[str]:
    """Merges the lines of layers that have the same fallback."""
    groups: dict[str, list[str]] = {}
    for line in fallbacks:
        groups.setdefault(re.sub(r"^blk\.\d+\.", "blk.*.", line), []).append(line)
    return [lines[0] if len(lines) == 1 else f"{line} ({len(lines)} layers)" for line, lines in groups.items()]


def choose_entries(importances: Imatrix, options: ConvertOptions) -> Imatrix | None:
    """The entries to use; None if none is left. Raises InputError for a part that is in no entry's name."""
    parts = options.include_weights or options.exclude_weights
    for part in parts:
        if not any(part in name for name in importances.values):
            option = "include_weights" if options.include_weights else "exclude_weights"
            raise InputError(f"{option}: no name in the importance matrix contains {quoted(part)}")
    wanted = bool(options.include_weights)
    values = {
        name: value
        for name, value in importances.values.items()
        if not parts or any(part in name for part in parts) == wanted
    }
    return replace(importances, values=values) if values else None


def prune(
    inputs: Sequence[Input], metadata: dict[str, Any], options: ConvertOptions
) -> tuple[Sequence[Input], dict[str, Any]]:
    """Removes layers and renumbers the others. Raises InputError for layers that do not exist."""
    if not options.prune_layers:
        return inputs, metadata
    architecture = str(metadata.get("general.architecture"))
    key = f"{architecture}.block_count"
    count = metadata.get(key)
    if not isinstance(count, (int, np.integer)) or key in (options.override_kv or {}):
        raise InputError(f"prune_layers: {key}:", key=key, expected="an integer in the file, not overridden")
    for name, value in metadata.items():
        if name.startswith(f"{architecture}.") and isinstance(value, (list, np.ndarray)) and len(value) == count:
            raise UnsupportedError(
                f"prune_layers: {name} has one value per layer, so layers cannot be removed", key=name
            )
    gone = set(options.prune_layers)
    if max(gone) >= count or len(gone) == count:
        raise InputError("prune_layers:", expected=f"some but not all of the layers 0 to {count - 1}", found=max(gone))
    result = []
    for tensor in inputs:
        match = re.search(r"blk\.(\d+)\.", tensor.stored.name)
        layer = int(match[1]) if match else -1
        if layer in gone:
            continue
        if match:
            if layer >= count:
                raise InputError(
                    f"prune_layers: tensor {tensor.stored.name}:",
                    tensor=tensor.stored.name,
                    expected=f"a layer from 0 to {count - 1}",
                )
            number = layer - sum(other < layer for other in gone)
            name = f"{tensor.stored.name[: match.start(1)]}{number}{tensor.stored.name[match.end(1) :]}"
            tensor = tensor._replace(stored=tensor.stored._replace(name=name))
        result.append(tensor)
    return result, moved_last(metadata, {key: np.uint32(count - len(gone))})
