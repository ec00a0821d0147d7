"""Opens a Hugging Face folder with the content of its GGUF file: metadata in memory, and lazy tensors.

`lowbit.convert` writes them to a file; `lowbit.load` runs them directly.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lowbit.arch import metadata as gguf_metadata
from lowbit.arch.base import Architecture
from lowbit.arch.model_spec import ModelSpec
from lowbit.arch.pooling import MODULES, pooling_config, pooling_type
from lowbit.arch.registry import hf_classes, of_class
from lowbit.arch.unknown import read_as, unknown_class
from lowbit.base.dtypes import FLOAT_NAMES
from lowbit.base.errors import Error
from lowbit.base.heap import trim_heap
from lowbit.base.operation import reading
from lowbit.base.paths import AnyPath
from lowbit.base.progress import ProgressLike, steps
from lowbit.hf.checkpoint import Checkpoint
from lowbit.hf.config import Config
from lowbit.hf.hub import resolve
from lowbit.hf.imports import fp8
from lowbit.hf.lora import Adapters, merge
from lowbit.hf.model_card import general_metadata
from lowbit.quantization.recipes import find_mix
from lowbit.tensors.source import TensorSource, num_elements
from lowbit.tokenizer.to_gguf import tokenizer_metadata

if TYPE_CHECKING:
    from lowbit.tokenizer.differences import TokenizerRecord

#: general.quantization_version of the block layouts.
QUANTIZATION_VERSION = 2


class Origin(NamedTuple):
    """The files of a checkpoint. hub_id: its id if it was downloaded. adapters: folders of LoRA adapters."""

    folder: Path
    hub_id: str | None
    weights: list[Path]
    adapters: list[Path]


@dataclass
class OpenedCheckpoint:
    """A Hugging Face folder in the form of its GGUF file.

    metadata: GGUF keys in file order, with the tokenizer; values as for `lowbit.gguf.Writer`.
    tensors: lazy tensors in file order, with GGUF names and values; float types only.
    notes: facts that GGUF cannot hold, one sentence each.
    exact_formats: the formats that keep the layers' matrices exactly, if only some do (BitNet).
    origin: the files that were read.
    recorded: the results of its tokenizer, or the error of loading it; None if not requested.
    """

    metadata: dict[str, Any]
    tensors: list[TensorSource]
    notes: list[str]
    exact_formats: tuple[str, ...]
    origin: Origin
    recorded: TokenizerRecord | Error | None = None

    @property
    def folder(self) -> Path:
        """The folder's path; in the hub's cache if it was downloaded."""
        return self.origin.folder

    @property
    def spec(self) -> ModelSpec:
        """The description of the network. Reads the one-dimensional tensors."""
        vectors = {tensor.name: tensor.rows(0, tensor.shape[0]) for tensor in self.tensors if len(tensor.shape) == 1}
        return gguf_metadata.spec(self.metadata, vectors)

    @cached_property
    def tokenizer_record(self) -> TokenizerRecord:
        """The results of the checkpoint's own tokenizer. Raises the errors of `lowbit.load_tokenizer`."""
        found = self.recorded or _tokenizer_record(self.folder)
        if isinstance(found, Error):
            raise found
        return found


def open_checkpoint(
    path: AnyPath,
    *,
    lora: Adapters = (),
    lora_scale: float | Sequence[float] = 1.0,
    like: str | None = None,
    record_tokenizer: bool = False,
    progress: ProgressLike = None,
) -> OpenedCheckpoint:
    """Opens a Hugging Face folder or hub id, with LoRA adapters merged. Reads headers and the tokenizer, no weights.

    lora, lora_scale: as in `lowbit.convert`.
    like: the class ("LlamaForCausalLM") to read the checkpoint as, instead of the class in config.json. Its tensors
        must fit. A note lists keys of config.json that this class does not have.
    record_tokenizer: also records the tokenizer's results for the test texts. This is done before the metadata is
        read, to save memory: a large tokenizer takes 300 MB while it is loaded, and 100 MB as metadata.
    progress: of a download; see `lowbit.ProgressLike`.

    Raises FileError; FormatError for a malformed checkpoint; UnsupportedError for an unknown architecture or tokenizer
    and for quantized checkpoints; InputError for adapters that do not fit.

        opened = lowbit.open_checkpoint("HuggingFaceTB/SmolLM2-135M")
        print(opened.metadata["general.architecture"], [tensor.name for tensor in opened.tensors])
    """
    folder, hub_id = resolve(path, progress=progress)
    checkpoint = Checkpoint(folder)
    config = Config(checkpoint.config, str(folder / "config.json"))
    arch = hf_classes().get(config.hf_class) if like is None else of_class(like)
    if arch is None:
        raise unknown_class(config.hf_class, config, checkpoint.tensors)
    read = []
    if like is not None:
        read = read_as(like, config)
        config = Config({**config.values, "architectures": [like]}, config.path)
    if described := getattr(sys.modules.get(type(arch).__module__), "__file__", None):
        reading(described)
    config = arch.text_config(config)
    weights = {tensor.file.path for tensor in checkpoint.tensors.values()}
    notes = checkpoint.notes + arch.check(config) + fp8.dequantize(checkpoint, arch.quant_methods)
    merged = merge(checkpoint, lora, lora_scale, hub_id, arch.is_tied(config), progress)
    notes += merged.notes
    notes += read
    if checkpoint.config.get("auto_map"):
        notes.append("auto_map in config.json is ignored: code in a checkpoint is never run")
    if skipped := [name for name in checkpoint.tensors if name.startswith(arch.left_out)]:
        notes.append(f"{len(skipped)} tensors outside the text model are left out, for example {skipped[0]}")
    tensors = arch.tensors(checkpoint, config)
    num_params = sum(num_elements(tensor.shape) for tensor in tensors)
    vocab_size = config.integer("vocab_size")
    with steps("read tokenizer", "steps", progress) as advance:
        recorded = _tokenizer_record(folder) if record_tokenizer else None
        advance(1, 2)
        tokenizer = tokenizer_metadata(folder, config.values, arch.tokenizer_rules, vocab_size, notes)
        advance(2, 2)
    pooling = _pooling(arch, folder, notes)
    is_tied = config.boolean("tie_word_embeddings", arch.tied_by_default)
    if not is_tied and all(tensor.name != "output.weight" for tensor in tensors):
        notes.append("there is no lm_head.weight: logits are computed with the embeddings, as in llama.cpp")
    metadata = checkpoint_metadata(
        arch, config, tokenizer, general_metadata(folder, checkpoint.config, num_params, hub_id, notes),
        _float_file_type(tensors), pooling,
    )  # fmt: skip
    origin = Origin(folder, hub_id, sorted(weights), merged.folders)
    return OpenedCheckpoint(metadata, tensors, notes, arch.exact_formats, origin, recorded)


def checkpoint_metadata(
    arch: Architecture,
    config: Config,
    tokenizer: Mapping[str, Any],
    general: Mapping[str, Any],
    file_type: int,
    pooling: Mapping[str, Any],
) -> dict[str, Any]:
    """The keys of a GGUF file in the reference's order. config: as `Architecture.text_config` makes it."""
    return {
        "general.architecture": arch.name,
        **arch.first_metadata(config),
        "general.type": "model",
        **general,
        **arch.metadata(config),
        "general.file_type": file_type,
        **pooling,
        **arch.late_metadata(config),
        "general.quantization_version": QUANTIZATION_VERSION,
        **tokenizer,
    }


def _tokenizer_record(folder: Path) -> TokenizerRecord | Error:
    """The record, or the error of a tokenizer that cannot be loaded."""
    from lowbit.tokenizer.differences import record
    from lowbit.tokenizer.load import read_tokenizer  # imports the tokenizers library

    trim_heap()
    try:
        return record(read_tokenizer(folder))
    except Error as error:
        return error
    finally:
        trim_heap()


def _pooling(arch: Architecture, folder: Path, notes: list[str]) -> dict[str, Any]:
    """The key ARCH.pooling_type of an embedding model, if the reference writes it for the architecture."""
    config = pooling_config(folder)
    if config is None:
        return {}
    if not arch.keeps_pooling:
        notes.append(
            f"{MODULES} describes an embedding model; pooling_type is not written for {arch.name}, as in the reference"
        )
        return {}
    notes.append(
        f"{MODULES} describes an embedding model: pooling_type is written, but lowbit itself computes only logits"
    )
    return {f"{arch.name}.pooling_type": pooling_type(config)}


def _float_file_type(tensors: list[TensorSource]) -> int:
    """general.file_type for the format in which the matrices are stored."""
    matrices = [tensor.dtype for tensor in tensors if len(tensor.shape) > 1]
    return find_mix(FLOAT_NAMES[matrices[0]] if matrices else "F32").file_type or 0
