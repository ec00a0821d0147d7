"""`export_onnx`: converts a checkpoint or a GGUF file to a folder with an ONNX model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lowbit.base import arguments
from lowbit.base.errors import Error, UnsupportedError
from lowbit.base.folders import new_folder
from lowbit.base.log import log_notes
from lowbit.base.operation import operation
from lowbit.base.paths import AnyPath, checked
from lowbit.base.progress import ProgressLike
from lowbit.base.version import __version__
from lowbit.conversion.convert import Importances
from lowbit.export.building import GraphBuilder
from lowbit.export.decoder import Decoder
from lowbit.export.genai import GenaiDecoder
from lowbit.export.genai_config import GraphFacts
from lowbit.export.genai_files import GenaiFiles, genai_files
from lowbit.export.matrices import Chosen, make_matrices
from lowbit.export.onnx_config import FILE as GENAI_CONFIG
from lowbit.export.options import ExportOptions
from lowbit.export.source import Source, open_source
from lowbit.export.standard import StandardDecoder
from lowbit.export.targets import Finding, Target, with_static_shapes
from lowbit.hf.lora import Adapters
from lowbit.onnx.graph import Model
from lowbit.onnx.writing import file_bytes, write
from lowbit.quantization.imatrix import load_imatrix
from lowbit.tensors.formats import find_format

__all__ = ["ExportedMatrix", "OnnxExportReport", "TargetReport", "export_onnx"]

MODEL = "model.onnx"
#: By layout.
DECODERS: Mapping[str, type[Decoder]] = {"genai": GenaiDecoder, "standard": StandardDecoder}


class ExportedMatrix(NamedTuple):
    """A matrix of the graph.

    before: its format in the source. bytes_before: in the source. num_bytes: of its initializers, in all uses. label:
    "exact" if it has the source's values, else "lossy". error: the 2-norm of the difference relative to that of the
    source's values; None in a dry run, and for what is exact. costs: what its form costs in speed, one sentence each.
    """

    name: str
    shape: tuple[int, int]
    before: str
    format: str
    bytes_before: int
    num_bytes: int
    label: str
    error: float | None
    costs: Sequence[str]


@dataclass(frozen=True)
class TargetReport:
    """The static check for a provider. Nothing was executed.

    name: of the provider. note: what the check follows. provider: the session's options, by ONNX Runtime's name.
    findings: what the provider does not run.
    """

    name: str
    note: str
    provider: Mapping[str, Mapping[str, str]]
    findings: list[Finding]


@dataclass(frozen=True)
class OnnxExportReport:
    """The result of `export_onnx`.

    path: the folder. format: of most matrices. num_bytes: of all files. matrices: in the order of the source. notes:
    facts that the folder does not hold, one sentence each. target: None without a provider.
    """

    path: str
    format: str
    layout: str
    num_bytes: int
    matrices: list[ExportedMatrix] = field(repr=False)
    notes: list[str]
    target: TargetReport | None = None


@operation()
def export_onnx(
    path: AnyPath,
    target: AnyPath,
    *,
    format: str | None = None,
    layout: str | None = None,
    opset: int | None = None,
    activations: str | None = None,
    block_size: int = 32,
    symmetric: bool = True,
    method: str = "search",
    accuracy_level: int = 4,
    imatrix: Importances | None = None,
    intermediate: str | None = None,
    allow_requantize: bool = False,
    exact: bool = False,
    provider: str | None = None,
    tokens: int | None = None,
    past: int | None = None,
    lora: Adapters = (),
    lora_scale: float | Sequence[float] = 1.0,
    like: str | None = None,
    dry_run: bool = False,
    threads: int | None = None,
    progress: ProgressLike = None,
) -> OnnxExportReport:
    """Converts a language model to ONNX: a folder with model.onnx, and its weights in model.onnx.data.

    Beside them are the tokenizer's files and genai_config.json, with which onnxruntime-genai runs the folder. The
    report's notes say what it does differently with this tokenizer and chat template (docs/onnx-genai.md).

    The graph follows from the description of the network, for every family that `lowbit.load` runs. Batch and lengths
    are open dimensions, and positions follow from attention_mask.

        | input or output | type | shape |
        | --- | --- | --- |
        | input_ids | int64 | batch, tokens |
        | attention_mask | int64 | batch, past tokens + tokens |
        | past_key_values.N.key, .value | of activations | batch, key-value heads, past tokens, head_dim |
        | logits | float32 | batch, tokens, vocabulary |
        | present.N.key, .value | of activations | batch, key-value heads, past tokens + tokens, head_dim |

    path: a checkpoint folder, a hub id, or a GGUF file.
    target: the folder to write; it must be new or empty.
    format: of the matrices.

        | format | matrices |
        | --- | --- |
        | "int4", "int8" | blocks with a scale each |
        | "f32", "f16", "bf16" | floats; runtimes convert f16 and bf16 to the type of activations |
        | a mix or format of GGUF ("Q4_K_M") | those of `lowbit.convert`, with the same values |
        | None | int4 for a checkpoint; as they are stored for a GGUF file |

    layout: "genai" (the default), for onnxruntime-genai: GroupQueryAttention, MatMulNBits and other operators of
        com.microsoft, which ONNX Runtime and OpenVINO have. "standard": operators of ai.onnx only.
    opset: of ai.onnx; the default is 23. Layout standard: 17 to 25; below 23 attention, norms and rotation are made of
        simple operators. int4 and int8 need 21, GGUF formats of 2 bits 25. Layout genai: 23 to 25.
    activations: "float32" (the default) or "float16": between the nodes, and in the caches.
    block_size, symmetric, method: of int4 and int8, as in `lowbit.onnx.OnnxOptions`.
    accuracy_level: of MatMulNBits: 4 lets ONNX Runtime round inputs of products to 8 bits, 0 is exact; for int8, 0 is
        100 times as slow.
    imatrix: importances, as in `lowbit.convert`, for int4 and int8 with method "search", and for mixes.
    intermediate: for mixes, as in `lowbit.convert`.
    allow_requantize: quantize matrices of a GGUF file that are quantized already. The losses add up.
    provider: "cuda", "webgpu", "openvino" or "qnn": sets layout, activations and opset as the execution provider
        documents, and its session's options in genai_config.json. The graph is checked, not executed: `report.target`
        lists what the provider does not run. Options that it does not take are refused.
    tokens, past: provider "qnn", which needs fixed shapes: the numbers of new tokens (default 1) and of tokens in the
        caches (default: 1,024 with the new ones). Caches are filled from the left with tokens that attention_mask
        hides.
    exact: refuse matrices that would not have the source's values.
    lora, lora_scale, like: for checkpoints, as in `lowbit.convert`.
    dry_run: writes nothing; the report has the sizes.
    threads: number of threads; None: LOWBIT_THREADS, else one per processor.
    progress: see `lowbit.ProgressLike`.

    The folder appears complete or not at all. Memory use is the largest quantized matrix, or a few chunks of rows.

    Raises FileError, FormatError; UnsupportedError for a network that the layout's operators cannot compute; InputError
    for a wrong option.

        report = lowbit.export_onnx("HuggingFaceTB/SmolLM2-135M", "smol-onnx", format="int4")
    """
    options = ExportOptions.of(
        provider, format=format, layout=layout, opset=opset, activations=activations, block_size=block_size,
        tokens=tokens, past=past, symmetric=symmetric, method=method, accuracy_level=accuracy_level,
        intermediate=intermediate, allow_requantize=allow_requantize, exact=exact, threads=threads,
    )  # fmt: skip
    path, target = checked(path), checked(target)
    dry_run = arguments.flag("dry_run", dry_run)
    importances = None if imatrix is None else load_imatrix(imatrix)
    source = open_source(path, lora, lora_scale, like, progress)
    kind = DECODERS[options.layout]
    if source.spec.int8_activations and options.activations != "float32":
        raise UnsupportedError(
            f"activations {options.activations}: products of {source.spec.architecture} with codes of 8 bits exceed "
            "its range: use float32"
        )
    shapes = options.static_shapes(source.spec.context_length)
    notes = list(source.notes)
    matrices = make_matrices(source, options, importances, dry_run, notes)
    if context := source.spec.original_context:
        notes.append(
            f"sequences of more than {context} tokens have another rotary embedding: one that grows beyond must be "
            "computed again from its start, with an empty cache"
        )
    graph = GraphBuilder(options.opset, options.dtype)
    made = {name: each.matrix for name, each in matrices.items()}
    model = kind(source.spec, source.vectors, made, graph).model(f"lowbit {__version__}")
    if shapes is not None:
        model = with_static_shapes(model, *shapes)
    files, differences = _files(source, model, options, notes)
    num_bytes = file_bytes(model, external_data=True)
    if not dry_run:
        with new_folder(Path(target)) as folder:
            write(folder / MODEL, model, external_data=True, progress=progress)
            for name, content in files.items():
                (folder / name).write_bytes(content)
    notes += map(str, differences)
    notes += [note for each in made.values() for note in each.notes]
    log_notes(notes)
    entries = [_entry(name, chosen, source.formats[name], dry_run) for name, chosen in matrices.items()]
    formats = [each.format for each in matrices.values()]
    most = options.format or max(formats, key=formats.count)
    checked_for = None if options.target is None else _checked(options.target, model)
    return OnnxExportReport(target, most.lower(), options.layout, num_bytes, entries, notes, checked_for)


def _entry(name: str, chosen: Chosen, stored: str, dry_run: bool) -> ExportedMatrix:
    matrix, format = chosen.matrix, find_format(stored)
    before = math.prod(matrix.shape) // format.block_size * format.block_bytes
    label, error = ("exact", None) if chosen.is_exact else ("lossy", None if dry_run else matrix.error)
    return ExportedMatrix(
        name, matrix.shape, stored, chosen.format, before, matrix.nbytes, label, error, tuple(chosen.costs)
    )


def _checked(target: Target, model: Model) -> TargetReport:
    return TargetReport(target.name, target.note, target.provider, target.check(model))


def _files(source: Source, model: Model, options: ExportOptions, notes: list[str]) -> GenaiFiles:
    """The files for onnxruntime-genai. Other programs run the model without them."""
    provider = None if options.target is None else options.target.provider
    try:
        made = genai_files(source, _graph_facts(model, options.layout), provider)
    except Error as error:
        notes.append(f"the folder has no tokenizer and no {GENAI_CONFIG}: {error}")
        return GenaiFiles({}, [])
    if options.target is not None and options.target.is_static:
        notes.append(f"the folder has no {GENAI_CONFIG}: onnxruntime-genai does not run models with fixed shapes")
        return GenaiFiles({name: file for name, file in made.files.items() if name != GENAI_CONFIG}, [])
    return made


def _graph_facts(model: Model, layout: str) -> GraphFacts:
    """The facts of a model that was made for a layout."""
    inputs, outputs = ([value.name for value in values] for values in (model.inputs, model.outputs))
    return GraphFacts(MODEL, inputs, outputs, shares_cache=layout == "genai")
