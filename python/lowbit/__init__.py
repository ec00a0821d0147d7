"""Quantizes Hugging Face checkpoints to GGUF, measures what was lost, and runs them on the CPU."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lowbit import arch, gguf
from lowbit.base import simd
from lowbit.base.errors import ContextFullError, Error, FileError, FormatError, InputError, UnsupportedError
from lowbit.conversion.convert import convert, quantize_file
from lowbit.conversion.plan import Report
from lowbit.conversion.splitting import SplitReport, merge_files, split_file
from lowbit.quantization import imatrix
from lowbit.quantization.options import ConvertOptions, QuantizeOptions
from lowbit.tensors.compare import ErrorReport, error
from lowbit.tensors.matmul import matmul
from lowbit.tensors.npz import load_npz, save_npz
from lowbit.tensors.qtensor import QTensor, dequantize, formats, quantize

if TYPE_CHECKING:
    from lowbit import evaluate
    from lowbit.conversion.export_hf import ExportReport, export_hf
    from lowbit.conversion.open import open_checkpoint
    from lowbit.conversion.verification import Verdict, VerificationError, verify
    from lowbit.engine.model import Model, load
    from lowbit.tokenizer.load import Tokenizer, load_tokenizer

__version__ = "0.1.0"

__all__ = [
    "ContextFullError",
    "ConvertOptions",
    "Error",
    "ErrorReport",
    "ExportReport",
    "FileError",
    "FormatError",
    "InputError",
    "Model",
    "QTensor",
    "QuantizeOptions",
    "Report",
    "SplitReport",
    "Tokenizer",
    "UnsupportedError",
    "Verdict",
    "VerificationError",
    "__version__",
    "arch",
    "convert",
    "dequantize",
    "error",
    "evaluate",
    "export_hf",
    "formats",
    "gguf",
    "imatrix",
    "load",
    "load_npz",
    "load_tokenizer",
    "matmul",
    "merge_files",
    "open_checkpoint",
    "quantize",
    "quantize_file",
    "save_npz",
    "simd",
    "split_file",
    "verify",
]

# Loaded when first asked for: a tokenizer's library alone costs more than the rest of the package.
_LAZY = {
    "ExportReport": "conversion.export_hf",
    "Model": "engine.model",
    "Tokenizer": "tokenizer.load",
    "Verdict": "conversion.verification",
    "VerificationError": "conversion.verification",
    "export_hf": "conversion.export_hf",
    "load": "engine.model",
    "load_tokenizer": "tokenizer.load",
    "open_checkpoint": "conversion.open",
    "verify": "conversion.verification",
}


def __getattr__(name: str) -> Any:
    if name == "evaluate":
        return importlib.import_module("lowbit.evaluate")
    if name not in _LAZY:
        raise AttributeError(f"module 'lowbit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lowbit.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
