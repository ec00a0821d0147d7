"""The memory of quantizing and writing: that of some weights, not of the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lowbit
from lowbit.onnx import Graph, Model, Node, Tensor, Value

PEAK = """
import sys, lowbit
import lowbit.onnx.{module}
def peak():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
source, target = sys.argv[1:]
before = peak()
{code}
print(peak() - before)
"""
QUANTIZE = "lowbit.onnx.quantize(source, target, external_data=True, threads=1, mode={mode!r}, **{options})"

if sys.platform == "linux":

    @pytest.mark.parametrize(
        ("module", "code", "most"),
        [
            ("weight_only", QUANTIZE.format(mode="weight-only", options={"method": "round"}), 24e6),
            ("dynamic", QUANTIZE.format(mode="dynamic", options={"search": False}), 40e6),
            ("float16", QUANTIZE.format(mode="float16", options={}), 40e6),
            ("float16", QUANTIZE.format(mode="bfloat16", options={}), 40e6),
            ("writing", "lowbit.onnx.write(target, lowbit.onnx.open(source))", 28e6),
            ("writing", "lowbit.onnx.write(target, lowbit.onnx.open(source), external_data=False)", 28e6),
        ],
    )
    def test_memory_does_not_grow_with_the_model(tmp_path: Path, module: str, code: str, most: float) -> None:
        """Neither the weights of 128 MB nor what is made of them (18 to 64 MB) stay in memory; one has 8 MB."""
        tensors = {f"w{i}": Tensor.of(f"w{i}", np.full((1024, 2048), i + 1, np.float32)) for i in range(16)}
        names = ["x", *(f"v{i}" for i in range(15)), "y"]
        nodes = [Node.of("Gemm", [names[i], f"w{i}"], [names[i + 1]], name=f"gemm{i}", transB=i % 2) for i in range(16)]
        graph = Graph("g", tuple(nodes), tensors, (Value.of("x", np.float32),), (Value.of("y", np.float32),))
        lowbit.onnx.write(tmp_path / "in.onnx", Model(graph, {"": 21}, 10), external_data=True)
        program = PEAK.format(module=module, code=code)
        (tmp_path / "out").mkdir()
        command = [sys.executable, "-c", program, tmp_path / "in.onnx", tmp_path / "out" / "out.onnx"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert int(done.stdout) < most
