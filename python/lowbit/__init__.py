"""Quantizes Hugging Face checkpoints to GGUF, measures the loss, and runs them on the CPU."""

from __future__ import annotations

from lowbit.base import lazy
from lowbit.base.version import __version__

TYPE_CHECKING = False  # importing `typing` takes time, and Ctrl-C during it would print a traceback of the command
if TYPE_CHECKING:
    from lowbit import arch, evaluate, gguf, onnx
    from lowbit._core import Format
    from lowbit.base import simd
    from lowbit.base.errors import ContextFullError, Error, FileError, FormatError, InputError, UnsupportedError
    from lowbit.base.progress import Progress, ProgressLike
    from lowbit.conversion.convert import convert, quantize_file
    from lowbit.conversion.export_hf import ExportReport, export_hf
    from lowbit.conversion.open import open_checkpoint
    from lowbit.conversion.plan import Report
    from lowbit.conversion.splitting import SplitReport, merge_files, split_file
    from lowbit.conversion.verification import Verdict, VerificationError, verify
    from lowbit.engine.model import Model, load
    from lowbit.evaluate import imatrix
    from lowbit.evaluate.bench import BenchReport, bench
    from lowbit.evaluate.inspect import (
        InspectReport,
        OnnxInspectReport,
        TensorReport,
        TensorTotal,
        ValueReport,
        inspect,
    )
    from lowbit.evaluate.ladder import Ladder, Rung, ladder
    from lowbit.evaluate.limits import MachineLimits, machine_limits
    from lowbit.evaluate.llama_bench import LlamaBenchReport
    from lowbit.evaluate.profile import ProfileReport, StageReport, profile
    from lowbit.export.exporting import ExportedMatrix, OnnxExportReport, TargetReport, export_onnx
    from lowbit.export.from_onnx import OnnxImportReport, convert_onnx
    from lowbit.quantization.options import ConvertOptions, QuantizeOptions
    from lowbit.tensors.compare import Comparison, compare
    from lowbit.tensors.formats import formats
    from lowbit.tensors.matmul import matmul
    from lowbit.tensors.npz import load_npz, save_npz
    from lowbit.tensors.qtensor import QTensor
    from lowbit.tensors.quantize import dequantize, quantize
    from lowbit.tokenizer.load import Tokenizer, load_tokenizer

__all__ = [
    "BenchReport",
    "Comparison",
    "ContextFullError",
    "ConvertOptions",
    "Error",
    "ExportReport",
    "ExportedMatrix",
    "FileError",
    "Format",
    "FormatError",
    "InputError",
    "InspectReport",
    "Ladder",
    "LlamaBenchReport",
    "MachineLimits",
    "Model",
    "OnnxExportReport",
    "OnnxImportReport",
    "OnnxInspectReport",
    "ProfileReport",
    "Progress",
    "ProgressLike",
    "QTensor",
    "QuantizeOptions",
    "Report",
    "Rung",
    "SplitReport",
    "StageReport",
    "TargetReport",
    "TensorReport",
    "TensorTotal",
    "Tokenizer",
    "UnsupportedError",
    "ValueReport",
    "Verdict",
    "VerificationError",
    "__version__",
    "arch",
    "bench",
    "compare",
    "convert",
    "convert_onnx",
    "dequantize",
    "evaluate",
    "export_hf",
    "export_onnx",
    "formats",
    "gguf",
    "imatrix",
    "inspect",
    "ladder",
    "load",
    "load_npz",
    "load_tokenizer",
    "machine_limits",
    "matmul",
    "merge_files",
    "onnx",
    "open_checkpoint",
    "profile",
    "quantize",
    "quantize_file",
    "save_npz",
    "simd",
    "split_file",
    "verify",
]

#: The module of each public name, as in the imports above. A module is imported when one of its names is first used, so
#: `import lowbit` loads neither NumPy (0.1 s) nor the tokenizers library (0.1 s).
_NAMES = {
    "_core": ("Format",),
    "base.errors": ("ContextFullError", "Error", "FileError", "FormatError", "InputError", "UnsupportedError"),
    "base.progress": ("Progress", "ProgressLike"),
    "conversion.convert": ("convert", "quantize_file"),
    "conversion.export_hf": ("ExportReport", "export_hf"),
    "conversion.open": ("open_checkpoint",),
    "conversion.plan": ("Report",),
    "conversion.splitting": ("SplitReport", "merge_files", "split_file"),
    "conversion.verification": ("Verdict", "VerificationError", "verify"),
    "evaluate.bench": ("BenchReport", "bench"),
    "evaluate.inspect": ("InspectReport", "OnnxInspectReport", "TensorReport", "TensorTotal", "ValueReport", "inspect"),
    "evaluate.ladder": ("Ladder", "Rung", "ladder"),
    "evaluate.limits": ("MachineLimits", "machine_limits"),
    "evaluate.llama_bench": ("LlamaBenchReport",),
    "evaluate.profile": ("ProfileReport", "StageReport", "profile"),
    "engine.model": ("Model", "load"),
    "export.exporting": ("ExportedMatrix", "OnnxExportReport", "TargetReport", "export_onnx"),
    "export.from_onnx": ("OnnxImportReport", "convert_onnx"),
    "quantization.options": ("ConvertOptions", "QuantizeOptions"),
    "tensors.compare": ("Comparison", "compare"),
    "tensors.matmul": ("matmul",),
    "tensors.npz": ("load_npz", "save_npz"),
    "tensors.formats": ("formats",),
    "tensors.qtensor": ("QTensor",),
    "tensors.quantize": ("dequantize", "quantize"),
    "tokenizer.load": ("Tokenizer", "load_tokenizer"),
}
_MODULES = {
    "arch": "arch",
    "evaluate": "evaluate",
    "gguf": "gguf",
    "imatrix": "evaluate.imatrix",
    "onnx": "onnx",
    "simd": "base.simd",
}
__getattr__ = lazy.names_of(__name__, _NAMES, _MODULES)


def __dir__() -> list[str]:
    return sorted(__all__)
