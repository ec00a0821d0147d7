"""lowbit verify: compares a GGUF file with its source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowbit.cli.app import app, examples
from lowbit.cli.console import print_json
from lowbit.cli.options import Json, Like, Lora, LoraScale, Threads, gguf_argument, scale_of
from lowbit.cli.verdicts import print_verdict, verdict_as_json


@app.command(
    epilog=examples(
        "lowbit verify model-Q4_K_M.gguf ./model",
        "lowbit verify model.gguf Qwen/Qwen3-0.6B --json",
        "lowbit verify tuned.gguf ./model --lora ./adapter --lora-scale 0.5",
    )
)
def verify(
    file: Annotated[Path, gguf_argument("FILE.gguf", "The file to verify.")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The checkpoint it was made from: folder or hub id.")],
    lora: Lora = None,
    lora_scale: LoraScale = None,
    like: Like = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Compares a GGUF file with the checkpoint it was made from.

    Checks metadata, tensors, tokenizer and logits. Give the same --lora and --like as for the conversion. The exit
    status is 1 if a check fails.
    """
    import lowbit

    scale = scale_of(lora_scale)
    verdict = lowbit.verify(file, source, lora=lora or (), lora_scale=scale, like=like, threads=threads, progress=True)
    if json:
        print_json(verdict_as_json(verdict))
    else:
        print_verdict(verdict)
    if not verdict.ok:
        raise typer.Exit(1)
