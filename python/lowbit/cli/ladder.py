"""lowbit ladder: compares the formats for one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lowbit.base.files import read_model_text
from lowbit.cli.app import app, examples
from lowbit.cli.console import print_json, size
from lowbit.cli.options import Compute, Json, Like, ModelPath, Threads, any_path, existing_file, parsed
from lowbit.cli.tables import print_table

if TYPE_CHECKING:
    from lowbit.evaluate.ladder import Ladder


@app.command(
    name="ladder",
    epilog=examples(
        "lowbit ladder ./SmolLM2-135M",
        "lowbit ladder model-bf16.gguf wiki.test.raw --chunks 20 --plot ladder.svg",
        "lowbit ladder model-bf16.gguf --rungs Q8_0,Q4_K_M,Q2_K --imatrix imatrix.gguf --json",
    ),
)
def ladder_command(
    model: ModelPath,
    text: Annotated[
        Path | None,
        typer.Argument(
            metavar="TEXT",
            parser=existing_file,
            help="Text in UTF-8 to measure on. [default: the embedded one]",
        ),
    ] = None,
    rungs: Annotated[
        str | None,
        typer.Option(
            "--rungs", metavar="MIX,MIX,...", help="Mixes to measure. [default: one per step from 8 bits to 1]"
        ),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(
            "--imatrix", parser=existing_file, help="File with importances. [default: collected from the text]"
        ),
    ] = None,
    context: Annotated[int, typer.Option("--context", "-c", min=3, help="Tokens per chunk of the text.")] = 512,
    chunks: Annotated[
        int | None, typer.Option("--chunks", min=1, help="Most chunks to measure. [default: all]")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", parser=any_path, help="Write a plot: .png, .svg or .pdf.")
    ] = None,
    like: Like = None,
    threads: Threads = None,
    compute: Compute = "auto",
    json: Json = False,
) -> None:
    """Quantizes a model to a series of formats and measures each.

    Shows size, perplexity, divergence from the original and speed, from 8 bits down to 1. Without --imatrix, half of
    the text gives the importances and the other half is measured. Files are made one at a time in the system's
    temporary folder and removed.
    """
    from lowbit.evaluate.ladder import RUNGS, ladder
    from lowbit.quantization.recipes import find_mix

    if plot:
        from lowbit.base.operation import replacing
        from lowbit.evaluate.plot import check

        check(plot)  # fails now, not after the work
        replacing([str(plot)])
    chosen = RUNGS if rungs is None else [name.strip() for name in rungs.split(",")]
    parsed("--rungs", find_mix, chosen)
    content = None if text is None else read_model_text(text)
    found = ladder(
        model,
        content,
        rungs=chosen,
        imatrix=imatrix,
        context=context,
        chunks=chunks,
        threads=threads,
        compute=compute,
        like=like,
        progress=True,
    )
    if plot:
        from lowbit.evaluate.plot import draw

        draw(found, plot)
    if json:
        print_json(found)
    else:
        _print(found)


def _print(found: Ladder) -> None:
    columns = ["format", ">file", ">bits per weight", ">perplexity", ">KL divergence", ">same top token", ">tokens/s"]
    rows = [
        [
            rung.format + "*" * bool(rung.fallbacks),
            size(rung.file_bytes),
            f"{rung.bits_per_weight:.2f}",
            f"{rung.perplexity:.4g} ± {rung.perplexity_error:.2g}",
            f"{rung.kl_divergence:.5f} ± {rung.kl_divergence_error:.1g}" if rung.kl_divergence else "",
            f"{rung.same_top:.1%}",
            f"{rung.decode_tokens_per_s:.0f}",
        ]
        for rung in (found.original, *found.rungs)
    ]
    title = f"{found.model}: {found.tokens} tokens in {found.chunks} chunks of {found.context}"
    print_table(columns, rows, f"{title}; importances: {found.importances}")
    if any(rung.fallbacks for rung in found.rungs):
        print(
            "* some tensors have another format, because the block size of the mix's format does not divide their rows"
        )
