"""lowbit merge: merges a split model into one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowbit.cli.app import app, examples
from lowbit.cli.options import DryRun, Json, gguf_argument
from lowbit.cli.splits import print_files


@app.command(
    epilog=examples("lowbit merge model-00001-of-00003.gguf model.gguf", "lowbit inspect model-00001-of-00003.gguf")
)
def merge(
    source: Annotated[Path, gguf_argument("IN-00001-of-0000N.gguf", "Any file of the split model.")],
    target: Annotated[str, typer.Argument(metavar="OUT.gguf", help="The file to write, or a folder for it.")],
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Merges a split model into one file.

    The file equals that of llama-gguf-split."""
    import lowbit

    print_files(lowbit.merge_files(source, target, progress=True, dry_run=dry_run), dry_run, json)
