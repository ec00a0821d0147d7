"""`convert_onnx`: converts a folder with an ONNX language model to a GGUF file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from lowbit import gguf
from lowbit.arch.registry import hf_classes
from lowbit.arch.unknown import unknown_class
from lowbit.base import arguments
from lowbit.base.log import log_notes
from lowbit.base.operation import operation, replacing
from lowbit.base.paths import AnyPath, checked
from lowbit.base.progress import ProgressLike, steps
from lowbit.base.threads import num_threads
from lowbit.conversion.open import checkpoint_metadata
from lowbit.conversion.pipeline import Job, Target, write_files
from lowbit.export.onnx_config import model_path, network_config, read_genai_config
from lowbit.export.onnx_weights import Weight, graph_weights
from lowbit.hf.model_card import general_metadata
from lowbit.onnx.reading import open_model
from lowbit.quantization.recipes import MIXES
from lowbit.tensors.source import num_elements
from lowbit.tokenizer.to_gguf import tokenizer_metadata

__all__ = ["OnnxImportReport", "convert_onnx"]


@dataclass(frozen=True)
class OnnxImportReport:
    """The result of `convert_onnx`. fidelities: label of each matrix by name. notes: one sentence each."""

    path: str
    num_bytes: int
    fidelities: dict[str, str] = field(repr=False)
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
    exactly. Memory use is the blocks of the largest matrix, or a few chunks of rows.

    Raises FileError, FormatError; UnsupportedError for networks and weights that are not found, or not exact.

        lowbit.convert_onnx("model-onnx", "model.gguf")
    """
    folder, where = Path(checked(path)), checked(target)
    exact = arguments.flag("exact", exact)
    genai = read_genai_config(folder)
    model = open_model(model_path(folder, genai))
    config = network_config(folder, genai, model)
    arch = hf_classes().get(config.hf_class)
    if arch is None:
        raise unknown_class(config.hf_class, config, {})
    config = arch.text_config(config)
    notes = arch.check(config)
    weights = graph_weights(model, arch, config, exact=exact, threads=num_threads(threads), progress=progress)
    extra = {source.name: Weight.of(source) for source in arch.extra_tensors(config)}
    weights = extra | weights
    num_params = sum(num_elements(weight.shape) for weight in weights.values())
    tokenizer = tokenizer_metadata(folder, config.values, arch.tokenizer_rules, config.integer("vocab_size"), notes)
    general = general_metadata(folder, config.values, num_params, None, notes)
    metadata = checkpoint_metadata(arch, config, tokenizer, general, _file_type(weights), {})
    notes += [
        f"{weight.name} is {weight.fidelity.label}: {weight.format} does not hold its blocks"
        for weight in weights.values()
        if weight.fidelity.label != "exact"
    ]
    infos = [gguf.TensorInfo(weight.name, weight.shape, weight.format) for weight in weights.values()]
    file = Target(where, metadata, infos, [Job(weight.source, weight.format) for weight in weights.values()])
    replacing([where])
    with steps("write GGUF", "B", progress) as advance:
        write_files([file], num_threads(threads), advance)
    log_notes(notes)
    labels = {name: weight.fidelity.label for name, weight in weights.items() if len(weight.shape) > 1}
    return OnnxImportReport(where, file.file_bytes, labels, notes)


def _file_type(weights: dict[str, Weight]) -> int:
    """general.file_type of the mix whose format most matrices have."""
    formats = Counter(weight.format for weight in weights.values() if len(weight.shape) > 1)
    most = formats.most_common(1)[0][0]
    return next((mix.file_type for mix in MIXES.values() if mix.default == most and mix.file_type is not None), 0)
