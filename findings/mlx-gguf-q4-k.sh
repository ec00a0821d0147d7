#!/usr/bin/env bash
# `mlx.core.load` decodes half of the weights of a Q4_K tensor with the scale and minimum of their neighbours.
#
# A Q4_K block has eight groups of 32 weights, each with a scale and a minimum. MLX loads the type: it becomes a float16
# array. Groups 1, 3, 5 and 7 get the scale and the minimum of groups 0, 2, 4 and 6. Nothing is logged, the shape is
# right, and on real weights the error looks like that of a coarser format. Q2_K and Q6_K are decoded right.
#
# Likely guess: a type that loads has the values that ggml gives it, within the rounding to float16.
#
# Versions: mlx 0.32.4 (on Linux its CPU build), gguf 0.19.0, numpy 2.4.6. All codes of the first block are 1, those of
# the second 0, so that the values are the scales 1 to 8 and the negative minima. Output:
#   gguf: scales 1 2 3 4 5 6 7 8, minima 8 7 6 5 4 3 2 1
#   MLX: scales 1 1 3 3 5 5 7 7, minima 8 8 6 6 4 4 2 2
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'mlx[cpu]==0.32.4' gguf==0.19.0 numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
import sys

import mlx.core as mx
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize


def block(d, dmin, scales, minima, code):
    """144 bytes: d and dmin, scales and minima below 16 in 12 bytes, 256 codes."""
    upper = [scale | minimum << 4 for scale, minimum in zip(scales[4:], minima[4:], strict=True)]
    packed = np.array([*scales[:4], *minima[:4], *upper, *[code * 17] * 128], np.uint8)
    return np.concatenate([np.array([d, dmin], "<f2").view(np.uint8), packed])


rising, falling = [*range(1, 9)], [*range(8, 0, -1)]
row = np.concatenate([block(1, 0, rising, [0] * 8, 1), block(0, 1, [0] * 8, falling, 0)])
file = sys.argv[1] + "/q4_k.gguf"
writer = GGUFWriter(file, "llama")
writer.add_tensor("weights", row[None], raw_dtype=GGMLQuantizationType.Q4_K)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

(tensor,) = GGUFReader(file).tensors
decoded = {
    "gguf": dequantize(tensor.data, tensor.tensor_type),
    "MLX": np.array(mx.load(file)["weights"].astype(mx.float32)),
}
seen = []
for name, values in decoded.items():
    groups = values.reshape(2, 8, 32)
    assert (groups == groups[..., :1]).all()
    scales, minima = (" ".join(str(abs(int(value))) for value in block) for block in groups[..., 0])
    seen.append(f"{name}: scales {scales}, minima {minima}")

print("\n".join(seen))
sys.exit(
    seen
    != [
        "gguf: scales 1 2 3 4 5 6 7 8, minima 8 7 6 5 4 3 2 1",
        "MLX: scales 1 1 3 3 5 5 7 7, minima 8 8 6 6 4 4 2 2",
    ]
)
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder"
