"""lowbit imatrix: collects, merges and shows importance matrices."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lowbit.base.files import read_model_text
from lowbit.base.quoting import one_line
from lowbit.cli.app import app, examples
from lowbit.cli.console import note, print_json
from lowbit.cli.options import Compute, Json, Like, Threads, existing_file
from lowbit.cli.tables import print_table

if TYPE_CHECKING:
    from lowbit.quantization.imatrix import Sums


@app.command(
    name="imatrix",
    epilog=examples(
        "lowbit imatrix model-bf16.gguf calibration.txt -o imatrix.gguf",
        "lowbit imatrix ./SmolLM2-135M more.txt --in-file imatrix.gguf -o both.gguf --chunks 200",
        "lowbit imatrix --in-file a.gguf --in-file old.dat -o merged.gguf",
        "lowbit imatrix --in-file imatrix.gguf --json  # only shows it",
    ),
)
def imatrix_command(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="GGUF file, checkpoint folder or hub id.", show_default=False)
    ] = None,
    text: Annotated[
        Path | None,
        typer.Argument(
            metavar="TEXT", parser=existing_file, help="Text in UTF-8 for the model to read, used unchanged."
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="FILE", help="The GGUF file to write, or a folder for it.")
    ] = None,
    in_file: Annotated[
        list[str] | None,
        typer.Option("--in-file", metavar="FILE[,FILE...]", help="Files with importances to add; repeatable."),
    ] = None,
    context: Annotated[int, typer.Option("--context", "-c", min=1, help="Tokens per chunk of the text.")] = 512,
    chunks: Annotated[int | None, typer.Option("--chunks", min=1, help="Most chunks to read. [default: all]")] = None,
    from_chunk: Annotated[int, typer.Option("--from-chunk", min=0, help="Number of chunks to skip first.")] = 0,
    process_output: Annotated[bool, typer.Option("--process-output", help="Also collect for output.weight.")] = False,
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="Read special tokens in TEXT as tokens, not as text.")
    ] = False,
    like: Like = None,
    threads: Threads = None,
    compute: Compute = "auto",
    json: Json = False,
) -> None:
    """Collects, merges and shows importance matrices.

    A model reads a text, and the squares of the inputs of its matrices are averaged. Figures and files are those of
    llama-imatrix. Without MODEL and TEXT, the command merges files or shows one.
    """
    import lowbit
    from lowbit.base.folders import made
    from lowbit.base.operation import replacing
    from lowbit.base.paths import checked, is_dir
    from lowbit.conversion.names import destination
    from lowbit.evaluate import imatrix

    if (model is None) != (text is None) or not (text or in_file):
        raise typer.BadParameter("expected MODEL and TEXT, or --in-file without both")
    if text and not out:
        raise typer.BadParameter("expected the file to write", param_hint="--out")
    if out:  # fails now, not after the work
        to = destination(checked(out), _file_name(model))
        if not is_dir(os.path.dirname((to.new_folder or to.path).rstrip(os.sep)) or "."):
            raise lowbit.FileError("no such folder", path=to.path, errno=errno.ENOENT)
        replacing([to.path])
    parts = [imatrix.read(path) for option in in_file or [] for path in _paths(option)]
    if model and text:
        content = read_model_text(text)
        loaded = lowbit.load(model, like=like, compute=compute, threads=threads, progress=True)
        parts.append(
            imatrix.collect(
                loaded,
                content,
                context=context,
                from_chunk=from_chunk,
                chunks=chunks,
                process_output=process_output,
                parse_special=parse_special,
                dataset=str(text),
                progress=True,
            )
        )
    sums = parts[0] if len(parts) == 1 and not out else imatrix.merge(parts)
    if out:
        with made(to.new_folder):
            sums.save(to.path)
    _print(sums, to.path if out else None, json)


def _file_name(model: str | None) -> str:
    """The file's name in a folder that was given as target."""
    from lowbit.conversion.names import model_name

    return "imatrix.gguf" if model is None else f"{model_name(model.partition('@')[0])}-imatrix.gguf"


def _paths(option: str) -> list[str]:
    """One path, or several separated by commas. A name with a comma counts as one path if that file exists."""
    return [option] if os.path.exists(os.path.expanduser(option)) else option.split(",")


def _print(sums: Sums, out: str | None, json: bool) -> None:
    reports = sums.coverage()
    for text in (report.note() for report in reports):
        if text:
            note(one_line(f"note: {text}"))
    if json:
        print_json(
            {
                "path": out,
                "datasets": sums.datasets,
                "chunk_count": sums.chunk_count,
                "chunk_size": sums.chunk_size,
                "tensors": reports,
            }
        )
        return
    rows = [
        [
            report.name,
            str(report.columns),
            "" if report.matrices == 1 else f"{report.matrices_seen} of {report.matrices}",
            str(report.tokens),
            str(len(report.columns_unseen)),
        ]
        for report in reports
    ]
    size = f" of {sums.chunk_size} tokens" if sums.chunk_size else ""
    title = f"{len(reports)} tensors, {sums.chunk_count} chunks{size}"
    columns = ["tensor", ">columns", ">experts seen", ">tokens", ">unseen columns"]
    print_table(columns, rows, title if out is None else f"{out}: {title}")
