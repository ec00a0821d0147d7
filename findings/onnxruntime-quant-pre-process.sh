#!/usr/bin/env bash
# quant_pre_process fails on ordinary models, and each failure leaves a copy of the weights in the working directory.
#
# A detector's neck with open height and width (pool, Resize by 2, Concat with what was pooled) ends in "Incomplete
# symbolic shape inference". The working directory, which need not be the model's, then has sym_shape_infer_temp.onnx and
# a file named by a UUID with the weights. Neither the message nor the log names them. Another call overwrites the first
# and adds another file of weights. With skip_symbolic_shape=True, or auto_merge=True, the same model passes.
#
# Likely guess: temporary files are in a temporary folder (all others of this function are), and a step whose result is
# a hint for the quantizer is left out if it fails.
#
# Versions: onnxruntime 1.32.0, onnx 1.23.2, sympy 1.14.0, numpy 2.4.6. Output:
#   first call: Incomplete symbolic shape inference
#   second call: Incomplete symbolic shape inference
#   files: 1 .data of 36864 bytes, 1 .data of 36864 bytes, sym_shape_infer_temp.onnx
#   skip_symbolic_shape: passes
#   auto_merge: passes
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 sympy==1.14.0 numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
import logging
import os
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quant_pre_process

logging.disable()
folder, working = Path(sys.argv[1]), Path(sys.argv[1]) / "working"
working.mkdir()
os.chdir(working)
nodes = [
    helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
    helper.make_node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
    helper.make_node("Resize", ["p", "", "scales"], ["r"], mode="nearest"),
    helper.make_node("Concat", ["r", "c"], ["y"], axis=1),
]
weights = {"w": np.ones((32, 32, 3, 3), np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}
shape = ["batch", 32, "height", "width"]
graph = helper.make_graph(
    nodes,
    "neck",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64, "height", "width"])],
    [numpy_helper.from_array(array, name) for name, array in weights.items()],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.checker.check_model(model, full_check=True)
onnx.save(model, folder / "model.onnx")


def call(**options):
    try:
        quant_pre_process(folder / "model.onnx", folder / "out.onnx", **options)
    except Exception as error:
        return str(error)
    return "passes"


seen = [f"first call: {call()}", f"second call: {call()}"]
left = [f"1 {p.suffix} of {p.stat().st_size} bytes" if p.suffix == ".data" else p.name for p in working.iterdir()]
seen.append(f"files: {', '.join(sorted(left))}")
seen += [f"{name}: {call(**{name: True})}" for name in ("skip_symbolic_shape", "auto_merge")]
print("\n".join(seen))
sys.exit(
    seen
    != [
        "first call: Incomplete symbolic shape inference",
        "second call: Incomplete symbolic shape inference",
        "files: 1 .data of 36864 bytes, 1 .data of 36864 bytes, sym_shape_infer_temp.onnx",
        "skip_symbolic_shape: passes",
        "auto_merge: passes",
    ]
)
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder" 2> "$folder/log" || { tail -3 "$folder/log"; exit 1; }
