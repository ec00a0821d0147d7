"""Commands that write GGUF files: convert, quantize."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowbit.base.quoting import quoted
from lowbit.cli.app import (
    DryRun,
    Json,
    Lora,
    LoraScale,
    NoTensorFirst,
    SplitMaxSize,
    SplitMaxTensors,
    Threads,
    app,
    examples,
    gguf_argument,
    one_of,
    parsed,
    scale_of,
)
from lowbit.cli.console import print_json, print_table, size
from lowbit.cli.verifying import print_verdict, showing_failed_verdict, verdict_as_json

if TYPE_CHECKING:
    from lowbit.conversion.plan import Report

Imatrix = Annotated[
    Path | None,
    typer.Option(
        "--imatrix", exists=True, dir_okay=False, help="Importance matrix from lowbit imatrix or llama-imatrix."
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option("--include-weights", metavar="PART", help="Use only importances whose names hold PART; repeatable."),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude-weights", metavar="PART", help="Leave out importances whose names hold PART; repeatable."),
]
TensorTypes = Annotated[
    list[str] | None,
    typer.Option("--tensor-type", metavar="REGEX=FORMAT", help="Format of the tensors that match; repeatable."),
]
TensorTypeFile = Annotated[
    Path | None,
    typer.Option("--tensor-type-file", exists=True, dir_okay=False, help="File with more of them, one a line."),
]
Pure = Annotated[bool, typer.Option("--pure", help="The same format for every matrix: no mix.")]
LeaveOutput = Annotated[bool, typer.Option("--leave-output-tensor", help="Keep output.weight as it is.")]
OutputType = Annotated[
    str | None, typer.Option("--output-tensor-type", metavar="FORMAT", help="Format of the output matrix.")
]
EmbeddingType = Annotated[
    str | None, typer.Option("--token-embedding-type", metavar="FORMAT", help="Format of the token embeddings.")
]
PruneLayers = Annotated[
    str | None, typer.Option("--prune-layers", metavar="N,N,...", help="Layers to leave out, counted from 0.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--override-kv",
        metavar="KEY=TYPE:VALUE",
        help="Metadata to write; TYPE is int, float, bool or str; repeatable.",
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse formats that do not fit a tensor's rows, instead of taking another.")
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of a hub id; org/name@REVISION says the same.")
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
    )
)
def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Checkpoint folder or hub id.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.gguf", dir_okay=False, help="The file to write.")],
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
            help="Compare the file with its source before it gets its name. [default: unless split or pruned]",
        ),
    ] = None,
    provenance: Annotated[
        bool, typer.Option("--provenance/--no-provenance", help="Write into the file what it was made of, with hashes.")
    ] = True,
    strict: Strict = False,
    revision: Revision = None,
    lora: Lora = None,
    lora_scale: LoraScale = None,
    intermediate: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help="What weights become before they are quantized: bf16, f16, or f32, which keeps all. [default: bf16]",
            callback=one_of("bf16", "f16", "f32"),
        ),
    ] = None,
    threads: Threads = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Makes a GGUF file of a checkpoint."""
    given = dict(locals())
    if (pin := given.pop("revision")) is not None:
        if os.path.exists(source):
            raise typer.BadParameter(f"{source} is a folder, not a hub id", param_hint="--revision")
        given["source"] = f"{source}@{pin}"
    given["lora"] = lora or ()
    given["lora_scale"] = scale_of(lora_scale)
    import lowbit

    _write(lowbit.convert, given)


@app.command(
    epilog=examples(
        "lowbit quantize model-bf16.gguf model-Q4_K_M.gguf Q4_K_M",
        "lowbit quantize model-bf16.gguf model-IQ2_M.gguf IQ2_M --imatrix imatrix.gguf",
        "lowbit quantize model-bf16.gguf out.gguf Q4_K_M --tensor-type 'blk\\.[01]\\.=Q8_0' --dry-run",
        "lowbit quantize model-bf16.gguf out.gguf Q5_K_M --output-tensor-type Q8_0 --token-embedding-type Q8_0",
        "lowbit quantize model-Q8_0.gguf out.gguf Q4_0 --allow-requantize --override-kv general.name=str:Mine",
        "lowbit quantize model-00001-of-00003.gguf out.gguf Q6_K --keep-split",
    )
)
def quantize(
    source: Annotated[Path, gguf_argument("IN.gguf", "The file to read.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.gguf", dir_okay=False, help="The file to write.")],
    format: Annotated[
        str, typer.Argument(metavar="FORMAT", help="A mix (Q4_K_M), a format (Q8_0), their number, or COPY.")
    ],
    imatrix: Imatrix = None,
    include_weights: Include = None,
    exclude_weights: Exclude = None,
    tensor_type: TensorTypes = None,
    tensor_type_file: TensorTypeFile = None,
    pure: Pure = False,
    leave_output_tensor: LeaveOutput = False,
    output_tensor_type: OutputType = None,
    token_embedding_type: EmbeddingType = None,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Quantize again what is quantized. Costs quality.")
    ] = False,
    keep_split: Annotated[
        bool, typer.Option("--keep-split", help="Write a file OUT-00001-of-0000N.gguf for each file of IN.")
    ] = False,
    prune_layers: PruneLayers = None,
    override_kv: Overrides = None,
    split_max_size: SplitMaxSize = "0",
    split_max_tensors: SplitMaxTensors = 0,
    no_tensor_first_split: NoTensorFirst = False,
    strict: Strict = False,
    threads: Threads = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Quantizes a GGUF file, or all files of a split model."""
    given = dict(locals())
    import lowbit

    _write(lowbit.quantize_file, given)


def _write(make: Callable[..., Report], given: dict[str, Any]) -> None:
    """Calls lowbit.convert or lowbit.quantize_file with what the command was given, and prints what it wrote."""
    from lowbit.quantization.options import parse_override, parse_tensor_type
    from lowbit.quantization.recipes import find_mix

    json = given.pop("json")
    parsed("FORMAT", find_mix, [given["format"]])
    given["tensor_types"] = parsed("--tensor-type", parse_tensor_type, given.pop("tensor_type") or [])
    given["override_kv"] = dict(parsed("--override-kv", parse_override, given["override_kv"] or []))
    layers = given["prune_layers"]
    given["prune_layers"] = parsed("--prune-layers", _layer, layers.split(",") if layers else [])
    for name in ("include_weights", "exclude_weights"):
        given[name] = given[name] or ()
    start = time.perf_counter()
    with showing_failed_verdict(json):
        report = make(given.pop("source"), given.pop("target"), given.pop("format"), progress=True, **given)
    seconds = time.perf_counter() - start
    if json:
        print_json(_as_json(report, seconds, not given["dry_run"]))
        return
    if given["dry_run"]:
        rows = [[t.name, " x ".join(map(str, t.shape)), t.before, t.format, str(t.num_bytes)] for t in report.tensors]
        print_table(["tensor", ">shape", "before", "format", ">bytes"], rows)
    done = (
        f"would have {report.file_bytes} bytes" if given["dry_run"] else f"{size(report.file_bytes)} in {seconds:.1f} s"
    )
    files = f" ({len(report.paths)} files)" if len(report.paths) > 1 else ""
    if report.verdict is not None:
        print_verdict(report.verdict)
    print(f"{report.path}{files}: {report.format}, {done}, {report.bits_per_weight:.2f} bits a weight")


def _as_json(report: Report, seconds: float, written: bool) -> dict[str, Any]:
    return {
        "path": report.path,
        "paths": report.paths,
        "format": report.format,
        "written": written,
        "file_bytes": report.file_bytes,
        "bits_per_weight": report.bits_per_weight,
        "seconds": seconds,
        "fallbacks": report.fallbacks,
        "notes": report.notes,
        "verdict": None if report.verdict is None else verdict_as_json(report.verdict),
        "tensors": [t._asdict() | {"num_bytes": t.num_bytes} for t in report.tensors],
    }


def _layer(text: str) -> int:
    from lowbit import InputError

    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise InputError(f"{quoted(text)}:", expected="numbers of layers with commas between")
    return int(text)
