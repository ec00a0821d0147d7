"""Commands that look: inspect, formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lowbit.cli.app import Json, app, examples
from lowbit.cli.console import count, print_json, print_table, size, value_text

if TYPE_CHECKING:
    from lowbit.evaluate.inspect import Report


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
    from lowbit.evaluate.inspect import inspect as read

    report = read(path)
    if json:
        print_json(report)
        return
    if metadata:
        print_table(["key", "value"], [[key, value_text(value)] for key, value in report.metadata.items()], "Metadata")
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
