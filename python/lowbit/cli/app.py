"""The typer application, in which each command registers itself, and the options before a command.

Functions import the rest of the package when they need it, so `lowbit --help` does not load it.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from lowbit.cli.options import existing_file

#: The commands in the order of the help. Each is in the file of this folder with its name.
SECTIONS = {
    "Convert and run": ("demo", "convert", "quantize", "run", "chat", "tokenize", "detokenize"),
    "Measure and verify": ("verify", "perplexity", "ladder", "bench", "imatrix"),
    "Files": ("inspect", "diff", "metadata", "formats", "split", "merge", "export", "onnx"),
}


class Commands(TyperGroup):
    """The root command. Its help lists the commands in sections."""

    # Any, because typer has its own copy of click or uses the installed one, depending on its version.
    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the sections."""
        longest = max(map(len, self.commands))
        for section, names in SECTIONS.items():
            texts = [self.commands[name].get_short_help_str(formatter.width - longest - 6) for name in names]
            with formatter.section(section):
                formatter.write_dl([(name.ljust(longest), text) for name, text in zip(names, texts, strict=True)])


@dataclass
class Settings:
    """Values of the options before the command."""

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


def root_command(first: str = "") -> Any:
    """The click command with all subcommands. first: the first argument; if it is a subcommand, only that is loaded,
    which saves 0.05 s."""
    names = [name for names in SECTIONS.values() for name in names]
    for name in [first] if first in names else names:
        importlib.import_module(f"lowbit.cli.{name}")
    return get_command(app)


def examples(*lines: str) -> str:
    """Examples for the end of a command's help, one per line."""
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
            parser=existing_file,
            help="Run a Python file that describes an architecture (docs/add-an-arch.md); repeatable.",
        ),
    ] = None,
) -> None:
    """Quantizes checkpoints to GGUF, measures the loss, and runs them on the CPU."""
    settings.debug = settings.debug or debug
    if arch:
        from lowbit.arch import register

        for file in arch:
            register(file, replace=True)
