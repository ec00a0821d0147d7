"""lowbit export: converts a GGUF file for other programs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from lowbit.cli.app import app, examples
from lowbit.cli.console import print_json, size
from lowbit.cli.options import Json, Threads, gguf_argument, one_of, wrong_usage

export = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@export.callback(epilog=examples("lowbit export hf model.gguf ./model"))
def _export() -> None:
    """Converts a GGUF file for other programs."""


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


app.add_typer(export, name="export")
