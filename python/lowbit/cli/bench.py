"""lowbit bench: the speed of prefill and decode."""

from __future__ import annotations

from typing import Annotated

import typer

from lowbit.cli.app import app, examples
from lowbit.cli.console import print_json
from lowbit.cli.options import Compute, Json, Like, ModelPath, Threads
from lowbit.cli.tables import print_table


@app.command(epilog=examples("lowbit bench model.gguf", "lowbit bench model.gguf -p 2048 -n 64 --threads 2 --json"))
def bench(
    model: ModelPath,
    prompt_tokens: Annotated[int, typer.Option("-p", "--prompt-tokens", min=1, help="Tokens of the prompt.")] = 512,
    new_tokens: Annotated[int, typer.Option("-n", "--new-tokens", min=1, help="Tokens generated after it.")] = 128,
    repetitions: Annotated[
        int, typer.Option("-r", "--repetitions", min=1, help="Measured runs; the median is shown.")
    ] = 3,
    like: Like = None,
    threads: Threads = None,
    compute: Compute = "auto",
    json: Json = False,
) -> None:
    """Measures the speed of prefill and decode.

    Prefill reads a prompt; decode generates tokens one by one after it.
    """
    from lowbit.evaluate.bench import bench as measure

    result = measure(
        model,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repetitions=repetitions,
        threads=threads,
        compute=compute,
        like=like,
        progress=True,
    )
    if json:
        print_json(result)
        return
    rows = [
        [f"prefill of {prompt_tokens}", f"{result.prefill_tokens_per_s:.1f}", f"{result.prefill_spread:.1%}"],
        [f"decode of {new_tokens}", f"{result.decode_tokens_per_s:.1f}", f"{result.decode_spread:.1%}"],
    ]
    title = f"{result.model}, {result.threads} threads, {result.simd}, compute {result.compute}"
    print_table(["what", ">tokens/s", ">spread"], rows, title)
