"""lowbit tokenize: shows the token ids and tokens of a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lowbit.base.files import MAX_TEXT_BYTES, decoded, read_bytes
from lowbit.base.quoting import quoted, shown
from lowbit.cli.app import app, examples
from lowbit.cli.console import note, print_json
from lowbit.cli.options import Json, ModelPath, existing_file, stdin_text
from lowbit.cli.tables import print_table

if TYPE_CHECKING:
    from lowbit import Tokenizer


@app.command(
    epilog=examples(
        'lowbit tokenize model.gguf "Once upon a time"',
        "lowbit tokenize model.gguf --file prompt.txt --json",
        "lowbit tokenize HuggingFaceTB/SmolLM2-135M-Instruct - --ids < prompt.txt",
    )
)
def tokenize(
    model: ModelPath,
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="The text; - reads it from stdin.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", parser=existing_file, help="Read the text from a file in UTF-8."),
    ] = None,
    add_special_tokens: Annotated[
        bool,
        typer.Option("--add-special-tokens/--no-add-special-tokens", help="Add BOS and EOS as the model expects them."),
    ] = True,
    parse_special: Annotated[
        bool,
        typer.Option(
            "--parse-special/--no-parse-special", help="Read special tokens in the text as tokens, not as text."
        ),
    ] = True,
    ids: Annotated[bool, typer.Option("--ids", help="Print only the ids, on one line.")] = False,
    json: Json = False,
) -> None:
    """Shows the token ids and tokens of a text.

    The text is used unchanged, line ends included. A character that takes several tokens is shown with the last of
    them.
    """
    import lowbit

    if (text is None) == (file is None):
        raise typer.BadParameter("expected a text, - for stdin, or --file", param_hint="TEXT")
    if ids and json:
        raise typer.BadParameter("expected one of --ids and --json", param_hint="--ids")
    if file is not None:
        text = decoded(read_bytes(file, MAX_TEXT_BYTES, pipes=True), str(file))
    elif text == "-":
        text = stdin_text()
    tokenizer = lowbit.load_tokenizer(model, progress=True)
    found = tokenizer.encode(text or "", add_special_tokens=add_special_tokens, parse_special=parse_special)
    if ids:
        print(*found)
    elif json:
        print_json({"ids": found, "tokens": [tokenizer.token(i) for i in found]})
    else:
        texts = _texts(tokenizer, found)
        rows = [[str(i), shown(tokenizer.token(i)), quoted(text)] for i, text in zip(found, texts, strict=True)]
        print_table([">id", "token", "text"], rows)
        note(f"{len(found)} token{'s' * (len(found) != 1)}")


def _texts(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """For each token, the whole characters that it completes."""
    stream = tokenizer.stream()
    texts = [stream.push(i) for i in ids]
    if texts:
        texts[-1] += stream.flush()
    return texts
