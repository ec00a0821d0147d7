"""`convert_onnx`: converts a folder with an ONNX language model to a GGUF file."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lowbit import gguf
from lowbit.arch.registry import hf_classes
from lowbit.arch.unknown import unknown_class
from lowbit.base import arguments
from lowbit.base.errors import FileError
from lowbit.base.folders import made
from lowbit.base.foreign import of_file
from lowbit.base.log import log_notes
from lowbit.base.operation import operation, replacing
from lowbit.base.paths import AnyPath, checked, is_dir
from lowbit.base.progress import ProgressLike, steps
from lowbit.base.threads import num_threads
from lowbit.conversion.names import destination
from lowbit.conversion.open import checkpoint_metadata
from lowbit.conversion.pipeline import Job, Target, write_files
from lowbit.export.onnx_config import model_path, network_config, read_genai_config
from lowbit.export.onnx_weights import Weight, graph_weights
from lowbit.hf.model_card import general_metadata
from lowbit.onnx.fidelity import Fidelity
from lowbit.onnx.reading import open_model
from lowbit.quantization.recipes import MIXES
from lowbit.tensors.source import num_elements
from lowbit.tokenizer.to_gguf import tokenizer_metadata

__all__ = ["OnnxImportReport", "convert_onnx"]


@dataclass(frozen=True)
class OnnxImportReport:
    """The result of `convert_onnx`. path: the file. fidelities: label of each matrix by name, with its bound or error.
    notes: one sentence each."""

    path: str
    num_bytes: int
    fidelities: dict[str, Fidelity] = field(repr=False)
    notes: list[str]


@operation()
def convert_onnx(
    path: AnyPath,
    target: AnyPath,
    *,
    exact: bool = False,
    threads: int | None = None,
    progress: ProgressLike = None,
) -> OnnxImportReport:
    """Converts a folder of `lowbit.export_onnx`, or of onnxruntime-genai's builder, to a GGUF file.

    Weights in blocks become the format that holds their values, without fitting scales again where one does. A folder
    needs the tokenizer's files, and config.json or genai_config.json. exact: refuse weights that no format holds
    exactly. target: the file to write, or a folder for it. Memory use is the blocks of the largest matrix, or a few
    chunks of rows.

    Raises FileError, FormatError; UnsupportedError for networks and weights that are not found, or not exact.

        lowbit.convert_onnx("model-onnx", "model.gguf")
    """
    folder, target = Path(checked(path)), checked(target)
    exact = arguments.flag("exact", exact)
    if not is_dir(folder):
        kind = errno.ENOTDIR if folder.exists() else errno.ENOENT
        raise FileError(path=folder, errno=kind, expected="a folder with an ONNX model", found="none")
    genai = read_genai_config(folder)
    file = model_path(folder, genai)
    model = open_model(file)
    config = network_config(folder, genai, model)
    arch = hf_classes().get(config.hf_class)
    if arch is None:
        raise unknown_class(config.hf_class, config, {})
    config = arch.text_config(config)
    notes = arch.check(config)
    with of_file(file):
        weights = graph_weights(model, arch, config, exact=exact, threads=num_threads(threads), progress=progress)
    extra = {source.name: Weight.of(source) for source in arch.extra_tensors(config)}
    weights = extra | weights
    num_params = sum(num_elements(weight.shape) for weight in weights.values())
    tokenizer = tokenizer_metadata(folder, config.values, arch.tokenizer_rules, config.integer("vocab_size"), notes)
    general = general_metadata(folder, config.values, num_params, None, notes)
    usual = _usual_format(weights)
    metadata = checkpoint_metadata(arch, config, tokenizer, general, _file_type(usual), {})
    notes += _losses(weights)
    infos = [gguf.TensorInfo(weight.name, weight.shape, weight.format) for weight in weights.values()]
    to = destination(target, f"{folder.resolve().name or 'model'}-{usual}.gguf")
    written = Target(to.path, metadata, infos, [Job(weight.source, weight.format) for weight in weights.values()])
    replacing([to.path])
    with made(to.new_folder), steps("write GGUF", "B", progress) as advance:
        write_files([written], num_threads(threads), advance)
    log_notes(notes)
    fidelities = {name: weight.fidelity for name, weight in weights.items() if len(weight.shape) > 1}
    return OnnxImportReport(to.path, written.file_bytes, fidelities, notes)


def _usual_format(weights: Mapping[str, Weight]) -> str:
    """That of most matrices."""
    return Counter(weight.format for weight in weights.values() if len(weight.shape) > 1).most_common(1)[0][0]


def _file_type(format: str) -> int:
    """general.file_type of the mix with this format."""
    return next((mix.file_type for mix in MIXES.values() if mix.default == format and mix.file_type is not None), 0)


def _losses(weights: Mapping[str, Weight]) -> list[str]:
    """What formats do not hold, one sentence for the matrices of each format."""
    groups: dict[tuple[str, str], list[Fidelity]] = {}
    for weight in weights.values():
        groups.setdefault((weight.format, weight.fidelity.label), []).append(weight.fidelity)
    notes = []
    for (format, label), group in groups.items():
        subject = f"{len(group)} matrices as {format} are" if len(group) > 1 else f"1 matrix as {format} is"
        if label == "bounded":
            bound = max(each.bound or 0.0 for each in group)
            notes.append(f"{subject} bounded: no weight differs by more than {bound:.2g} of the size of its terms")
        elif label == "lossy":
            error = max(each.error or 0.0 for each in group)
            notes.append(f"{subject} lossy: their weights differ by up to {error:.2g} of their norm")
    return notes
