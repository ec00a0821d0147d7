"""Output of a verification's result, for verify, convert and quantize."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lowbit.base.quoting import one_line
from lowbit.cli.console import print_json
from lowbit.cli.tables import print_table

if TYPE_CHECKING:
    from lowbit.conversion.verification import Verdict

_WORDS = {True: "ok", False: "FAILED", None: "not run"}


def print_verdict(verdict: Verdict) -> None:
    """Prints the verdict as a table."""
    rows = [[check.name, _WORDS[check.ok], check.detail] for check in verdict.checks]
    print(one_line(f"{verdict.path} against {verdict.source}: {verdict.word}"))
    print_table(["check", "verdict", "found"], rows)


def verdict_as_json(verdict: Verdict) -> dict[str, Any]:
    """The verdict with all figures, for JSON."""
    checks = [
        {"name": check.name, "verdict": _WORDS[check.ok], "found": check.detail, **check.figures}
        for check in verdict.checks
    ]
    return {"path": verdict.path, "source": verdict.source, "ok": verdict.ok, "verdict": verdict.word, "checks": checks}


@contextmanager
def showing_failed_verdict(json: bool) -> Iterator[None]:
    """Prints the verdict of a conversion that fails verification in the block."""
    from lowbit.base.errors import Error

    try:
        yield
    except Error as error:
        verdict = getattr(
            error, "verdict", None
        )  # importing its class would load the tokenizers library for every command
        if verdict is not None and json:
            print_json({"written": False, "verdict": verdict_as_json(verdict)})
        elif verdict is not None:
            print_verdict(verdict)
        raise
