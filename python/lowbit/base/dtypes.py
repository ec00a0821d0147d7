"""The float types of weights, with their names as formats, in GGUF and in safetensors files."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

#: F32 is first: it represents all values of the others exactly.
FLOATS: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
FLOAT_NAMES = {dtype: name for name, dtype in FLOATS.items()}
