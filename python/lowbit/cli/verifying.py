"""The command verify, and how every command shows a verdict."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowbit.base.quoting import one_line
from lowbit.cli.app import Json, Lora, LoraScale, Threads, app, examples, gguf_argument, scale_of
from lowbit.cli.console import print_json, print_table

if TYPE_CHECKING:
    from lowbit.conversion.verification import Verdict

_WORDS = {True: "ok", False: "FAILED", None: "not run"}


@app.command(
    epilog=examples(
        "lowbit verify model-Q4_K_M.gguf ./model",
        "lowbit verify model.gguf Qwen/Qwen3-0.6B --json",
        "lowbit verify tuned.gguf ./model --lora ./adapter --lora-scale 0.5",
    )
)
def verify(
    file: Annotated[Path, gguf_argument("FILE.gguf", "The file to verify.")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The checkpoint it was made of: folder or hub id.")],
    lora: Lora = None,
    lora_scale: LoraScale = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Compares a GGUF file with the checkpoint it was made of.

    Metadata, tensors, tokenizer and logits; adapters as they were given to convert. Exits with 1 if they differ where
    they must not.
    """
    import lowbit

    scale = scale_of(lora_scale)
    verdict = lowbit.verify(file, source, lora=lora or (), lora_scale=scale, threads=threads, progress=True)
    if json:
        print_json(verdict_as_json(verdict))
    else:
        print_verdict(verdict)
    if not verdict.ok:
        raise typer.Exit(1)


def print_verdict(verdict: Verdict) -> None:
    """The table."""
    rows = [[check.name, _WORDS[check.ok], check.detail] for check in verdict.checks]
    print(one_line(f"{verdict.path} against {verdict.source}: {verdict.word}"))
    print_table(["check", "verdict", "found"], rows)


def verdict_as_json(verdict: Verdict) -> dict[str, Any]:
    """The verdict with all figures."""
    checks = [
        {"name": check.name, "verdict": _WORDS[check.ok], "found": check.detail, **check.figures}
        for check in verdict.checks
    ]
    return {"path": verdict.path, "source": verdict.source, "ok": verdict.ok, "verdict": verdict.word, "checks": checks}


@contextmanager
def showing_failed_verdict(json: bool) -> Iterator[None]:
    """Shows the verdict of a conversion that failed for it."""
    from lowbit.base.errors import Error

    try:
        yield
    except Error as error:
        verdict = getattr(error, "verdict", None)  # its class would load a tokenizer's library for every command
        if verdict is not None and json:
            print_json({"written": False, "verdict": verdict_as_json(verdict)})
        elif verdict is not None:
            print_verdict(verdict)
        raise
