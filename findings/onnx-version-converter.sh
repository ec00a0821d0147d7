#!/usr/bin/env bash
# onnx.version_converter writes models that calculate something else, without an error.
#
# Three operators are converted to ones with other results. Linear Upsample and Resize below opset 11 become Resize with
# its new default coordinate_transformation_mode, half_pixel, though the old ones were "asymmetric". Hardmax below opset
# 13 keeps its attributes, though its default axis became the last one and it no longer flattens. Calls of model-local
# functions stay, but the functions are dropped, so nothing can run the model.
#
# Likely guess: what cannot be converted is an error, as "No Adapter" errors for other operators suggest.
#
# Versions: onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6. Output:
#   Upsample, nearest, opset 9 to 13: equal
#   Upsample, linear, opset 9 to 13: differs
#   Resize, linear, opset 10 to 13: differs
#   Softmax, opset 11 to 13: equal
#   Hardmax, opset 11 to 13: differs
#   a model-local function, opset 14 to 21: 1 call, 0 functions
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
import sys

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, version_converter

X = np.random.default_rng(0).standard_normal((1, 2, 4, 4)).astype(np.float32)
SCALES = np.array([1, 1, 2, 2], np.float32)


def model(op_type, opset, *tensors, domain="", **attributes):
    names = [f"t{i}" for i in range(len(tensors))]
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x", *names], ["y"], domain=domain, **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b", "c", "d"])],
        [numpy_helper.from_array(tensor, name) for tensor, name in zip(tensors, names)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def result(made):
    return onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": X})[0]


def compared(name, made, opset=13):
    old = made.opset_import[0].version
    same = np.allclose(result(made), result(version_converter.convert_version(made, opset)), atol=1e-6)
    return f"{name}, opset {old} to {opset}: {'equal' if same else 'differs'}"


def function():
    made = model("Twice", 14, domain="my")
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    made.functions.append(helper.make_function("my", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 14)]))
    made.opset_import.append(helper.make_opsetid("my", 1))
    assert np.array_equal(result(made), X + X)
    converted = version_converter.convert_version(made, 21)
    calls = sum(node.domain == "my" for node in converted.graph.node)
    return f"a model-local function, opset 14 to 21: {calls} call, {len(converted.functions)} functions"


seen = [
    compared("Upsample, nearest", model("Upsample", 9, SCALES, mode="nearest")),
    compared("Upsample, linear", model("Upsample", 9, SCALES, mode="linear")),
    compared("Resize, linear", model("Resize", 10, SCALES, mode="linear")),
    compared("Softmax", model("Softmax", 11)),
    compared("Hardmax", model("Hardmax", 11)),
    function(),
]
print("\n".join(seen))
sys.exit(
    seen
    != [
        "Upsample, nearest, opset 9 to 13: equal",
        "Upsample, linear, opset 9 to 13: differs",
        "Resize, linear, opset 10 to 13: differs",
        "Softmax, opset 11 to 13: equal",
        "Hardmax, opset 11 to 13: differs",
        "a model-local function, opset 14 to 21: 1 call, 0 functions",
    ]
)
PYTHON
"$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" || { tail -3 "$folder/log"; exit 1; }
