"""Commands that make text: run, chat."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from lowbit.base.files import decoded
from lowbit.cli.app import Compute, Json, ModelPath, Threads, app, examples, finite
from lowbit.cli.console import note, print_json

Temperature = Annotated[
    float, typer.Option("--temp", min=0, help="Temperature; 0 always takes the likeliest token.", callback=finite)
]
TopK = Annotated[
    int, typer.Option("--top-k", min=0, max=(1 << 63) - 1, help="Draw from the K likeliest tokens; 0: from all.")
]
TopP = Annotated[
    float, typer.Option("--top-p", min=0, max=1, help="Draw from the fewest that have probability P.", callback=finite)
]
MinP = Annotated[
    float, typer.Option("--min-p", min=0, max=1, help="Leave out those below P times the best.", callback=finite)
]
Penalty = Annotated[
    float,
    typer.Option(
        "--repetition-penalty", min=0, help="Above 1: tokens seen before become less likely.", callback=finite
    ),
]
Seed = Annotated[
    int | None, typer.Option("--seed", min=0, max=(1 << 64) - 1, help="The same seed draws the same text.")
]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="End before this text; may be repeated.")]
Context = Annotated[
    int | None,
    typer.Option("--ctx", "-c", min=1, help="Tokens of context. [default: the model's]"),
]


@app.command(
    name="run",
    epilog=examples(
        'lowbit run model.gguf "Once upon a time" -n 100',
        'lowbit run model.gguf "Dear Sir" --temp 0.8 --top-p 0.95 --seed 1',
        "lowbit run model.gguf - < prompt.txt",
    ),
)
def run_command(
    model: ModelPath,
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="The text to continue; - reads it from stdin, as it is.")
    ],
    max_tokens: Annotated[int, typer.Option("-n", "--max-tokens", min=1, help="At most so many new tokens.")] = 64,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    threads: Threads = None,
    compute: Compute = "auto",
    context: Context = None,
    json: Json = False,
) -> None:
    """Continues a text.

    The continuation goes to stdout as it is made, the speed to stderr.
    """
    import lowbit

    if prompt == "-":
        prompt = decoded(sys.stdin.buffer.read(), "stdin")
    loaded = lowbit.load(model, compute=compute, threads=threads, context=context, progress=True)
    ids = loaded.tokenizer.encode(prompt)
    start = time.perf_counter()
    pieces = loaded.stream(
        ids,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
    )
    text = "".join(_shown(pieces, show=not json))
    seconds = time.perf_counter() - start
    if json:
        print_json({"prompt": prompt, "text": text, "prompt_tokens": len(ids), "seconds": seconds})
    else:
        print()
        note(f"{len(ids)} tokens read, {len(text)} characters written in {seconds:.2f} s")


@app.command(epilog=examples("lowbit chat model.gguf", 'lowbit chat model.gguf --system "Answer in one sentence."'))
def chat(
    model: ModelPath,
    system: Annotated[str | None, typer.Option("--system", help="What the model is told first.")] = None,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    threads: Threads = None,
    compute: Compute = "auto",
    context: Context = None,
) -> None:
    """Talks with a model that has a chat template.

    Ctrl-C ends an answer, Ctrl-D or /exit the talk; /reset forgets what was said.
    """
    import lowbit

    loaded = lowbit.load(model, compute=compute, threads=threads, context=context, progress=True)
    options: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    beginning = [{"role": "system", "content": system}] if system else []
    if not loaded.tokenizer.chat_templates:
        loaded.tokenizer.apply_chat_template(beginning)  # says so now, rather than after the first line
    messages = list(beginning)
    for line in _lines():
        if line == "/reset":
            messages = list(beginning)
            continue
        messages.append({"role": "user", "content": line})
        answer: list[str] = []
        try:
            answer.extend(_shown(loaded.stream_chat(messages, **options)))
        except KeyboardInterrupt:
            note(" (stopped)")
        print()
        messages.append({"role": "assistant", "content": "".join(answer)})


def _lines() -> Iterator[str]:
    """What the user types, until the end or /exit. A prompt is shown on a terminal only."""
    interactive = sys.stdin.isatty()
    if interactive:
        import contextlib

        with contextlib.suppress(ImportError):  # lines can be edited where Python has readline
            import readline  # noqa: F401
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            if interactive:
                print()
            return
        if line == "/exit":
            return
        if line:
            yield line


def _shown(pieces: Iterator[str], show: bool = True) -> Iterator[str]:
    """Passes pieces of text on, and shows each at once."""
    for piece in pieces:
        if show:
            print(piece, end="", flush=True)
        yield piece
