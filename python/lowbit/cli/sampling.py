"""Options for sampling, and output of text while it is generated: shared by run and chat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from lowbit.cli.options import finite

Temperature = Annotated[
    float,
    typer.Option("--temperature", "--temp", min=0, help="0 always takes the most likely token.", callback=finite),
]
TopK = Annotated[
    int, typer.Option("--top-k", min=0, max=(1 << 63) - 1, help="Sample from the K most likely tokens; 0: from all.")
]
TopP = Annotated[
    float,
    typer.Option(
        "--top-p", min=0, max=1, help="Sample from the fewest tokens with a total probability of P.", callback=finite
    ),
]
MinP = Annotated[
    float,
    typer.Option(
        "--min-p", min=0, max=1, help="Ignore tokens with less than P times the highest probability.", callback=finite
    ),
]
Penalty = Annotated[
    float,
    typer.Option(
        "--repetition-penalty", min=0, help="Above 1: tokens that occurred before become less likely.", callback=finite
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", min=0, max=(1 << 64) - 1, help="The same seed gives the same text. [default: a new one per run]"
    ),
]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="Stop before this text; repeatable.")]
Context = Annotated[
    int | None,
    typer.Option(
        "--context",
        "-c",
        min=1,
        help="Most tokens of prompt and answer together. [default: the model's trained context]",
    ),
]


def _new_tokens(value: int) -> int:
    if value == 0:
        raise typer.BadParameter("0 tokens, expected -1 or at least 1")
    return value


NewTokens = Annotated[
    int,
    typer.Option(
        "--max-tokens",
        "-n",
        min=-1,
        callback=_new_tokens,
        help="Most tokens to generate; -1: until the text ends or the context is full.",
    ),
]


def limit(new_tokens: int) -> int | None:
    """The value of -n for `Model.tokens`: None for -1."""
    return None if new_tokens == -1 else new_tokens


def showing(pieces: Iterator[str], show: bool = True) -> Iterator[str]:
    """Yields the pieces of text, and prints each immediately."""
    for piece in pieces:
        if show:
            print(piece, end="", flush=True)
        yield piece
