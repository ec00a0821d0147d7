"""Processes forked while the core computes or writes."""

from __future__ import annotations

import sys
from pathlib import Path

from program import BARD, check

if sys.platform != "win32":
    PROGRAM = """
import os, signal, sys, threading, warnings
import numpy as np, lowbit

warnings.simplefilter("ignore")  # newer versions warn of forks with threads

def in_child(action):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # ends a child that waits for ever
        try:
            print(action(), flush=True)
        except lowbit.Error as error:
            print(type(error).__name__, flush=True)
        os._exit(0)
    print("child", os.waitpid(pid, 0)[1], flush=True)
"""

    def test_a_child_forked_while_a_model_computes_gets_an_error() -> None:
        code = """
model = lowbit.load(sys.argv[1], threads=2)
expected = model.logits([1, 2])
entered, go = threading.Event(), threading.Event()

def wait(name, x):
    entered.set()
    go.wait()

model.observe(wait)
thread = threading.Thread(target=lambda: model.logits([1, 2]))
thread.start()
entered.wait()
in_child(lambda: model.logits([1, 2]))
in_child(lambda: model.truncate(0))
in_child(lambda: model.observe(None))
in_child(lambda: lowbit.load(sys.argv[1], threads=2).logits([1, 2]).tobytes() == expected.tobytes())
go.set()
thread.join()
model.observe(None)
in_child(lambda: model.logits([1, 2]).tobytes() == expected.tobytes())
print(model.logits([1, 2]).tobytes() == expected.tobytes())
"""
        error, fine = ["InputError", "child 0"], ["True", "child 0"]
        assert check(PROGRAM + code, BARD).split("\n")[:-1] == [*error, *error, *error, *fine, *fine, "True"]

    def test_a_child_forked_while_the_pool_computes_has_a_pool() -> None:
        code = """
w = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
expected = lowbit.quantize(w, "Q8_0", threads=1).data.tobytes()
stop = threading.Event()

def work(threads):
    while not stop.is_set():
        lowbit.quantize(w, "Q8_0", threads=threads)

workers = [threading.Thread(target=work, args=(n,)) for n in (2, 5)]
for worker in workers:
    worker.start()
for _ in range(20):
    in_child(lambda: lowbit.quantize(w, "Q8_0", threads=4).data.tobytes() == expected)
stop.set()
"""
        assert check(PROGRAM + code).split("\n")[:-1] == ["True", "child 0"] * 20

    def test_a_child_forked_while_a_sequence_is_chosen_can_choose_one() -> None:
        code = """
model = lowbit.load(sys.argv[1], threads=1, max_sequences=100)
stop = threading.Event()

def work():
    while not stop.is_set():
        with model._sequences.take([1] * 50):
            pass

sys.setswitchinterval(1e-6)
workers = [threading.Thread(target=work) for _ in range(3)]
for worker in workers:
    worker.start()
for _ in range(20):
    in_child(lambda: model.logits([1]).shape[0])
stop.set()
"""
        assert check(PROGRAM + code, BARD).split("\n")[:-1] == ["1", "child 0"] * 20

    def test_the_end_of_a_child_leaves_its_parents_file_alone(tmp_path: Path) -> None:
        code = """
from lowbit.base.atomic import AtomicFile

path = sys.argv[1]
writer = lowbit.gguf.Writer(path + "/a.gguf", {}, [lowbit.gguf.TensorInfo("a", (4,), "F32")])
file = AtomicFile(path + "/b")
file.write(b"one")
for action in (
    lambda: None,
    lambda: writer.write(np.ones(4, np.float32)),
    lambda: writer.finish(),
    lambda: writer._core.abort(),
    lambda: file.write(b"?"),
    lambda: file.__exit__(None, None, None),
    lambda: file.__exit__(ValueError, ValueError(), None),
):
    in_child(action)
if os.fork() == 0:
    sys.exit()  # runs destructors
os.wait()
writer.write(np.ones(4, np.float32))
writer.finish()
file.write(b"two")
file.__exit__(None, None, None)
print(sorted(os.listdir(path)), open(path + "/b").read())
"""
        fine, error = ["None", "child 0"], ["InputError", "child 0"]
        found = check(PROGRAM + code, tmp_path).split("\n")[:-1]
        assert found == [*fine, *error, *error, *fine, *error, *error, *fine, "['a.gguf', 'b'] onetwo"]
