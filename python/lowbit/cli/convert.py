"""lowbit convert: converts a checkpoint, or a folder with an ONNX language model, to a GGUF file."""

from __future__ import annotations

import inspect
import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from lowbit.cli.app import app, examples
from lowbit.cli.console import print_json, size
from lowbit.cli.options import DryRun, Json, Like, Lora, LoraScale, Threads, one_of, scale_of
from lowbit.cli.splits import NoTensorFirst, SplitMaxSize, SplitMaxTensors
from lowbit.cli.writing import (
    EmbeddingType,
    Exclude,
    Imatrix,
    Include,
    LeaveOutput,
    OutputType,
    Overrides,
    PruneLayers,
    Pure,
    Strict,
    TensorTypeFile,
    TensorTypes,
    write,
)

Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of a hub id; the same as org/name@REVISION.")
]


@app.command(
    epilog=examples(
        "lowbit convert ./SmolLM2-135M smol.gguf --format Q4_K_M",
        "lowbit convert HuggingFaceTB/SmolLM2-135M smol-bf16.gguf --format bf16 --revision main",
        "lowbit convert ./model out.gguf --format IQ3_M --imatrix imatrix.gguf --strict",
        "lowbit convert ./model out.gguf --format bf16 --split-max-size 2G",
        "lowbit convert ./model out.gguf --format Q4_K_M --tensor-type 'ffn_down=Q6_K' --dry-run",
        "lowbit convert ./model-8B out.gguf --format Q8_0 --verify",
        "lowbit convert ./model-f16 out.gguf --format Q6_K --intermediate f16",
        "lowbit convert ./model out.gguf --no-verify --no-provenance  # the reference's bytes, nothing added",
        "lowbit convert ./model tuned.gguf --lora ./adapter --lora-scale 0.5",
        "lowbit convert ./model-onnx out.gguf --exact",
    )
)
def convert(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Checkpoint folder or hub id, or a folder with an ONNX model.")
    ],
    target: Annotated[str, typer.Argument(metavar="OUT.gguf", help="The file to write, or a folder for it.")],
    format: Annotated[
        str, typer.Option("--format", "-f", help="A mix (Q4_K_M), a format (Q8_0), or bf16, f16, f32.")
    ] = "Q4_K_M",
    imatrix: Imatrix = None,
    include_weights: Include = None,
    exclude_weights: Exclude = None,
    tensor_type: TensorTypes = None,
    tensor_type_file: TensorTypeFile = None,
    pure: Pure = False,
    leave_output_tensor: LeaveOutput = False,
    output_tensor_type: OutputType = None,
    token_embedding_type: EmbeddingType = None,
    prune_layers: PruneLayers = None,
    override_kv: Overrides = None,
    split_max_size: SplitMaxSize = "0",
    split_max_tensors: SplitMaxTensors = 0,
    no_tensor_first_split: NoTensorFirst = False,
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify",
            help="Compare the file with its source before it gets its name. [default: verify, unless split or pruned]",
        ),
    ] = None,
    provenance: Annotated[
        bool,
        typer.Option("--provenance/--no-provenance", help="Record sources, their hashes and the options in the file."),
    ] = True,
    strict: Strict = False,
    revision: Revision = None,
    lora: Lora = None,
    lora_scale: LoraScale = None,
    like: Like = None,
    intermediate: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help="Format to round weights to before they are quantized: bf16, f16, or f32 (exact). [default: bf16]",
            callback=one_of("bf16", "f16", "f32"),
        ),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Of an ONNX model: refuse weights that no format holds exactly.")
    ] = False,
    threads: Threads = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Converts a checkpoint, or a folder with an ONNX language model, to a GGUF file."""
    given = dict(locals())
    if _has_onnx_model(source):
        _convert_onnx(given)
        return
    if given.pop("exact"):
        raise typer.BadParameter("only for folders with an ONNX model", param_hint="--exact")
    if (pin := given.pop("revision")) is not None:
        if os.path.exists(source):
            raise typer.BadParameter(f"{source} is a folder, not a hub id", param_hint="--revision")
        given["source"] = f"{source}@{pin}"
    given["lora"] = lora or ()
    given["lora_scale"] = scale_of(lora_scale)
    import lowbit

    write(lowbit.convert, given)


def _has_onnx_model(source: str) -> bool:
    """Whether a folder has an ONNX model and no checkpoint."""
    from lowbit.base.paths import is_dir

    folder = Path(source)
    return is_dir(source) and any(folder.glob("*.onnx")) and not any(folder.glob("*.safetensors"))


def _convert_onnx(given: dict[str, Any]) -> None:
    """Only these options apply: an ONNX model's weights keep their values."""
    import lowbit

    usual = {name: parameter.default for name, parameter in inspect.signature(convert).parameters.items()}
    obeyed = ("source", "target", "exact", "threads", "json")
    if ignored := [name for name, value in given.items() if name not in obeyed and value != usual[name]]:
        option = f"--{ignored[0].replace('_', '-')}"
        raise typer.BadParameter("not for an ONNX model: its weights keep their values", param_hint=option)
    start = time.perf_counter()
    report = lowbit.convert_onnx(
        given["source"], given["target"], exact=given["exact"], threads=given["threads"], progress=True
    )
    seconds = time.perf_counter() - start
    if given["json"]:
        print_json({**vars(report), "seconds": seconds})
        return
    labels = [fidelity.label for fidelity in report.fidelities.values()]
    counts = ", ".join(f"{labels.count(label)} {label}" for label in dict.fromkeys(labels))
    print(f"{report.path}: {size(report.num_bytes)} in {seconds:.1f} s, matrices: {counts}")
