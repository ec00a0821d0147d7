"""Commands about files: convert, quantize, inspect, formats."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowbit.cli.app import Json, Threads, app, examples
from lowbit.cli.console import count, print_json, print_table, printable, size

if TYPE_CHECKING:
    from lowbit.convert import Report as Written
    from lowbit.inspect import Report

Imatrix = Annotated[
    Path | None,
    typer.Option("--imatrix", exists=True, dir_okay=False, help="Importance matrix from llama-imatrix (GGUF)."),
]
TensorTypes = Annotated[
    list[str] | None,
    typer.Option("--tensor-type", metavar="REGEX=FORMAT", help="Format of the tensors that match; may be repeated."),
]
Pure = Annotated[bool, typer.Option("--pure", help="The same format for every matrix: no mix.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")]


@app.command(
    epilog=examples(
        "lowbit convert ./SmolLM2-135M smol.gguf --format Q4_K_M",
        "lowbit convert HuggingFaceTB/SmolLM2-135M smol-bf16.gguf --format bf16",
        "lowbit convert ./model out.gguf --format Q4_K_M --tensor-type 'ffn_down=Q6_K' --dry-run",
    )
)
def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Checkpoint folder or hub id.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.gguf", dir_okay=False, help="The file to write.")],
    format: Annotated[
        str, typer.Option("--format", "-f", help="A mix (Q4_K_M), a format (Q8_0), or bf16, f16, f32.")
    ] = "Q4_K_M",
    imatrix: Imatrix = None,
    tensor_type: TensorTypes = None,
    pure: Pure = False,
    threads: Threads = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Makes a GGUF file of a checkpoint."""
    import lowbit

    options = {"imatrix": imatrix, "tensor_types": _pairs(tensor_type), "pure": pure, "threads": threads}
    _write(lowbit.convert, source, target, format, options, dry_run, json)


@app.command(
    epilog=examples(
        "lowbit quantize model-bf16.gguf model-Q4_K_M.gguf Q4_K_M",
        "lowbit quantize model-bf16.gguf model-Q2_K.gguf Q2_K --imatrix imatrix.gguf",
        "lowbit quantize model-bf16.gguf out.gguf Q4_K_M --tensor-type 'blk\\.0\\.=Q8_0' --dry-run",
    )
)
def quantize(
    source: Annotated[Path, typer.Argument(metavar="IN.gguf", exists=True, dir_okay=False, help="The file to read.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.gguf", dir_okay=False, help="The file to write.")],
    format: Annotated[str, typer.Argument(metavar="FORMAT", help="A mix (Q4_K_M) or a format (Q8_0).")],
    imatrix: Imatrix = None,
    tensor_type: TensorTypes = None,
    pure: Pure = False,
    threads: Threads = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Quantizes a GGUF file."""
    import lowbit

    options = {"imatrix": imatrix, "tensor_types": _pairs(tensor_type), "pure": pure, "threads": threads}
    _write(lowbit.quantize_file, source, target, format, options, dry_run, json)


def _write(
    make: Callable[..., Written],
    source: str | Path,
    target: Path,
    format: str,
    options: dict[str, Any],
    dry_run: bool,
    json: bool,
) -> None:
    """Calls lowbit.convert or lowbit.quantize_file, and prints what it wrote."""
    start = time.perf_counter()
    report = make(source, target, format, dry_run=dry_run, **options)
    seconds = time.perf_counter() - start
    tensors = [{"name": t.name, "shape": t.shape, "format": t.format} for t in report.tensors]
    if json:
        print_json(
            {
                "path": report.path,
                "format": report.format,
                "written": not dry_run,
                "file_bytes": report.file_bytes,
                "bits_per_weight": report.bits_per_weight,
                "seconds": seconds,
                "fallbacks": report.fallbacks,
                "notes": report.notes,
                "tensors": tensors,
            }
        )
        return
    if dry_run:
        rows = [[t.name, " x ".join(map(str, t.shape)), t.format] for t in report.tensors]
        print_table(["tensor", ">shape", "format"], rows)
    done = f"would have {report.file_bytes} bytes" if dry_run else f"{size(report.file_bytes)} in {seconds:.1f} s"
    print(f"{report.path}: {report.format}, {done}, {report.bits_per_weight:.2f} bits a weight")


def _pairs(options: list[str] | None) -> list[tuple[str, str]]:
    """REGEX=FORMAT as pairs; a regular expression may hold `=` itself."""
    pairs = []
    for option in options or []:
        pattern, separator, format = option.rpartition("=")
        if not separator or not pattern or not format:
            raise typer.BadParameter(f"{option!r}: expected REGEX=FORMAT", param_hint="--tensor-type")
        pairs.append((pattern, format))
    return pairs


@app.command(name="formats", epilog=examples("lowbit formats", "lowbit formats --json | jq '.[].name'"))
def formats_command(json: Json = False) -> None:
    """Lists the tensor formats and their true sizes."""
    import lowbit

    rows = [
        {
            "name": f.name,
            "ggml_type": f.ggml_type,
            "block_size": f.block_size,
            "block_bytes": f.block_bytes,
            "bits_per_weight": f.bits_per_weight,
            "needs_imatrix": f.needs_imatrix,
        }
        for f in lowbit.formats()
    ]
    if json:
        print_json(rows)
        return
    print_table(
        ["format", ">GGUF type", ">weights a block", ">bytes a block", ">bits a weight", "needs imatrix"],
        [
            [
                str(row["name"]),
                str(row["ggml_type"]),
                str(row["block_size"]),
                str(row["block_bytes"]),
                f"{row['bits_per_weight']:g}",
                "yes" if row["needs_imatrix"] else "",
            ]
            for row in rows
        ],
    )


@app.command(
    epilog=examples(
        "lowbit inspect model.gguf", "lowbit inspect ./SmolLM2-135M --no-tensors", "lowbit inspect model.gguf --json"
    )
)
def inspect(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="GGUF file, safetensors file or checkpoint folder.")],
    metadata: Annotated[bool, typer.Option("--metadata/--no-metadata", help="Show the metadata.")] = True,
    tensors: Annotated[bool, typer.Option("--tensors/--no-tensors", help="Show every tensor.")] = True,
    json: Json = False,
) -> None:
    """Shows a file's metadata, tensors, formats and sizes."""
    from lowbit.inspect import inspect as read

    report = read(path)
    if json:
        print_json(report)
        return
    if metadata:
        print_table(["key", "value"], [[key, _value(value)] for key, value in report.metadata.items()], "Metadata")
    if tensors:
        rows = [
            [t.name, " x ".join(map(str, t.shape)), t.format, size(t.num_bytes), f"{t.bits_per_weight:.4g}"]
            for t in report.tensors
        ]
        print_table(["tensor", ">shape", "format", ">size", ">bits a weight"], rows, "Tensors")
    _print_summary(report)


def _print_summary(report: Report) -> None:
    rows = [
        [name, str(total.tensors), count(total.weights), size(total.num_bytes), f"{total.bits_per_weight:.4g}"]
        for name, total in [*report.formats.items(), ("all", report.total)]
    ]
    columns = ["format", ">tensors", ">weights", ">size", ">bits a weight"]
    print_table(columns, rows, f"{report.path}: {report.kind}, {size(report.file_bytes)}")


def _value(value: Any) -> str:
    """A metadata value in one line."""
    if isinstance(value, dict):
        value = f"{value['length']} elements: " + ", ".join(map(str, value["first"])) + ", ..."
    text = printable(str(value))
    return text if len(text) <= 200 else f"{text[:197]}..."
