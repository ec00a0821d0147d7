"""lowbit run: continues a text."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from lowbit.cli.app import app, examples
from lowbit.cli.console import note, print_json
from lowbit.cli.options import Compute, Json, Like, Mmap, ModelPath, Threads, stdin_text
from lowbit.cli.sampling import Context, MinP, NewTokens, Penalty, Seed, Stop, Temperature, TopK, TopP, limit, showing


@app.command(
    name="run",
    epilog=examples(
        'lowbit run model.gguf "Once upon a time" -n 100',
        'lowbit run model.gguf "Once upon a time" -n -1  # to the end of the text',
        'lowbit run model.gguf "Dear Sir" --temperature 0.8 --top-p 0.95 --seed 1',
        "lowbit run model.gguf - < prompt.txt",
    ),
)
def run_command(
    model: ModelPath,
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="The text to continue; - reads it from stdin, unchanged.")
    ],
    max_tokens: NewTokens = 64,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    threads: Threads = None,
    compute: Compute = "auto",
    mmap: Mmap = True,
    context: Context = None,
    like: Like = None,
    json: Json = False,
) -> None:
    """Continues a text.

    The continuation is printed to stdout while it is generated, the speed to stderr.
    """
    import lowbit

    if prompt == "-":
        prompt = stdin_text()
    loaded = lowbit.load(model, compute=compute, threads=threads, context=context, mmap=mmap, like=like, progress=True)
    ids = loaded.tokenizer.encode(prompt)
    start = time.perf_counter()
    pieces = loaded.stream(
        ids,
        max_tokens=limit(max_tokens),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
    )
    text = "".join(showing(pieces, show=not json))
    seconds = time.perf_counter() - start
    if json:
        print_json({"prompt": prompt, "text": text, "prompt_tokens": len(ids), "seconds": seconds})
    else:
        print()
        note(f"{len(ids)} tokens read, {len(text)} characters written in {seconds:.2f} s")
