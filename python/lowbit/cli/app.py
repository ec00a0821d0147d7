"""The application that the commands add themselves to, and the options they share.

The rest of the package is imported inside the functions that use it, so that `lowbit --help` loads nothing of it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

Threads = Annotated[
    int | None,
    typer.Option("--threads", "-t", min=1, max=1024, help="Threads. [default: LOWBIT_THREADS, else one a processor]"),
]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]


def gguf_argument(metavar: str, help: str) -> Any:
    """An argument that names a GGUF file which is there."""

    def check(path: Path) -> Path:
        if os.path.isdir(path):
            raise typer.BadParameter(f"{path} is a folder; lowbit convert makes a GGUF file of a checkpoint")
        return path

    return typer.Argument(metavar=metavar, exists=True, callback=check, help=help)


def one_of(*values: str) -> Callable[[str | None], str | None]:
    """A callback that refuses other values."""

    def check(value: str | None) -> str | None:
        if value is not None and value.lower() not in values:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(values)}")
        return value and value.lower()

    return check


def finite(value: Any) -> Any:
    """A callback that refuses NaN and infinities: of a number, of several, or of none."""
    for number in value if isinstance(value, list) else [value]:
        if number is not None and not math.isfinite(number):
            raise typer.BadParameter(f"{number} is no finite number")
    return value


Compute = Annotated[
    str,
    typer.Option(
        "--compute",
        help="Arithmetic of matrix products: auto, int8, bf16, or f32, which is exact.",
        callback=one_of("auto", "int8", "bf16", "f32"),
    ),
]
ModelPath = Annotated[str, typer.Argument(metavar="MODEL", help="GGUF file, checkpoint folder or hub id.")]
ExistingFile = Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="Text in UTF-8.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be written, to the byte, and write nothing.")]


def _split_size(text: str) -> str:
    from lowbit import InputError
    from lowbit.gguf.splits import SplitLimits

    try:
        SplitLimits.parsed(text, 0, no_tensor_first=False)
    except InputError as error:
        raise typer.BadParameter(str(error)) from None
    return text


SplitMaxSize = Annotated[
    str,
    typer.Option(
        "--split-max-size",
        metavar="N[K|M|G]",
        help="Several files, each of so many bytes of tensors.",
        callback=_split_size,
    ),
]
SplitMaxTensors = Annotated[
    int, typer.Option("--split-max-tensors", min=0, help="Several files, each of so many tensors.")
]
NoTensorFirst = Annotated[
    bool, typer.Option("--no-tensor-first-split", help="The first of several files has metadata alone.")
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
        help="Multiplies what the adapters add: once for all, or for each.",
        callback=finite,
    ),
]


def scale_of(lora_scale: list[float] | None) -> float | list[float]:
    """What --lora-scale means: one number for all adapters, or one for each."""
    scales = lora_scale or [1.0]
    return scales[0] if len(scales) == 1 else scales


def parsed(option: str, parse: Callable[[str], Any], texts: Sequence[str]) -> list[Any]:
    """What an option was given, parsed; text that cannot be is wrong usage."""
    from lowbit import InputError

    try:
        return [parse(text) for text in texts]
    except InputError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


#: The commands as the help lists them.
SECTIONS = {
    "Convert and run": ("demo", "convert", "quantize", "run", "chat", "tokenize", "detokenize"),
    "Measure and verify": ("verify", "perplexity", "ladder", "bench", "imatrix"),
    "Files": ("inspect", "diff", "metadata", "formats", "split", "merge", "export"),
}


class Commands(TyperGroup):
    """Lists its commands in sections."""

    # typer brings its own click, or uses the installed one, depending on its version.
    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the sections."""
        longest = max(map(len, self.commands))
        for section, names in SECTIONS.items():
            texts = [self.commands[name].get_short_help_str(formatter.width - longest - 6) for name in names]
            with formatter.section(section):
                formatter.write_dl([(name.ljust(longest), text) for name, text in zip(names, texts, strict=True)])


@dataclass
class Settings:
    """What the options before the command set."""

    debug: bool = os.environ.get("LOWBIT_DEBUG", "") not in ("", "0")


settings = Settings()

app = typer.Typer(
    name="lowbit",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def examples(*lines: str) -> str:
    """The end of a command's help: examples, one a line."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def _version(asked: bool) -> None:
    if asked:
        from lowbit import __version__
        from lowbit.base import simd

        print(f"lowbit {__version__} ({simd.current()})")
        raise typer.Exit


@app.callback(
    epilog=examples(
        "lowbit demo",
        "lowbit convert ./SmolLM2-135M smol.gguf --format Q4_K_M",
        'lowbit run smol.gguf "Once upon a time"',
    )
)
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and the SIMD target.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error, as LOWBIT_DEBUG=1 does.")
    ] = False,
    arch: Annotated[
        list[Path] | None,
        typer.Option(
            "--arch",
            metavar="FILE.py",
            exists=True,
            dir_okay=False,
            help="Run a Python file that describes an architecture (docs/add-an-arch.md); repeatable.",
        ),
    ] = None,
) -> None:
    """Quantizes checkpoints to GGUF, measures what was lost, and runs them on the CPU."""
    settings.debug = settings.debug or debug
    if arch:
        from lowbit.arch import register

        for file in arch:
            register(file, replace=True)
