"""Quantizes Hugging Face checkpoints to GGUF, measures what was lost, and runs them on the CPU."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lowbit import arch, gguf, imatrix, simd
from lowbit._core import ContextFullError, Error, FileError, FormatError, InputError, UnsupportedError
from lowbit.compare import ErrorReport, error
from lowbit.convert import convert, quantize_file
from lowbit.linalg import matmul
from lowbit.npz import load_npz, save_npz
from lowbit.options import ConvertOptions, QuantizeOptions
from lowbit.plan import Report
from lowbit.qtensor import QTensor, dequantize, formats, quantize
from lowbit.splitting import SplitReport, merge_files, split_file

if TYPE_CHECKING:
    from lowbit import evaluate
    from lowbit.export import ExportReport, export_hf
    from lowbit.model import Model, load
    from lowbit.tokenizer import Tokenizer, load_tokenizer
    from lowbit.verification import Verdict, VerificationError, verify

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
    "quantize",
    "quantize_file",
    "save_npz",
    "simd",
    "split_file",
    "verify",
]

# Loaded when first asked for: a tokenizer's library alone costs more than the rest of the package.
_LAZY = {
    "ExportReport": "export",
    "Model": "model",
    "Tokenizer": "tokenizer",
    "Verdict": "verification",
    "VerificationError": "verification",
    "export_hf": "export",
    "load": "model",
    "load_tokenizer": "tokenizer",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    if name == "evaluate":
        return importlib.import_module("lowbit.evaluate")
    if name not in _LAZY:
        raise AttributeError(f"module 'lowbit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lowbit.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
