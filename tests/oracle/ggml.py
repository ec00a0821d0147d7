"""ggml's own encoders and decoders, in a process of their own: on some inputs ggml ends the process it runs in.

python ggml.py LIBGGML_BASE    answers pickled requests on stdin; `Ggml` starts it
"""

from __future__ import annotations

import ctypes
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
import make_golden

#: Weights, and importances or None.
Inputs = Sequence[tuple[np.ndarray, "np.ndarray | None"]]


class Ggml:
    """One worker, which lets a child of its own answer each request."""

    def __init__(self, library: str) -> None:
        self._worker = subprocess.Popen(
            [sys.executable, __file__, library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},  # else it waits for a debugger
        )

    def encode(self, kind: int, inputs: Inputs) -> list[np.ndarray | None]:
        """The blocks, uint8 (rows, row bytes) of each float32 (rows, K) with importances; None where ggml aborts."""
        return self._ask("encode", [(kind, *arguments) for arguments in inputs])

    def can_decode(self, kind: int) -> bool:
        """Whether ggml has a decoder for the type: not for those that it only multiplies with."""
        return bool(self._ask("can_decode", [(kind,)])[0])

    def decode(self, kind: int, blocks: Sequence[np.ndarray], like: Sequence[np.ndarray]) -> list[np.ndarray | None]:
        """The floats of blocks, arrays like `like`; None where ggml aborts."""
        return self._ask("decode", [(kind, *arguments) for arguments in zip(blocks, like, strict=True)])

    def close(self) -> None:
        self._worker.communicate()

    def _ask(self, function: str, calls: list[tuple[Any, ...]]) -> list[Any]:
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        pickle.dump((function, calls), self._worker.stdin)
        self._worker.stdin.flush()
        return pickle.load(self._worker.stdout)


def serve() -> None:
    library = make_golden.load(sys.argv[1])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # ggml prints there before it ends the process
    while True:
        try:
            function, calls = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        library.ggml_quantize_init(calls[0][0])  # some formats' tables take seconds; the children inherit them
        results = in_child(library, function, calls)
        if results is None:  # one of them ended the child
            results = [(in_child(library, function, [call]) or [None])[0] for call in calls]
        pickle.dump(results, answers)
        answers.flush()


def in_child(library: ctypes.CDLL, function: str, calls: list[tuple[Any, ...]]) -> list[Any] | None:
    """The results of calls, made in a process that ggml may end: then None."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump([getattr(make_golden, function)(library, *arguments) for arguments in calls], pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    return pickle.loads(data) if os.waitpid(child, 0)[1] == 0 else None


if __name__ == "__main__":
    serve()
