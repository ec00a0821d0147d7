"""lowbit inspect: shows the content of a file or a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lowbit.cli.app import app, examples
from lowbit.cli.console import count, print_json, size, value_text
from lowbit.cli.options import Json
from lowbit.cli.tables import print_table

if TYPE_CHECKING:
    from lowbit.evaluate.inspect import InspectReport, OnnxInspectReport


@app.command(
    epilog=examples(
        "lowbit inspect model.gguf", "lowbit inspect ./SmolLM2-135M --no-tensors", "lowbit inspect model.onnx --json"
    )
)
def inspect(
    path: Annotated[str, typer.Argument(metavar="FILE", help="GGUF, safetensors or ONNX file, or checkpoint folder.")],
    metadata: Annotated[bool, typer.Option("--metadata/--no-metadata", help="Show the metadata.")] = True,
    tensors: Annotated[bool, typer.Option("--tensors/--no-tensors", help="Show every tensor.")] = True,
    json: Json = False,
) -> None:
    """Shows a file's metadata, tensors, formats and sizes; of an ONNX model its operators, inputs and outputs, too."""
    from lowbit.evaluate.inspect import OnnxInspectReport
    from lowbit.evaluate.inspect import inspect as read

    report = read(path)
    if json:
        print_json(report)
        return
    if metadata and report.metadata:
        print_table(["key", "value"], [[key, value_text(value)] for key, value in report.metadata.items()], "Metadata")
    if tensors:
        rows = [
            [t.name, " x ".join(map(str, t.shape)), t.format, size(t.num_bytes), f"{t.bits_per_weight:.4g}"]
            for t in report.tensors
        ]
        print_table(["tensor", ">shape", "format", ">size", ">bits per weight"], rows, "Tensors")
    if isinstance(report, OnnxInspectReport):
        _print_graph(report)
    _print_summary(report)


def _print_graph(report: OnnxInspectReport) -> None:
    opsets = ", ".join(f"{domain} {version}" for domain, version in report.opsets.items())
    rows = [["IR version", str(report.ir_version)], ["producer", report.producer], ["opsets", opsets]]
    rows += [["function", name] for name in report.functions]
    rows += [["file beside it", f"{name}, {size(num_bytes)}"] for name, num_bytes in report.files.items()]
    print_table(["", "value"], [row for row in rows if row[1]], "Model")
    values = [("input", value) for value in report.inputs] + [("output", value) for value in report.outputs]
    table = [[kind, value.name, value.dtype or "?", _shape(value.shape)] for kind, value in values]
    print_table(["", "name", "dtype", ">shape"], table, "Inputs and outputs")
    print_table(["operator", ">nodes"], [[name, str(num)] for name, num in report.operators.items()], "Operators")


def _shape(shape: list[int | str | None] | None) -> str:
    if shape is None:
        return "?"
    return " x ".join("?" if dim is None else str(dim) for dim in shape) or "scalar"


def _print_summary(report: InspectReport) -> None:
    rows = [
        [name, str(total.tensors), count(total.weights), size(total.num_bytes), f"{total.bits_per_weight:.4g}"]
        for name, total in [*report.formats.items(), ("all", report.total)]
    ]
    columns = ["format", ">tensors", ">weights", ">size", ">bits per weight"]
    print_table(columns, rows, f"{report.path}: {report.kind}, {size(report.file_bytes)}")
