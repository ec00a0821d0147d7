"""lowbit export: converts models for other programs."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from lowbit.cli.app import app, examples
from lowbit.cli.console import print_json, size
from lowbit.cli.options import (
    DryRun,
    Json,
    Like,
    Lora,
    LoraScale,
    ModelPath,
    Threads,
    gguf_argument,
    one_of,
    scale_of,
    wrong_usage,
)
from lowbit.cli.tables import print_table
from lowbit.cli.writing import Imatrix

export = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@export.callback(epilog=examples("lowbit export hf model.gguf ./model", "lowbit export onnx model.gguf ./model-onnx"))
def _export() -> None:
    """Converts models for other programs."""


def _size(text: str) -> str:
    from lowbit.conversion.export_hf import parse_size

    with wrong_usage():
        parse_size(text)
    return text


@export.command(
    epilog=examples(
        "lowbit export hf model-bf16.gguf ./model",
        "lowbit export hf model-Q4_K_M.gguf ./model --dtype f32",
        "lowbit export hf model.gguf ./model --max-shard-size 2GB",
    )
)
def hf(
    source: Annotated[Path, gguf_argument("FILE.gguf", "The file to read.")],
    target: Annotated[str, typer.Argument(metavar="DIR", help="The folder to write; it must be new or empty.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            help="Float format of the weights: bf16, f16 or f32. [default: the file's; bf16 if it is quantized]",
            callback=one_of("bf16", "f16", "f32"),
        ),
    ] = None,
    max_shard_size: Annotated[
        str,
        typer.Option(
            "--max-shard-size",
            metavar="SIZE",
            help="Most bytes of weights per file, for example 500MB or 5GB.",
            callback=_size,
        ),
    ] = "50GB",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Writes a Hugging Face folder with safetensors files, for transformers."""
    import lowbit

    start = time.perf_counter()
    report = lowbit.export_hf(
        source, target, dtype=dtype, max_shard_size=max_shard_size, threads=threads, progress=True
    )
    seconds = time.perf_counter() - start
    if json:
        print_json({**vars(report), "seconds": seconds})
        return
    files = f"{len(report.shards)} file{'s' if len(report.shards) > 1 else ''}"
    done = f"{len(report.tensors)} tensors, {size(report.num_bytes)} in {files}, {seconds:.1f} s"
    print(f"{report.path}: {report.dtype}, {done}")


@export.command(
    epilog=examples(
        "lowbit export onnx HuggingFaceTB/SmolLM2-135M ./smol-onnx --format int4",
        "lowbit export onnx model-Q4_K_M.gguf ./model-onnx --exact",
        "lowbit export onnx ./model ./model-onnx --format int8 --layout standard --opset 21",
        "lowbit export onnx ./model ./model-onnx --format int4 --activations float16 --dry-run",
        "lowbit export onnx ./model ./model-onnx --target cuda",
    )
)
def onnx(
    source: ModelPath,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="The folder to write; it must be new or empty.")],
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="int4, int8, f32, f16, bf16, or a mix of GGUF: Q4_K_M. [default: int4; as it is for a GGUF file]",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="cuda, webgpu, openvino or qnn: sets options as this execution provider documents, and checks the "
            "graph. Nothing is executed.",
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout",
            help="genai: operators of com.microsoft, for onnxruntime-genai. standard: operators of ai.onnx only. "
            "[default: genai]",
            callback=one_of("genai", "standard"),
        ),
    ] = None,
    opset: Annotated[
        int | None, typer.Option("--opset", help="Opset of ai.onnx: 17 to 25, for genai from 23 on. [default: 23]")
    ] = None,
    activations: Annotated[
        str | None,
        typer.Option(
            "--activations",
            help="Type between nodes: float32 or float16. [default: float32]",
            callback=one_of("float32", "float16"),
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", help="--target qnn: new tokens in a run. [default: 1]")
    ] = None,
    past: Annotated[
        int | None, typer.Option("--past", help="--target qnn: tokens in the caches. [default: 1023]")
    ] = None,
    block_size: Annotated[int, typer.Option("--block-size", help="int4, int8: weights per scale, 16 to 256.")] = 32,
    symmetric: Annotated[
        bool,
        typer.Option("--symmetric/--no-symmetric", help="int4, int8: blocks have only a scale, or a zero point too."),
    ] = True,
    method: Annotated[str, typer.Option("--method", help="int4, int8: scales by search, round or hqq.")] = "search",
    accuracy_level: Annotated[
        int, typer.Option("--accuracy-level", help="genai: 4 rounds inputs of products to 8 bits, 0 is exact.")
    ] = 4,
    imatrix: Imatrix = None,
    intermediate: Annotated[
        str | None, typer.Option("--intermediate", help="Mixes: weights are rounded to BF16, F16 or F32 first.")
    ] = None,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Quantize matrices of a GGUF file that are quantized already.")
    ] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Refuse matrices that would not have the source's values.")
    ] = False,
    lora: Lora = None,
    lora_scale: LoraScale = None,
    like: Like = None,
    dry_run: DryRun = False,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Writes a folder with an ONNX model of a language model, for onnxruntime-genai, ONNX Runtime and OpenVINO."""
    given = dict(locals())
    import lowbit
    from lowbit.export.options import ExportOptions

    names = (
        "format", "layout", "opset", "activations", "block_size", "symmetric", "method", "accuracy_level", "tokens",
        "past",
    )  # fmt: skip
    with wrong_usage():
        ExportOptions.of(target, **{name: given[name] for name in names})
    for name in ("source", "folder", "target", "json"):
        del given[name]
    given |= {"provider": target, "lora": lora or (), "lora_scale": scale_of(lora_scale)}
    start = time.perf_counter()
    report = lowbit.export_onnx(source, folder, **given, progress=True)
    seconds = time.perf_counter() - start
    if json:
        matrices = [each._asdict() for each in report.matrices]
        print_json({**vars(report), "matrices": matrices, "written": not dry_run, "seconds": seconds})
        return
    if dry_run:
        rows = [
            [m.name, " x ".join(map(str, m.shape)), m.before, str(m.bytes_before), m.format, str(m.num_bytes), m.label]
            for m in report.matrices
        ]
        print_table(["matrix", ">shape", "before", ">bytes", "format", ">bytes", "values"], rows)
    errors = [each.error for each in report.matrices if each.error is not None]
    is_exact = all(each.label == "exact" for each in report.matrices)
    error = f", error of the weights up to {max(errors):.2g}" if errors else ", exact weights" if is_exact else ""
    done = f"would have {report.num_bytes} bytes" if dry_run else f"{size(report.num_bytes)} in {seconds:.1f} s"
    print(f"{report.path}: {report.format}, layout {report.layout}, {done}{error}")
    for cost, count in Counter(cost for each in report.matrices for cost in each.costs).items():
        print(f"{count} matrices: {cost}")
    if report.target is not None:
        print(report.target.note, *report.target.findings, sep="\n")


app.add_typer(export, name="export")
