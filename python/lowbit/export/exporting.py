"""`export_onnx`: converts a checkpoint or a GGUF file to a folder with an ONNX model."""

from __future__ import annotations

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
from lowbit.export.genai_files import GenaiFiles, genai_files
from lowbit.export.matrices import make_matrices
from lowbit.export.options import USUAL_OPSET, ExportOptions
from lowbit.export.source import Source, open_source
from lowbit.export.standard import StandardDecoder
from lowbit.hf.lora import Adapters
from lowbit.onnx.graph import Model
from lowbit.onnx.writing import file_bytes, write
from lowbit.quantization.imatrix import load_imatrix

__all__ = ["ExportedMatrix", "GraphFacts", "OnnxExportReport", "export_onnx"]

MODEL = "model.onnx"
#: By layout.
DECODERS: Mapping[str, type[Decoder]] = {"genai": GenaiDecoder, "standard": StandardDecoder}


class ExportedMatrix(NamedTuple):
    """A matrix of the graph. before: its format in the source. num_bytes: of its initializers, in all uses. error: of
    its values in blocks, the 2-norm of the difference relative to that of the source's; None for floats, and in a dry
    run."""

    name: str
    shape: tuple[int, int]
    before: str
    format: str
    num_bytes: int
    error: float | None


class GraphFacts(NamedTuple):
    """What other files of the folder say about the model: its file, the names of its inputs and outputs, and whether
    the caches before and after a run may share a buffer."""

    file: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    shares_cache: bool


@dataclass(frozen=True)
class OnnxExportReport:
    """The result of `export_onnx`.

    path: the folder. format: of most matrices. num_bytes: of all files. matrices: in the order of the source. notes:
    facts that the folder does not hold, one sentence each.
    """

    path: str
    format: str
    layout: str
    num_bytes: int
    matrices: list[ExportedMatrix] = field(repr=False)
    notes: list[str]


@operation()
def export_onnx(
    path: AnyPath,
    target: AnyPath,
    *,
    format: str | None = None,
    layout: str = "genai",
    opset: int = USUAL_OPSET,
    activations: str = "float32",
    block_size: int = 32,
    symmetric: bool = True,
    method: str = "search",
    accuracy_level: int = 4,
    imatrix: Importances | None = None,
    intermediate: str | None = None,
    allow_requantize: bool = False,
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

    layout: "genai", for onnxruntime-genai: GroupQueryAttention, MatMulNBits and other operators of com.microsoft, which
        ONNX Runtime and OpenVINO have. "standard": operators of ai.onnx only.
    opset: of ai.onnx. Layout standard: 17 to 25; below 23 attention, norms and rotation are made of simple operators.
        int4 and int8 need 21, GGUF formats of 2 bits 25. Layout genai: 23 to 25.
    activations: "float32" or "float16": between the nodes, and in the caches.
    block_size, symmetric, method: of int4 and int8, as in `lowbit.onnx.OnnxOptions`.
    accuracy_level: of MatMulNBits: 4 lets ONNX Runtime round inputs of products to 8 bits, 0 is exact; for int8, 0 is
        100 times as slow.
    imatrix: importances, as in `lowbit.convert`, for int4 and int8 with method "search", and for mixes.
    intermediate: for mixes, as in `lowbit.convert`.
    allow_requantize: quantize matrices of a GGUF file that are quantized already. The losses add up.
    lora, lora_scale, like: for checkpoints, as in `lowbit.convert`.
    dry_run: writes nothing; the report has the sizes.
    threads: number of threads; None: LOWBIT_THREADS, else one per processor.
    progress: see `lowbit.ProgressLike`.

    The folder appears complete or not at all. Memory use is the largest quantized matrix, or a few chunks of rows.

    Raises FileError, FormatError; UnsupportedError for a network that the layout's operators cannot compute; InputError
    for a wrong option.

        report = lowbit.export_onnx("HuggingFaceTB/SmolLM2-135M", "smol-onnx", format="int4")
    """
    options = ExportOptions(
        format=format, layout=layout, opset=opset, activations=activations, block_size=block_size,
        symmetric=symmetric, method=method, accuracy_level=accuracy_level, intermediate=intermediate,
        allow_requantize=allow_requantize, threads=threads,
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
    files, differences = _files(source, model, options.layout, notes)
    num_bytes = file_bytes(model, external_data=True)
    if not dry_run:
        with new_folder(Path(target)) as folder:
            write(folder / MODEL, model, external_data=True, progress=progress)
            for name, content in files.items():
                (folder / name).write_bytes(content)
    notes += map(str, differences)
    notes += [note for each in made.values() for note in each.notes]
    log_notes(notes)
    entries = [
        ExportedMatrix(
            name, each.matrix.shape, source.formats[name], each.format, each.matrix.nbytes,
            None if dry_run else each.matrix.error,
        )
        for name, each in matrices.items()
    ]  # fmt: skip
    formats = [each.format for each in matrices.values()]
    most = options.format or max(formats, key=formats.count)
    return OnnxExportReport(target, most.lower(), options.layout, num_bytes, entries, notes)


def _files(source: Source, model: Model, layout: str, notes: list[str]) -> GenaiFiles:
    """The files for onnxruntime-genai. Other programs run the model without them."""
    try:
        return genai_files(source, **graph_facts(model, layout)._asdict())
    except Error as error:
        notes.append(f"the folder has no tokenizer and no genai_config.json: {error}")
        return GenaiFiles({}, [])


def graph_facts(model: Model, layout: str) -> GraphFacts:
    """The facts of a model that was made for a layout."""
    inputs, outputs = ([value.name for value in values] for values in (model.inputs, model.outputs))
    return GraphFacts(MODEL, inputs, outputs, shares_cache=layout == "genai")
