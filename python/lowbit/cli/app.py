"""The application that the commands add themselves to, and the options they share.

The rest of the package is imported inside the functions that use it, so that `lowbit --help` loads nothing of it.
"""

from __future__ import annotations

import os
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
Compute = Annotated[
    str, typer.Option("--compute", help="Arithmetic of matrix products: auto, int8, bf16, or f32, which is exact.")
]
ModelPath = Annotated[str, typer.Argument(metavar="MODEL", help="GGUF file, checkpoint folder or hub id.")]
ExistingFile = Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="Text in UTF-8.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be written, to the byte, and write nothing.")]
SplitMaxSize = Annotated[
    str, typer.Option("--split-max-size", metavar="N[K|M|G]", help="Several files, each of so many bytes of tensors.")
]
SplitMaxTensors = Annotated[
    int, typer.Option("--split-max-tensors", min=0, help="Several files, each of so many tensors.")
]
NoTensorFirst = Annotated[
    bool, typer.Option("--no-tensor-first-split", help="The first of several files has metadata alone.")
]

#: The commands as the help lists them.
SECTIONS = {
    "Convert and run": ("demo", "convert", "quantize", "run", "chat"),
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
        from lowbit import __version__, simd

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
