#!/usr/bin/env bash
# onnxscript.version_converter.convert_version changes the opset of a model below 18, and converts none of its operators.
#
# It has adapters for the opsets from 18 to 25 only, which it checks for the target, not for the model. The result of a
# model of opset 11 says opset 21. Softmax without an axis then runs over the last axis instead of all from the second
# on, with other results; Clip keeps attributes that it no longer has, so the model is invalid. Nothing is raised or
# logged. With fallback=True, onnx.version_converter is called, and both are right.
#
# Likely guess: a model whose opset is not supported is an error, as an unsupported target is; or the fallback is the
# default.
#
# Versions: onnxscript 0.7.2, onnx-ir 1.1.0, onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6. Output:
#   Softmax: opset 21, other results
#   Softmax, fallback: opset 21, equal results
#   Clip: opset 21, does not load
#   Clip, fallback: opset 21, equal results
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxscript==0.7.2 onnx-ir==1.1.0 onnx==1.23.2 \
  onnxruntime==1.32.0 numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
import sys

import numpy as np
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper
from onnxscript import version_converter

X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)


def result(made):
    return onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": X})[0]


def converted(name, opset, fallback, **attributes):
    values = [helper.make_tensor_value_info(each, TensorProto.FLOAT, X.shape) for each in ("x", "y")]
    graph = helper.make_graph([helper.make_node(name, ["x"], ["y"], **attributes)], "g", values[:1], values[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model = ir.from_proto(made)
    version_converter.convert_version(model, 21, fallback=fallback)
    new = ir.to_proto(model)
    try:
        found = "equal results" if np.allclose(result(made), result(new)) else "other results"
    except Exception:
        found = "does not load"
    return f"{name}{', fallback' if fallback else ''}: opset {new.opset_import[0].version}, {found}"


seen = [
    converted("Softmax", 11, False),
    converted("Softmax", 11, True),
    converted("Clip", 9, False, min=0.0),
    converted("Clip", 9, True, min=0.0),
]
print("\n".join(seen))
sys.exit(
    seen
    != [
        "Softmax: opset 21, other results",
        "Softmax, fallback: opset 21, equal results",
        "Clip: opset 21, does not load",
        "Clip, fallback: opset 21, equal results",
    ]
)
PYTHON
"$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" || { tail -3 "$folder/log"; exit 1; }
