"""Opens a checkpoint or a GGUF file as a network: its description, vectors and lazy matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbit import gguf
from lowbit.arch import metadata as gguf_metadata
from lowbit.arch.model_spec import ModelSpec
from lowbit.base import arguments
from lowbit.base.dtypes import FLOAT_NAMES
from lowbit.base.errors import InputError
from lowbit.base.foreign import of_file
from lowbit.base.paths import is_file
from lowbit.base.progress import ProgressLike
from lowbit.conversion.convert import checked_intermediate, checkpoint_inputs, file_inputs, mix_notes
from lowbit.conversion.open import open_checkpoint
from lowbit.conversion.pipeline import Job
from lowbit.conversion.plan import Input, Plan
from lowbit.conversion.streamed import Network
from lowbit.export.options import ExportOptions
from lowbit.gguf.source import gguf_tensors
from lowbit.hf.lora import Adapters
from lowbit.quantization.imatrix import Imatrix
from lowbit.quantization.options import ConvertOptions
from lowbit.quantization.recipes import Mix, find_mix
from lowbit.tensors.source import TensorSource, read


@dataclass(frozen=True)
class Source:
    """A network to export.

    vectors: norms, biases and factors, float32. matrices: lazy floats. formats: of the matrices as they are stored. All
    by GGUF name. metadata: GGUF keys. notes: facts that GGUF cannot hold, one sentence each. is_gguf: whether it is a
    GGUF file. inputs: returns all tensors in the order in which a mix counts them, with notes on the mix,
    for a mix and an intermediate format.
    """

    path: str
    is_gguf: bool
    spec: ModelSpec
    vectors: Mapping[str, np.ndarray]
    matrices: Mapping[str, TensorSource]
    formats: Mapping[str, str]
    metadata: Mapping[str, Any]
    notes: list[str]
    inputs: Callable[[Mix, str], tuple[list[Input], list[str]]]

    def jobs(
        self, format: str, options: ExportOptions, importances: Imatrix | None, dry_run: bool, notes: list[str]
    ) -> dict[str, Job]:
        """What encodes each tensor as `lowbit.convert` or `lowbit.quantize_file` does. format: a mix.

        Raises InputError for a tensor that is quantized already, and for formats that need importances.
        """
        mix = find_mix(format)
        if self.is_gguf and options.intermediate is not None:
            raise InputError("intermediate works only for checkpoints, not for GGUF files", path=self.path)
        intermediate = checked_intermediate(mix, options.intermediate)
        inputs, more = self.inputs(mix, intermediate)
        plan = Plan(
            mix,
            inputs,
            {},
            [],
            ConvertOptions(),
            intermediate=None if self.is_gguf else intermediate,
            allow_requantize=options.allow_requantize,
        )
        tensors, jobs = plan.assigned(inputs, self.metadata, importances)
        notes += more
        notes += plan.without_importances(tensors, jobs, importances, dry_run)
        notes += [tensor.fallback for tensor in tensors if tensor.fallback]
        return {tensor.name: job for tensor, job in zip(tensors, jobs, strict=True)}


def open_source(
    path: str, lora: Adapters, lora_scale: float | Sequence[float], like: str | None, progress: ProgressLike
) -> Source:
    """Reads headers and vectors, and checks that the network is complete. Raises the errors of `lowbit.load`."""
    notes: list[str] = []
    if is_gguf := is_file(path) or path.endswith(".gguf"):
        arguments.refuse_checkpoint_options(path, lora, like)
        file = gguf.open(path)  # stays open: metadata is read when it is asked for
        with of_file(path):
            metadata: Mapping[str, Any] = file.metadata
            tensors = {name: tensor.weights() for name, tensor in gguf_tensors(file).items()}
            formats = {name: info.format for name, info in file.infos.items()}
            in_order = file_inputs(file)

        def inputs(mix: Mix, intermediate: str) -> tuple[list[Input], list[str]]:
            return in_order, []
    else:
        opened = open_checkpoint(path, lora=lora, lora_scale=lora_scale, like=like, progress=progress)
        metadata, notes = opened.metadata, opened.notes
        tensors = {tensor.name: tensor for tensor in opened.tensors}
        formats = {name: FLOAT_NAMES[tensor.dtype] for name, tensor in tensors.items()}

        def inputs(mix: Mix, intermediate: str) -> tuple[list[Input], list[str]]:
            return checkpoint_inputs(opened.tensors, mix, intermediate), mix_notes(opened, mix, intermediate)

    vectors = {name: read(tensor).astype(np.float32) for name, tensor in tensors.items() if len(tensor.shape) == 1}
    matrices = {name: tensor for name, tensor in tensors.items() if len(tensor.shape) == 2}
    with of_file(path):
        spec = gguf_metadata.spec(metadata, vectors)
        Network(spec, vectors, {name: tensor.shape for name, tensor in matrices.items()}).check()
    return Source(path, is_gguf, spec, vectors, matrices, formats, metadata, notes, inputs)
