#!/usr/bin/env bash
# ONNX Runtime rounds float32 activations to 8 bits in a model whose weights alone are quantized.
#
# The graph is standard ONNX: DequantizeLinear of constant 4-bit or 8-bit weights, then MatMul, without a QuantizeLinear.
# From the level "extended" on, which the default includes, ONNX Runtime makes one MatMulNBits of the two, with
# `accuracy_level` 4: activations are rounded to 8 bits for each block of weights. It does so for weights with one scale,
# with one per column and with blocks of 32. The basic level, or the session entry
# `session.qdq_matmulnbits_accuracy_level` = 1, keeps float32 arithmetic.
#
# Likely guess: fusions keep the arithmetic up to the order of sums. DequantizeLinear gives float32 weights, and nothing
# in the graph quantizes the activations.
#
# Versions: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6, ml_dtypes 0.6.0, on the CPU. Errors are those of a float64
# product of the same weights, relative. Output:
#   int4, blocks of 32: basic float32, default 8 bits, with the entry float32
#   int8, blocks of 32: basic float32, default 8 bits, with the entry float32
#   int8, a scale per column: basic float32, default 8 bits, with the entry float32
#   int8, one scale: basic float32, default 8 bits, with the entry float32
#   beside an input of 1000, 31 inputs of 1 add 0.0 by default, 31.0 at the basic level
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6 ml_dtypes==0.6.0
cat > "$folder/show.py" <<'PYTHON'
import sys

import ml_dtypes
import numpy as np
import onnxruntime
from onnx import TensorProto, checker, helper, numpy_helper

ROWS, COLUMNS, BLOCK = 256, 64, 32
RANDOM = np.random.default_rng(0)
FLOAT = helper.make_tensor_value_info


def model(codes, scales, **attributes):
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scales"], ["weights"], **attributes),
        helper.make_node("MatMul", ["x", "weights"], ["y"]),
    ]
    constants = [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(scales, "scales")]
    x, y = (FLOAT(name, TensorProto.FLOAT, ["n", width]) for name, width in (("x", ROWS), ("y", COLUMNS)))
    graph = helper.make_graph(nodes, "product", [x], [y], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    checker.check_model(made, full_check=True)
    return made.SerializeToString()


def product(made, x, basic=False, entry=False):
    options = onnxruntime.SessionOptions()
    if basic:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if entry:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(made, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def arithmetic(result, expected):
    error = np.linalg.norm(result - expected) / np.linalg.norm(expected)
    return "float32" if error < 1e-6 else "8 bits" if 1e-3 < error < 2e-2 else f"error {error}"


x = RANDOM.standard_normal((4, ROWS)).astype(np.float32)
blocks = RANDOM.uniform(0.5, 1, (ROWS // BLOCK, COLUMNS)).astype(np.float32)
per_block = {"axis": 0, "block_size": BLOCK}
seen = []
for name, dtype, limit, scales, attributes in (
    ("int4, blocks of 32", ml_dtypes.int4, 8, blocks, per_block),
    ("int8, blocks of 32", np.int8, 128, blocks, per_block),
    ("int8, a scale per column", np.int8, 128, blocks[0], {"axis": 1}),
    ("int8, one scale", np.int8, 128, blocks[0, 0], {}),
):
    codes = RANDOM.integers(-limit, limit, (ROWS, COLUMNS))
    expected = x.astype(np.float64) @ (codes * (np.repeat(scales, BLOCK, 0) if attributes is per_block else scales))
    made = model(codes.astype(dtype), np.asarray(scales), **attributes)
    basic, default, entry = (
        arithmetic(product(made, x, **how), expected) for how in ({"basic": True}, {}, {"entry": True})
    )
    seen.append(f"{name}: basic {basic}, default {default}, with the entry {entry}")

# Within one block: an input of 1000 whose weights are 0, and 31 inputs of 1.
made = model(np.array([[0]] + [[1]] * (ROWS - 1), np.int8).repeat(COLUMNS, 1), np.float32(1))
x = np.array([[1000] + [1] * (BLOCK - 1) + [0] * (ROWS - BLOCK)], np.float32)
default, basic = (float(product(made, x, basic=how)[0, 0]) for how in (False, True))
seen.append(f"beside an input of 1000, 31 inputs of 1 add {default} by default, {basic} at the basic level")

print("\n".join(seen))
sys.exit(
    seen
    != [
        "int4, blocks of 32: basic float32, default 8 bits, with the entry float32",
        "int8, blocks of 32: basic float32, default 8 bits, with the entry float32",
        "int8, a scale per column: basic float32, default 8 bits, with the entry float32",
        "int8, one scale: basic float32, default 8 bits, with the entry float32",
        "beside an input of 1000, 31 inputs of 1 add 0.0 by default, 31.0 at the basic level",
    ]
)
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
