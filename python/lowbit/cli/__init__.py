"""The command `lowbit`. Each subcommand is in the file with its name; `app.SECTIONS` has their order in the help.

Results go to stdout, everything else to stderr. The exit status is 0, 1 (the work failed; one line says why) or 2
(wrong usage); 130 after Ctrl-C, 143 after a request to terminate. `lowbit diff` exits as diff does.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # as in lowbit/__init__.py
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType
    from typing import NoReturn

_INTERRUPTED = 128 + signal.SIGINT
#: A Ctrl-C that could get lost is postponed by this many seconds, at most this many times.
_MOST_WAITS, _WAIT_SECONDS = 200, 0.02
_waits = 0


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command with `arguments` (those of the process by default) and ends the process."""
    is_heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # False for a shell's background job (`&`)
    if is_heard:
        signal.signal(signal.SIGINT, _leave)
        sys.unraisablehook = _ignored
    try:
        status = _status(arguments)
        if is_heard:
            signal.signal(signal.SIGINT, _leave)
        if _still_waits():
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        if is_heard:
            signal.signal(signal.SIGINT, _leave)
        print(file=sys.stderr)  # further output starts on a new line
        status = _INTERRUPTED
    sys.exit(status)


def _status(arguments: Sequence[str] | None) -> int:
    from lowbit.cli.execution import execute  # imports packages that are slow to import

    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, _interrupt)
    return execute(sys.argv[1:] if arguments is None else arguments)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Handles Ctrl-C before the command starts and after it ends: there is nothing to clean up."""
    os.write(2, b"\n")
    os._exit(_INTERRUPTED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Handles Ctrl-C while the command runs. During an import it is postponed: an exception there can get lost."""
    global _waits
    if not (_is_importing(frame) and _waits < _MOST_WAITS and _comes_again()):
        _waits = 0
        raise KeyboardInterrupt


def _ignored(event: sys.UnraisableHookArgs) -> None:
    """Postpones Ctrl-C that arrives in a destructor or a callback, where Python prints exceptions and continues."""
    if event.exc_type is not KeyboardInterrupt or not _comes_again():
        sys.__unraisablehook__(event)


def _comes_again() -> bool:
    """Postpones Ctrl-C with a timer. Returns False if this is impossible, as on Windows."""
    global _waits
    if sys.platform == "win32":
        return False
    _waits += 1
    signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, _WAIT_SECONDS)
    return True


def _still_waits() -> bool:
    """Whether a postponed Ctrl-C is still due at the end of the command. Stops the timer, which must not outlive
    Python's signal handlers."""
    return sys.platform != "win32" and _waits > 0 and signal.setitimer(signal.ITIMER_REAL, 0)[0] > 0


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
