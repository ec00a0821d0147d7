"""lowbit split: splits a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowbit.cli.app import app, examples
from lowbit.cli.options import DryRun, Json, gguf_argument
from lowbit.cli.splits import NoTensorFirst, SplitMaxSize, SplitMaxTensors, print_files


@app.command(
    epilog=examples(
        "lowbit split model.gguf model --split-max-size 2G",
        "lowbit split model.gguf parts/model --split-max-tensors 128 --no-tensor-first-split",
        "lowbit split model.gguf model --split-max-size 500M --dry-run",
    )
)
def split(
    source: Annotated[Path, gguf_argument("IN.gguf", "The file to read.")],
    target: Annotated[
        str,
        typer.Argument(metavar="OUT", help="Name of the files: OUT-00001-of-0000N.gguf; or a folder for them."),
    ],
    split_max_size: SplitMaxSize = "0",
    split_max_tensors: SplitMaxTensors = 0,
    no_tensor_first_split: NoTensorFirst = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Splits a GGUF file into several files.

    The files equal those of llama-gguf-split. Either all of them appear or none.
    """
    if split_max_size == "0" and not split_max_tensors:
        raise typer.BadParameter("expected --split-max-size or --split-max-tensors")
    import lowbit

    report = lowbit.split_file(
        source,
        target,
        split_max_size=split_max_size,
        split_max_tensors=split_max_tensors,
        no_tensor_first_split=no_tensor_first_split,
        progress=True,
        dry_run=dry_run,
    )
    print_files(report, dry_run, json)
