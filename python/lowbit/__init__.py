"""lowbit: quantize Hugging Face checkpoints to GGUF, measure what was lost, run them on the CPU."""

from lowbit import gguf, simd
from lowbit._core import ContextFullError, Error, FileError, FormatError, InputError, UnsupportedError
from lowbit.linalg import matmul
from lowbit.qtensor import QTensor, dequantize, formats, quantize

__version__ = "0.1.0"

__all__ = [
    "ContextFullError",
    "Error",
    "FileError",
    "FormatError",
    "InputError",
    "QTensor",
    "UnsupportedError",
    "__version__",
    "dequantize",
    "formats",
    "gguf",
    "matmul",
    "quantize",
    "simd",
]
