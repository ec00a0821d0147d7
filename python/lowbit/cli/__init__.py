"""The command `lowbit`: one file a command, named after it, in the order of `app.SECTIONS`.

Results go to stdout, everything else to stderr. The exit status is 0, 1 (the work failed; one line says why) or 2
(wrong usage); 130 after Ctrl-C, 143 after a request to terminate. `lowbit diff` exits as diff does.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # loading `typing` takes a while, in which Ctrl-C prints a traceback
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType
    from typing import NoReturn

_INTERRUPTED = 128 + signal.SIGINT
#: How long Ctrl-C waits where it could get lost: so many times, so many seconds each.
_MOST_WAITS, _WAIT_SECONDS = 200, 0.02
_waits = 0


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command with `arguments` (those of the process by default) and ends the process."""
    is_heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a shell's `&` has Ctrl-C ignored
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
        print(file=sys.stderr)  # whatever comes next begins a line
        status = _INTERRUPTED
    sys.exit(status)


def _status(arguments: Sequence[str] | None) -> int:
    from lowbit.cli.execution import execute  # with all commands, and packages that take long to load

    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, _interrupt)
    return execute(sys.argv[1:] if arguments is None else arguments)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Ctrl-C before the command begins and after it ended: there is nothing to clean up."""
    os.write(2, b"\n")
    os._exit(_INTERRUPTED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C while the command runs. An import is waited for: exceptions that come inside one can get lost."""
    global _waits
    if not (_is_importing(frame) and _waits < _MOST_WAITS and _comes_again()):
        _waits = 0
        raise KeyboardInterrupt


def _ignored(event: sys.UnraisableHookArgs) -> None:
    """Ctrl-C in a destructor or the like, where Python prints exceptions and goes on, comes again."""
    if event.exc_type is not KeyboardInterrupt or not _comes_again():
        sys.__unraisablehook__(event)


def _comes_again() -> bool:
    """Whether Ctrl-C comes again in a moment: not on Windows."""
    global _waits
    if sys.platform == "win32":
        return False
    _waits += 1
    signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, _WAIT_SECONDS)
    return True


def _still_waits() -> bool:
    """Whether Ctrl-C has yet to come again as the command ends. The timer must not outlive Python's signal handlers."""
    return sys.platform != "win32" and _waits > 0 and signal.setitimer(signal.ITIMER_REAL, 0)[0] > 0


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
