"""lowbit chat: a chat with a model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from lowbit.cli.app import app, examples
from lowbit.cli.console import note
from lowbit.cli.options import Compute, Like, Mmap, ModelPath, Threads
from lowbit.cli.sampling import Context, MinP, NewTokens, Penalty, Seed, Temperature, TopK, TopP, limit, showing


@app.command(epilog=examples("lowbit chat model.gguf", 'lowbit chat model.gguf --system "Answer in one sentence."'))
def chat(
    model: ModelPath,
    system: Annotated[str | None, typer.Option("--system", help="System message at the start of the chat.")] = None,
    max_tokens: NewTokens = -1,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    threads: Threads = None,
    like: Like = None,
    compute: Compute = "auto",
    mmap: Mmap = True,
    context: Context = None,
) -> None:
    """Chats with a model that has a chat template.

    Ctrl-C stops an answer. Ctrl-D or /exit ends the chat. /reset starts a new one.
    """
    import lowbit

    loaded = lowbit.load(model, compute=compute, threads=threads, context=context, mmap=mmap, like=like, progress=True)
    options: dict[str, Any] = {
        "max_tokens": limit(max_tokens),
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    beginning = [{"role": "system", "content": system}] if system else []
    if not loaded.tokenizer.chat_templates:
        loaded.tokenizer.apply_chat_template(beginning)  # raises the error now, not after the first line
    messages = list(beginning)
    for line in _lines():
        if line == "/reset":
            messages = list(beginning)
            continue
        messages.append({"role": "user", "content": line})
        answer: list[str] = []
        try:
            answer.extend(showing(loaded.stream_chat(messages, **options)))
        except KeyboardInterrupt:
            note(" (stopped)")
        print()
        messages.append({"role": "assistant", "content": "".join(answer)})


def _lines() -> Iterator[str]:
    """The lines that the user types, until the end of input or /exit. Only a terminal gets a prompt."""
    interactive = sys.stdin.isatty()
    if interactive:
        import contextlib

        with contextlib.suppress(ImportError):  # with readline, lines can be edited
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
