"""Options for split models and the table of their files, for the commands that write them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from lowbit.cli.console import print_json, size
from lowbit.cli.options import wrong_usage
from lowbit.cli.tables import print_table

if TYPE_CHECKING:
    from lowbit.conversion.splitting import SplitReport


def _split_size(text: str) -> str:
    from lowbit.gguf.splits import SplitLimits

    with wrong_usage():
        SplitLimits.parsed(text, 0, no_tensor_first=False)
    return text


SplitMaxSize = Annotated[
    str,
    typer.Option(
        "--split-max-size",
        metavar="N[K|M|G]",
        help="Write several files with at most N bytes of tensors each; 0: no limit.",
        callback=_split_size,
    ),
]
SplitMaxTensors = Annotated[
    int,
    typer.Option(
        "--split-max-tensors", min=0, help="Write several files with at most this many tensors each; 0: no limit."
    ),
]
NoTensorFirst = Annotated[
    bool, typer.Option("--no-tensor-first-split", help="Write only metadata to the first of several files.")
]


def print_files(report: SplitReport, dry_run: bool, json: bool) -> None:
    """Prints the files with their sizes."""
    if json:
        print_json(vars(report) | {"written": not dry_run})
        return
    folder = os.path.dirname(report.paths[0])
    title = f"{'Would be written' if dry_run else 'Written'} to {folder or '.'}"
    rows = zip(report.paths, report.tensors, report.file_bytes, strict=True)
    print_table(
        ["file", ">tensors", ">size"],
        [[os.path.basename(path), str(tensors), size(num_bytes)] for path, tensors, num_bytes in rows],
        title,
    )
