"""What run and chat share: how tokens are drawn, and text that is shown as it is made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from lowbit.cli.options import finite

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
    typer.Option("--context", "-c", min=1, help="Most tokens of prompt and answer. [default: what it was trained on]"),
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
        help="Most tokens to make; -1: until the text ends or the context is full.",
    ),
]


def limit(new_tokens: int) -> int | None:
    """What -n says, as `Model.tokens` takes it."""
    return None if new_tokens == -1 else new_tokens


def showing(pieces: Iterator[str], show: bool = True) -> Iterator[str]:
    """Passes pieces of text on, and shows each at once."""
    for piece in pieces:
        if show:
            print(piece, end="", flush=True)
        yield piece
