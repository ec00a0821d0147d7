"""ggml's own encoders and decoders, in a process of their own: on some inputs ggml ends the process it runs in.

python ggml.py LIBGGML_BASE    answers pickled requests on stdin; `Ggml` starts it
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
import make_golden


class Ggml:
    """One worker, started again after ggml has ended it."""

    def __init__(self, library: str) -> None:
        self._library = library
        self._worker: subprocess.Popen[bytes] | None = None

    def encode(self, kind: int, x: np.ndarray, importance: np.ndarray | None) -> np.ndarray | None:
        """The blocks, uint8 (rows, row bytes) of float32 (rows, K); None where ggml aborts."""
        return self._ask("encode", kind, x, importance)

    def decode(self, kind: int, blocks: np.ndarray, like: np.ndarray) -> np.ndarray | None:
        """The floats of blocks, an array like `like`; None where ggml aborts."""
        return self._ask("decode", kind, blocks, like)

    def close(self) -> None:
        if self._worker is not None:
            self._worker.communicate()
            self._worker = None

    def _ask(self, *request: object) -> np.ndarray | None:
        if self._worker is None:
            command = [sys.executable, __file__, self._library]
            self._worker = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        pickle.dump(request, self._worker.stdin)
        self._worker.stdin.flush()
        try:
            return pickle.load(self._worker.stdout)
        except EOFError:
            self.close()
            return None


def serve() -> None:
    library = make_golden.load(sys.argv[1])
    answers = sys.stdout.buffer
    functions = {"encode": make_golden.encode, "decode": make_golden.decode}
    while True:
        try:
            function, *arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(functions[function](library, *arguments), answers)
        answers.flush()


if __name__ == "__main__":
    serve()
