#!/usr/bin/env bash
# quantize_static(per_channel=True) writes models below opset 13 that onnxruntime refuses to load.
#
# The result has DequantizeLinear with the attribute `axis`, which the operator has only from opset 13 on, and keeps the
# model's opset. Nothing is said while it is written. Models exported before 2021 have opset 9 to 12. Per tensor, in
# format QOperator, or with another type of activations (QInt16, which raises the model to opset 21), the file loads.
#
# Likely guess: the quantizer raises the model's opset as it does for 16 bits, or refuses the combination.
#
# Versions: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6. Output:
#   opset 11, QDQ per channel: written with opset 11, InvalidGraph
#   opset 12, QDQ per channel: written with opset 12, InvalidGraph
#   opset 13, QDQ per channel: written with opset 13, loads
#   opset 11, QDQ per tensor: written with opset 11, loads
#   opset 11, QOperator per channel: written with opset 11, loads
#   opset 11, QDQ per channel, 16 bits: written with opset 21, loads
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
import logging
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

logging.disable()
source, target = f"{sys.argv[1]}/model.onnx", f"{sys.argv[1]}/out.onnx"


class Reader(CalibrationDataReader):
    def __init__(self):
        self.data = iter([{"x": np.ones((1, 3, 8, 8), np.float32)}])

    def get_next(self):
        return next(self.data, None)


def quantized(opset, format="QDQ", per_channel=True, wide=False):
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 6])],
        [numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7), source)
    quantize_static(
        source,
        target,
        Reader(),
        quant_format=QuantFormat[format],
        per_channel=per_channel,
        activation_type=QuantType.QInt16 if wide else QuantType.QInt8,
    )
    (written,) = (each.version for each in onnx.load(target).opset_import if each.domain in ("", "ai.onnx"))
    try:
        onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
        result = "loads"
    except Exception as error:
        result = type(error).__name__
    name = f"opset {opset}, {format} per {'channel' if per_channel else 'tensor'}{', 16 bits' if wide else ''}"
    return f"{name}: written with opset {written}, {result}"


seen = [
    quantized(11),
    quantized(12),
    quantized(13),
    quantized(11, per_channel=False),
    quantized(11, format="QOperator"),
    quantized(11, wide=True),
]
print("\n".join(seen))
sys.exit(
    seen
    != [
        "opset 11, QDQ per channel: written with opset 11, InvalidGraph",
        "opset 12, QDQ per channel: written with opset 12, InvalidGraph",
        "opset 13, QDQ per channel: written with opset 13, loads",
        "opset 11, QDQ per tensor: written with opset 11, loads",
        "opset 11, QOperator per channel: written with opset 11, loads",
        "opset 11, QDQ per channel, 16 bits: written with opset 21, loads",
    ]
)
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder" 2> "$folder/log" || { tail -3 "$folder/log"; exit 1; }
