#!/usr/bin/env bash
# `mlx.core.load` of a GGUF file ends at the first tensor of a type that it does not know, and returns what came before.
#
# TQ1_0, TQ2_0 and MXFP4 are such types. The tensor and all tensors after it, of whatever type, are missing from the
# dictionary, without an error or a warning. How much is missing depends on the order of the tensors in the file. A type
# that MLX knows and cannot decode (Q5_0) raises an error.
#
# Likely guess: an unknown type raises an error, or that tensor alone is left out.
#
# Versions: mlx 0.32.4 (on Linux its CPU build), gguf 0.19.0, numpy 2.4.6. Tensors a, b, c, d, all F32 but for b. Output:
#   b is F16: a b c d
#   b is TQ1_0: a
#   b is TQ2_0: a
#   b is MXFP4: a
#   b is Q5_0: RuntimeError
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
from gguf.quants import quantize

WEIGHTS = np.linspace(-1, 1, 512, dtype=np.float32).reshape(2, 256)

seen = []
for name in ("F16", "TQ1_0", "TQ2_0", "MXFP4", "Q5_0"):
    file = f"{sys.argv[1]}/{name}.gguf"
    writer = GGUFWriter(file, "llama")
    for tensor in "abcd":
        kind = GGMLQuantizationType[name if tensor == "b" else "F32"]
        writer.add_tensor(tensor, quantize(WEIGHTS, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert [tensor.name for tensor in GGUFReader(file).tensors] == list("abcd")
    try:
        loaded = " ".join(sorted(mx.load(file)))
    except RuntimeError as error:
        loaded = type(error).__name__
    seen.append(f"b is {name}: {loaded}")

print("\n".join(seen))
sys.exit(
    seen
    != [
        "b is F16: a b c d",
        "b is TQ1_0: a",
        "b is TQ2_0: a",
        "b is MXFP4: a",
        "b is Q5_0: RuntimeError",
    ]
)
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder"
