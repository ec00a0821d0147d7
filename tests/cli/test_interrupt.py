"""Ctrl-C at any moment from the first line on: exit status 130, and no traceback."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lowbit

BARD = Path(lowbit.__file__).parent / "data" / "bard"
#: Sends itself a signal when a module begins to be imported; the rest is what the entry point does.
PROGRAM = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from lowbit.cli import main
main(sys.argv[2:])
"""
#: What is imported by the command itself and by the work, in this order.
MODULES = [
    "typer", "lowbit.cli.execution", "lowbit.cli.console", "lowbit.cli.convert", "lowbit.conversion.convert", "numpy",
    "numpy.linalg", "ml_dtypes", "lowbit.gguf.reading", "lowbit.tokenizer.load", "tokenizers",
]  # fmt: skip


def ended(*line: object) -> tuple[int, str, str]:
    result = subprocess.run([sys.executable, *map(str, line)], capture_output=True, text=True, check=False, timeout=60)
    return result.returncode, result.stdout, result.stderr.strip()


@pytest.mark.parametrize("module", MODULES)
def test_ctrl_c_during_an_import(module: str, tmp_path: Path) -> None:
    arguments = ["convert", BARD, tmp_path / "x.gguf", "-f", "Q8_0"]
    assert ended("-c", PROGRAM, module, *arguments) == (130, "", "")
    assert list(tmp_path.iterdir()) == []


def test_little_is_imported_before_ctrl_c_is_heard() -> None:
    """-S: modules of `site` come before anything of lowbit."""
    code = f"import sys; sys.path[:] = {sys.path}; import lowbit.cli; print(sorted(sys.modules))"
    _, loaded, _ = ended("-S", "-c", code)
    assert "lowbit.cli" in loaded
    assert not {"typing", "re", "contextlib"} & {*ast.literal_eval(loaded)}


def test_ctrl_c_in_the_last_import() -> None:
    """What waits for its end is not forgotten, and the timer does not outlive Python's handlers of signals."""
    code = PROGRAM.replace("from lowbit.cli import main\n", """
from lowbit.cli import execution, main
execution.execute = lambda arguments: __import__("colorsys") and 0
""")  # fmt: skip
    assert ended("-c", code, "colorsys") == (130, "", "")


def test_ctrl_c_in_a_destructor() -> None:
    """Python prints what a destructor raises, and goes on."""
    code = PROGRAM.replace("from lowbit.cli import main\n", """
import time
from lowbit.cli import execution, main
class Destroyed:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
def execute(arguments):
    Destroyed()
    for _ in range(1000):
        time.sleep(0.01)
    return 0
execution.execute = execute
""")  # fmt: skip
    assert ended("-c", code, "none") == (130, "", "")


def test_ctrl_c_right_after_the_start(tmp_path: Path) -> None:
    """A line of a .pth file or of sitecustomize is the first of ours that Python runs."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, lowbit.cli\n"
        "leave = lowbit.cli._status\n"
        "lowbit.cli._status = lambda arguments: (os.kill(os.getpid(), signal.SIGINT), leave(arguments))[1]\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(lowbit.__file__).parents[1])])
    result = subprocess.run(
        [sys.executable, "-m", "lowbit", "--help"], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr.strip()) == (130, "", "")


def test_ctrl_c_that_a_parent_ignores_is_ignored() -> None:
    code = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{PROGRAM}"
    status, out, err = ended("-c", code, "typer", "formats", "--json")
    assert (status, err) == (0, "")
    assert out
