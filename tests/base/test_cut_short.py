"""Files that somebody cuts short while they are open: typed errors, or the end by SIGBUS that the docs tell of."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from program import BARD, check, run

if sys.platform != "win32":
    PROGRAM = """
import os, shutil, sys, threading
import numpy as np, lowbit

bard, folder = sys.argv[1:3]
path = folder + "/m.gguf"
lowbit.convert(bard, path, "F16", verify=False, provenance=False)

def refused(call):
    try:
        call()
    except lowbit.FileError as error:
        print(error)
    else:
        print("no error")
"""

    @pytest.mark.parametrize("threads", [1, 2])
    @pytest.mark.parametrize("call", ["logits([1, 2])", "generate([1], max_tokens=1)"])
    def test_a_model_whose_file_is_cut_short(tmp_path: Path, call: str, threads: int) -> None:
        code = f"""
shutil.copytree(bard, folder + "/hf")
for model, file in ((path, path), (folder + "/hf", folder + "/hf/model.safetensors")):
    whole = open(file, "rb").read()
    loaded = lowbit.load(model, threads={threads})
    loaded.{call}
    # In the midst of a call: the layers after the first lie behind its end.
    loaded.observe(lambda name, x: name == "blk.0.attn_output.weight" and os.truncate(file, 4096))
    refused(lambda: loaded.{call})
    loaded.observe(None)
    refused(lambda: loaded.{call})  # before it
    open(file, "wb").write(whole)
    refused(lambda: loaded.{call})  # some of the map are zeros since
    lowbit.load(model, threads={threads}).{call}
    print("whole")
"""
        lines = check(PROGRAM + code, BARD, tmp_path).split("\n")[:-1]
        for found, name in ((lines[:4], "m.gguf"), (lines[4:], "model.safetensors")):
            assert [name in line and "became shorter" in line for line in found] == [True, True, True, False]
            assert found[3] == "whole"

    def test_tensors_whose_file_is_cut_short(tmp_path: Path) -> None:
        code = """
lowbit.quantize_file(path, folder + "/q.gguf", "Q4_0")
opened = lowbit.gguf.open(folder + "/q.gguf")
name = next(name for name, t in opened.tensors.items() if isinstance(t, lowbit.QTensor))
tensor = opened.tensors[name]
os.truncate(folder + "/q.gguf", 4096)
refused(lambda: tensor.dequantize(threads=1))
refused(lambda: lowbit.matmul(np.ones((1, tensor.shape[1]), np.float32), tensor, threads=1))
refused(lambda: opened.tensors[name])
"""
        lines = check(PROGRAM + code, BARD, tmp_path).split("\n")[:-1]
        assert len(lines) == 3
        assert all("q.gguf" in line for line in lines)
        assert "no error" not in lines

    def test_opening_a_file_that_is_cut_short_meanwhile(tmp_path: Path) -> None:
        code = """
lowbit.gguf.write(path, {f"k{i}": "v" * 50 for i in range(30000)}, {})
whole, stop = open(path, "rb").read(), threading.Event()

def cut():
    while not stop.is_set():
        os.truncate(path, 4096)
        open(path, "r+b").write(whole)

thread = threading.Thread(target=cut)
thread.start()
for _ in range(60):
    try:
        lowbit.gguf.open(path)
    except (lowbit.FileError, lowbit.FormatError):
        pass
stop.set()
thread.join()
"""
        check(PROGRAM + code, BARD, tmp_path)

    VIEW = """
import os, sys
import lowbit

opened = lowbit.gguf.open(sys.argv[1])
tensor = opened.tensors["token_embd.weight"]
os.truncate(sys.argv[1], 4096)
print(tensor.sum())
"""

    @pytest.mark.parametrize("options", [(), ("-X", "faulthandler")])
    def test_numpy_reading_lost_bytes_ends_the_process(tmp_path: Path, options: tuple[str, ...]) -> None:
        import lowbit

        lowbit.convert(BARD, tmp_path / "m.gguf", "F16", verify=False, provenance=False)
        result = run(VIEW, tmp_path / "m.gguf", options=options)
        assert (result.returncode, result.stdout) == (-signal.SIGBUS, "")
        assert bool(result.stderr) == bool(options)  # the handler that was there before ours still tells where
