"""lowbit: quantize Hugging Face checkpoints to GGUF, measure what was lost, run them on the CPU."""

from lowbit import gguf, simd
from lowbit._core import ContextFullError, Error, FileError, FormatError, InputError, UnsupportedError
from lowbit.convert import Report, convert, quantize_file
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
    "Report",
    "UnsupportedError",
    "__version__",
    "convert",
    "dequantize",
    "formats",
    "gguf",
    "matmul",
    "quantize",
    "quantize_file",
    "simd",
]
