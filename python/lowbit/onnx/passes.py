"""Optimizations of ONNX Runtime and onnxscript, each from a file to a file (extra `onnx`).

ONNX Runtime's optimizer saves what it would run. Its level BASIC folds constants, removes what has no effect, and fuses
to operators of ai.onnx. EXTENDED also fuses to operators of com.microsoft, and to some in the domain ai.onnx that ONNX
does not have. ALL also lays weights out as this machine's processor likes them: such files are not for others, so it is
never used here.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lowbit.base.errors import UnsupportedError
from lowbit.onnx.running import runtime

#: The fusions that can be chosen, and the optimizers of ONNX Runtime that do them.
FUSIONS: Mapping[str, Sequence[str]] = {
    "gemm": ("MatMulAddFusion", "GemmSumFusion", "GemmTransposeFusion"),
    "batch-norm": ("ConvBNFusion", "MatMul_BatchNormalization_Fusion", "ConvMulFusion", "ConvAddFusion"),
    "gelu": ("GeluFusionL1", "GeluFusionL2", "FastGeluFusion", "BiasGeluFusion", "QuickGeluFusion"),
    "layer-norm": ("LayerNormFusionL1", "LayerNormFusionL2"),
    "rms-norm": ("SimplifiedLayerNormFusion",),
    "skip": ("SkipLayerNormFusion", "EmbedLayerNormFusion"),
    "rotary": (),
    "attention": ("AttentionFusion", "GroupQueryAttentionFusion"),
}
#: What EXTENDED does beside RMS norms, so that those can be had alone.
_EXTENDED = (
    "AttentionFusion", "BiasDropoutFusion", "BiasGeluFusion", "BiasSoftmaxFusion", "ConvActivationFusion",
    "DynamicQuantizeMatMulFusion", "EmbedLayerNormFusion", "FastGeluFusion", "GatherToSliceFusion",
    "GatherToSplitFusion",
    "GeluApproximation", "GeluFusionL2", "GemmActivationFusion", "GroupQueryAttentionFusion", "LayerNormFusionL2",
    "MatMulActivationFusion", "MatMulIntegerToFloatFusion", "MatMulNBitsFusion", "MatMulScaleFusion",
    "MatmulTransposeFusion", "QDQFinalCleanupTransformer", "QDQPropagationTransformer", "QDQS8ToU8Transformer",
    "QDQSelectorActionTransformer", "QuickGeluFusion", "SkipLayerNormFusion", "WeightBiasQuantization",
    "NhwcTransformer", "NchwcTransformer",
)  # fmt: skip
#: The opset of RMSNormalization, RotaryEmbedding and Attention.
TRANSFORMERS_OPSET = 23
_ERRORS = 4


class Pass(NamedTuple):
    """An optimization: its name, and what makes one file of another."""

    name: str
    run: Callable[[Path, Path], None]


def passes(opset: int, portable: bool, fusions: Sequence[str]) -> list[Pass]:
    """The optimizations for a model, in their order."""
    off = [optimizer for name, optimizers in FUSIONS.items() if name not in fusions for optimizer in optimizers]
    transformers = {"rotary", "attention"} & {*fusions}
    found = [Pass("onnxscript folding", _fold)]
    if not portable and transformers:
        found.append(Pass("onnxscript fusions", _for_runtime))
    found.append(Pass("onnxruntime basic", lambda source, target: _offline("BASIC", off, source, target)))
    if portable and opset == TRANSFORMERS_OPSET and transformers:
        found.append(Pass("onnxscript fusions", _for_standard))
    if portable and opset >= TRANSFORMERS_OPSET and "rms-norm" in fusions:
        found.append(Pass("RMS norms", lambda source, target: _offline("EXTENDED", [*off, *_EXTENDED], source, target)))
    if not portable:
        found.append(Pass("onnxruntime extended", lambda source, target: _offline("EXTENDED", off, source, target)))
    return found


def _offline(level: str, off: Sequence[str], source: Path, target: Path) -> None:
    ort = runtime()
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = str(target)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{target.name}.data")
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"], disabled_optimizers=[*off])


def _fold(source: Path, target: Path) -> None:
    _onnxscript(source, target, "onnxscript.optimizer", "optimize")


def _for_runtime(source: Path, target: Path) -> None:
    _onnxscript(source, target, "onnxscript.rewriter.ort_fusions", "optimize_for_ort")


def _for_standard(source: Path, target: Path) -> None:
    _onnxscript(source, target, "onnxscript.rewriter.onnx_fusions", "fuse")


def _onnxscript(source: Path, target: Path, module: str, function: str) -> None:
    try:
        ir: Any = importlib.import_module("onnx_ir")
        fuse = getattr(importlib.import_module(module), function)
    except ImportError:
        raise UnsupportedError("optimizing needs onnxscript and onnx-ir: pip install 'lowbit[onnx]'") from None
    model = ir.load(source)
    with _quiet("onnx_ir", "onnxscript"):
        fuse(model)
        ir.save(model, target, external_data=f"{target.name}.data")


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Without warnings of packages about what they leave as it is."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
