"""Runs the command: exit statuses, messages of errors, Ctrl-C and requests to terminate."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

import typer

from lowbit.base.errors import Error
from lowbit.base.operation import operation
from lowbit.base.quoting import MOST_MESSAGE, one_line, reason
from lowbit.cli.app import root_command, settings
from lowbit.cli.console import Notes

# typer has its own copy of click or uses the installed one, depending on its version. Both have this class.
_UsageError = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def execute(arguments: Sequence[str]) -> int:
    """Runs the command with `arguments` and returns its exit status. Ctrl-C raises KeyboardInterrupt."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a character that the output's encoding lacks is not an error
    notes = Notes()
    logging.getLogger("lowbit").addHandler(notes)
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        with operation():
            status = root_command(*arguments[:1]).main(list(arguments), prog_name="lowbit", standalone_mode=False)
        sys.stdout.flush()
        status = status if isinstance(status, int) else 0
    except typer.Abort:  # click raises this for Ctrl-C
        raise KeyboardInterrupt from None
    except BrokenPipeError:
        # The reader of the pipe has closed it. Python would flush stdout again at exit and print an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if isinstance(error, _UsageError):
            _show_usage_error(error)
            return 2
        if settings.debug:
            raise
        print(f"lowbit: {_reason(error)}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, previous)
        logging.getLogger("lowbit").removeHandler(notes)
    return status


def _show_usage_error(error: Any) -> None:
    """Prints the fault in one line; for a command without arguments, its help."""
    text = error.format_message()
    if getattr(error, "ctx", None) is None or text == error.ctx.get_help():
        error.show()
        return
    command = error.ctx.command_path
    print(one_line(f"{command}: {text} ({command} --help)"), file=sys.stderr)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Turns SIGTERM into an exception, so that unfinished files are removed."""
    raise SystemExit(128 + number)


def _reason(error: Exception) -> str:
    """The error in one line; for a bug in lowbit, also how to get the traceback."""
    text = reason(error, MOST_MESSAGE)
    if isinstance(error, (Error, OSError)):
        return text
    if isinstance(error, MemoryError):
        return "not enough memory"
    return f"unexpected {type(error).__name__}: {text} (LOWBIT_DEBUG=1 shows the traceback)"
