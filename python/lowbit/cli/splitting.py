"""Commands that split a GGUF file and make a split model whole: split, merge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lowbit.cli.app import DryRun, Json, NoTensorFirst, SplitMaxSize, SplitMaxTensors, app, examples, gguf_argument
from lowbit.cli.console import print_json, print_table, size

if TYPE_CHECKING:
    from lowbit.conversion.splitting import SplitReport


@app.command(
    epilog=examples(
        "lowbit split model.gguf model --split-max-size 2G",
        "lowbit split model.gguf parts/model --split-max-tensors 128 --no-tensor-first-split",
        "lowbit split model.gguf model --split-max-size 500M --dry-run",
    )
)
def split(
    source: Annotated[Path, gguf_argument("IN.gguf", "The file to read.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Files are OUT-00001-of-0000N.gguf and so on.")],
    split_max_size: SplitMaxSize = "0",
    split_max_tensors: SplitMaxTensors = 0,
    no_tensor_first_split: NoTensorFirst = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Splits a GGUF file into several that readers take for one.

    The files equal llama-gguf-split's. All of them appear, or none.
    """
    if split_max_size == "0" and not split_max_tensors:
        raise typer.BadParameter("--split-max-size or --split-max-tensors must say where to split")
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
    _print(report, dry_run, json)


@app.command(
    epilog=examples("lowbit merge model-00001-of-00003.gguf model.gguf", "lowbit inspect model-00001-of-00003.gguf")
)
def merge(
    source: Annotated[Path, gguf_argument("IN-00001-of-0000N.gguf", "One of the files.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.gguf", dir_okay=False, help="The file to write.")],
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Makes one file of a split model, the same as llama-gguf-split."""
    import lowbit

    _print(lowbit.merge_files(source, target, progress=True, dry_run=dry_run), dry_run, json)


def _print(report: SplitReport, dry_run: bool, json: bool) -> None:
    if json:
        print_json(vars(report) | {"written": not dry_run})
        return
    rows = zip(report.paths, report.tensors, report.file_bytes, strict=True)
    title = "Would be written" if dry_run else None
    print_table(
        ["file", ">tensors", ">size"],
        [[path, str(tensors), size(num_bytes)] for path, tensors, num_bytes in rows],
        title,
    )
