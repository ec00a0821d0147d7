"""lowbit detokenize: prints the text of token ids."""

from __future__ import annotations

import json as json_format
import re
from typing import Annotated, Any

import typer

from lowbit.base.errors import InputError
from lowbit.base.quoting import quoted
from lowbit.cli.app import app, examples
from lowbit.cli.console import print_json
from lowbit.cli.options import Json, ModelPath, parsed, stdin_text


@app.command(
    context_settings={"ignore_unknown_options": True},  # -1 must not be parsed as an option
    epilog=examples(
        "lowbit detokenize model.gguf 9707 1879",
        "lowbit tokenize model.gguf --file prompt.txt --json | lowbit detokenize model.gguf -",
    ),
)
def detokenize(
    model: ModelPath,
    ids: Annotated[list[str], typer.Argument(metavar="IDS", help="Token ids; - reads them from stdin.")],
    skip_special_tokens: Annotated[
        bool, typer.Option("--skip-special-tokens", help="Leave special tokens out.")
    ] = False,
    json: Json = False,
) -> None:
    """Prints the text of token ids.

    Ids are separated by blanks, commas or line feeds, with or without brackets. Stdin may also have the output of
    `lowbit tokenize` with --ids or --json. A line feed is printed after the text; --json prints the exact text.
    """
    import lowbit

    (found,) = parsed("IDS", _parsed, [stdin_text() if ids == ["-"] else " ".join(ids)])
    text = lowbit.load_tokenizer(model, progress=True).decode(found, skip_special_tokens=skip_special_tokens)
    if json:
        print_json({"ids": found, "text": text})
    else:
        print(text)


def _parsed(text: str) -> list[int]:
    """The ids in a text. Raises InputError."""
    if text.lstrip().startswith("{"):
        return _of_json(text)
    words = [word for word in re.split(r"[\s,\[\]]+", text) if word]
    for word in words:
        if re.fullmatch(r"[+-]?[0-9]{1,20}", word) is None:
            raise InputError(expected="token ids", found=quoted(word, 40))
    return [int(word) for word in words]


def _of_json(text: str) -> list[int]:
    try:
        value: Any = json_format.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {error}") from None
    ids = value.get("ids")
    if not isinstance(ids, list) or any(type(i) is not int for i in ids):
        raise InputError(expected='"ids" with a list of integers', found=quoted(ids, 40))
    return ids
