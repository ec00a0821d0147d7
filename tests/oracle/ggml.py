"""ggml's own encoders and decoders, in a process of their own: on some inputs ggml ends the process it runs in.

python ggml.py LIBGGML_BASE    answers pickled requests on stdin; `Ggml` starts it
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
import make_golden


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

    def encode(self, kind: int, x: np.ndarray, importance: np.ndarray | None) -> np.ndarray | None:
        """The blocks, uint8 (rows, row bytes) of float32 (rows, K); None where ggml aborts."""
        return self._ask("encode", kind, x, importance)

    def decode(self, kind: int, blocks: np.ndarray, like: np.ndarray) -> np.ndarray | None:
        """The floats of blocks, an array like `like`; None where ggml aborts."""
        return self._ask("decode", kind, blocks, like)

    def close(self) -> None:
        self._worker.communicate()

    def _ask(self, *request: object) -> np.ndarray | None:
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        pickle.dump(request, self._worker.stdin)
        self._worker.stdin.flush()
        return pickle.load(self._worker.stdout)


def serve() -> None:
    library = make_golden.load(sys.argv[1])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # ggml prints there before it ends the process
    functions = {"encode": make_golden.encode, "decode": make_golden.decode}
    while True:
        try:
            function, kind, *arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        library.ggml_quantize_init(kind)  # some formats' tables take seconds; the children inherit them
        child = os.fork()
        if child == 0:
            pickle.dump(functions[function](library, kind, *arguments), answers)
            answers.flush()
            os._exit(0)
        if os.waitpid(child, 0)[1] != 0:
            pickle.dump(None, answers)
            answers.flush()


if __name__ == "__main__":
    serve()
