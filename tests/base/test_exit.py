"""The end of the interpreter, with daemon threads inside the core."""

from __future__ import annotations

import pytest
from program import BARD, run

# The calls overlap, so that the main thread ends while one of them is inside the core. An observer computes in Python,
# where a thread is ended, too.
PROGRAM = """
import sys, threading
import numpy as np, lowbit

w = np.ones((256, 2048), np.float32)
q = lowbit.quantize(w, "Q4_K", threads=1)
logits = np.zeros((64, 4096), np.float32)
model = lowbit.load(sys.argv[2], threads=int(sys.argv[3]))
calls = {
    "quantize": lambda: lowbit.quantize(w, "IQ4_XS", threads=1),
    "matmul": lambda: lowbit.matmul(w[:8], q, threads=1),
    "dequantize": lambda: q.dequantize(threads=1),
    "forward": lambda: model.logits([1] * 100),
    "observed": lambda: model.logits([1] * 100),
    "truncate": lambda: model.truncate(0),
    "log_probabilities": lambda: lowbit._core.log_probabilities(logits, np.zeros(64, np.int64), 1),
}
if sys.argv[1] == "observed":
    model.observe(lambda name, x: sum(range(3000)))
call, running = calls[sys.argv[1]], [threading.Event() for _ in range(3)]

def work(event):
    while True:
        call()
        event.set()

for event in running:
    threading.Thread(target=work, args=(event,), daemon=True).start()
for event in running:
    event.wait()
"""


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("call", ["forward", "observed"])
def test_the_interpreter_ends_while_a_daemon_thread_runs_a_model(call: str, threads: int) -> None:
    result = run(PROGRAM, call, BARD, threads)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("call", ["quantize", "matmul", "dequantize", "truncate", "log_probabilities"])
def test_the_interpreter_ends_while_a_daemon_thread_is_inside_the_core(call: str) -> None:
    result = run(PROGRAM, call, BARD, 1)
    assert (result.returncode, result.stderr) == (0, "")
