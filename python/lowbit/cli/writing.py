"""Options and the printed report that convert and quantize share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowbit.base.quoting import quoted
from lowbit.cli.console import print_json, size
from lowbit.cli.options import existing_file, parsed
from lowbit.cli.tables import print_table
from lowbit.cli.verdicts import print_verdict, showing_failed_verdict, verdict_as_json

if TYPE_CHECKING:
    from lowbit.conversion.plan import Report

Imatrix = Annotated[
    Path | None,
    typer.Option(
        "--imatrix", parser=existing_file, help="Importance matrix: a file of lowbit imatrix or llama-imatrix."
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        "--include-weights", metavar="PART", help="Use only importances whose names contain PART; repeatable."
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude-weights", metavar="PART", help="Ignore importances whose names contain PART; repeatable."),
]
TensorTypes = Annotated[
    list[str] | None,
    typer.Option("--tensor-type", metavar="REGEX=FORMAT", help="Format of the tensors whose names match; repeatable."),
]
TensorTypeFile = Annotated[
    Path | None,
    typer.Option(
        "--tensor-type-file",
        parser=existing_file,
        help="File with more REGEX=FORMAT, used after --tensor-type.",
    ),
]
Pure = Annotated[bool, typer.Option("--pure", help="Use one format for all matrices instead of a mix.")]
LeaveOutput = Annotated[bool, typer.Option("--leave-output-tensor", help="Do not quantize output.weight.")]
OutputType = Annotated[
    str | None, typer.Option("--output-tensor-type", metavar="FORMAT", help="Format of the output matrix.")
]
EmbeddingType = Annotated[
    str | None, typer.Option("--token-embedding-type", metavar="FORMAT", help="Format of the token embeddings.")
]
PruneLayers = Annotated[
    str | None, typer.Option("--prune-layers", metavar="N,N,...", help="Layers to remove, counted from 0.")
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
    bool,
    typer.Option("--strict", help="Fail if a format does not fit a tensor's rows, instead of using another format."),
]


def write(make: Callable[..., Report], given: dict[str, Any]) -> None:
    """Calls lowbit.convert or lowbit.quantize_file with the command's options, and prints a report."""
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
    print(f"{report.path}{files}: {report.format}, {done}, {report.bits_per_weight:.2f} bits per weight")


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
        raise InputError(f"{quoted(text)}:", expected="layer numbers separated by commas")
    return int(text)
