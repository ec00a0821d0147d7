"""Arguments and options that several commands share, and checks of their values."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from lowbit.base.compute import COMPUTE_MODES
from lowbit.base.files import decoded
from lowbit.base.quoting import quoted, shown

Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", "-t", min=1, max=1024, help="Number of threads. [default: LOWBIT_THREADS, else one per processor]"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@contextmanager
def wrong_usage(option: str | None = None) -> Iterator[None]:
    """Reports an InputError of the block as wrong usage of `option`; None: of the option that is being parsed."""
    from lowbit.base.errors import InputError

    try:
        yield
    except InputError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def any_path(text: str) -> Path:
    """A path with `~` expanded."""
    from lowbit.base.paths import checked

    with wrong_usage():
        return Path(checked(text))


def existing(text: str) -> Path:
    """A path with `~` expanded, which must exist."""
    path = any_path(text)
    if not os.path.exists(path):
        raise typer.BadParameter(f"{shown(path)}: no such file")
    return path


def existing_file(text: str) -> Path:
    """A path with `~` expanded, which must exist and not be a folder."""
    path = existing(text)
    if os.path.isdir(path):
        raise typer.BadParameter(f"{shown(path)} is a folder, expected a file")
    return path


def _gguf_file(text: str) -> Path:
    path = existing(text)
    if os.path.isdir(path):
        raise typer.BadParameter(
            f"{shown(path)} is a folder, expected a GGUF file; lowbit convert makes one from a checkpoint"
        )
    return path


def gguf_argument(metavar: str, help: str) -> Any:
    """An argument with the path of an existing GGUF file."""
    return typer.Argument(metavar=metavar, parser=_gguf_file, help=help)


def one_of(*values: str) -> Callable[[str | None], str | None]:
    """A callback that accepts only these values, in any case."""

    def check(value: str | None) -> str | None:
        if value is not None and value.lower() not in values:
            raise typer.BadParameter(f"expected one of {', '.join(values)}, got {quoted(value)}")
        return value and value.lower()

    return check


def finite(value: Any) -> Any:
    """A callback that refuses NaN and infinity in a number or a list of numbers."""
    for number in value if isinstance(value, list) else [value]:
        if number is not None and not math.isfinite(number):
            raise typer.BadParameter(f"expected a finite number, got {number}")
    return value


Compute = Annotated[
    str,
    typer.Option(
        "--compute",
        help="Arithmetic of matrix products: auto, int8, int16, bf16, or f32 (exact).",
        callback=one_of(*COMPUTE_MODES),
    ),
]
Mmap = Annotated[
    bool,
    typer.Option(
        "--mmap/--no-mmap",
        help="Use weights where the file is mapped, or copy them to memory in large pages, which can be read faster.",
    ),
]
ModelPath = Annotated[str, typer.Argument(metavar="MODEL", help="GGUF file, checkpoint folder or hub id.")]
ExistingFile = Annotated[Path, typer.Argument(metavar="FILE", parser=existing_file, help="Text in UTF-8.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be written, with exact sizes, and write nothing.")
]


Lora = Annotated[
    list[str] | None,
    typer.Option("--lora", metavar="DIR", help="PEFT adapter to merge, a folder or hub id; repeatable."),
]
LoraScale = Annotated[
    list[float] | None,
    typer.Option(
        "--lora-scale",
        metavar="S",
        help="Factor for the adapters: one for all, or one for each.",
        callback=finite,
    ),
]


def _known_class(value: str | None) -> str | None:
    from lowbit.arch.registry import of_class

    if value is not None:
        parsed("--like", of_class, [value])
    return value


Like = Annotated[
    str | None,
    typer.Option(
        "--like",
        metavar="CLASS",
        callback=_known_class,
        help="Read a checkpoint of an unknown class as this class, for example LlamaForCausalLM.",
    ),
]


def scale_of(lora_scale: list[float] | None) -> float | list[float]:
    """The value of --lora-scale for Python: one number for all adapters, or a list with one for each."""
    scales = lora_scale or [1.0]
    return scales[0] if len(scales) == 1 else scales


def parsed(option: str, parse: Callable[[str], Any], texts: Sequence[str]) -> list[Any]:
    """The parsed values of an option. An InputError of `parse` is reported as wrong usage."""
    with wrong_usage(option):
        return [parse(text) for text in texts]


def stdin_text() -> str:
    """All of stdin, unchanged. Raises FormatError if it is not UTF-8."""
    return decoded(sys.stdin.buffer.read(), "stdin")
