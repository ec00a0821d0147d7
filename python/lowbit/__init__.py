"""lowbit: quantize Hugging Face checkpoints to GGUF, measure what was lost, run them on the CPU."""

from lowbit import simd
from lowbit._core import ContextFullError, Error, FileError, FormatError, InputError, UnsupportedError
from lowbit.qtensor import QTensor, dequantize, formats, quantize

__all__ = [
    "ContextFullError",
    "Error",
    "FileError",
    "FormatError",
    "InputError",
    "QTensor",
    "UnsupportedError",
    "dequantize",
    "formats",
    "quantize",
    "simd",
]
