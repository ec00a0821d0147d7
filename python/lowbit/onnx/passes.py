"""Optimizations of ONNX Runtime and onnxscript, and converters to newer opsets, from a file to a file (extra `onnx`).

ONNX Runtime's optimizer saves what it would run. Its level BASIC folds constants, removes what has no effect, and fuses
to operators of ai.onnx. EXTENDED also fuses to operators of com.microsoft, and to some in the domain ai.onnx that ONNX
does not have. ALL also lays weights out as this machine's processor likes them: such files are not for others, so it is
never used here.
"""

from __future__ import annotations

import importlib
import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lowbit.base.errors import Error, FormatError, UnsupportedError
from lowbit.base.quoting import reason, shown
from lowbit.onnx.graph import Graph, Model, Node
from lowbit.onnx.reading import open_model
from lowbit.onnx.rewriting import CONSTANT_INPUTS_BEFORE, Scope, rewrite
from lowbit.onnx.running import runtime
from lowbit.onnx.writing import write

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
#: The opsets whose operators of ai.onnx portable fusions make.
FUSION_OPSETS: Mapping[str, int] = {
    "layer-norm": 17, "gelu": 20, "rms-norm": TRANSFORMERS_OPSET, "rotary": TRANSFORMERS_OPSET,
    "attention": TRANSFORMERS_OPSET,
}  # fmt: skip
#: What onnxscript's version converter knows.
_ONNXSCRIPT_OPSETS = range(18, 26)
_ERRORS = 4
_STANDARD = ("", "ai.onnx")


class Pass(NamedTuple):
    """An optimization: its name, and what makes one file of another."""

    name: str
    run: Callable[[Path, Path], None]

    def applied(self, model: Model, folder: Path, portable: bool) -> Model:
        """The model after the pass. folder: a new one, for files. portable: without operators of further domains.

        Raises FormatError or UnsupportedError.
        """
        folder.mkdir()
        source, target = folder / "source.onnx", folder / "target.onnx"
        write(source, model)
        try:
            with _quiet("onnx_ir", "onnxscript"):
                self.run(source, target)
        except Error:
            raise
        except Exception as error:  # those of other packages
            raise FormatError(f"it failed: {reason(error)}") from None
        result = _tidied(open_model(target), model)
        new = _domains(result.graph) - _domains(model.graph)
        if portable and new:
            raise FormatError(f"it needs operators of {', '.join(sorted(new))}")
        return result


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


def converters(before: int, after: int) -> list[Pass]:
    """What raises a model from one opset to another, the best first.

    Below opset 18, onnxscript's would change the number and no operator. From 18 on, it converts GroupNormalization,
    which onnx's gets wrong.
    """
    found = [Pass("onnx.version_converter", lambda source, target: _raise(source, target, after))]
    if before >= _ONNXSCRIPT_OPSETS[0] and after <= _ONNXSCRIPT_OPSETS[-1]:
        found.append(Pass("onnxscript.version_converter", lambda source, target: _raise_newer(source, target, after)))
    return found


def _raise(source: Path, target: Path, opset: int) -> None:
    onnx, converter, inliner = _modules("onnx", "onnx.version_converter", "onnx.inliner")
    model = onnx.load(source)
    if model.functions:  # the converter would drop them
        model = inliner.inline_local_functions(model, convert_version=True)
    try:
        onnx.save(converter.convert_version(model, opset), target)
    except (RuntimeError, converter.ConvertError) as error:

        def fails(count: int) -> bool:
            """Whether the first nodes alone are not converted either."""
            part = onnx.ModelProto.FromString(model.SerializeToString())
            del part.graph.node[count:], part.graph.output[:]
            try:
                converter.convert_version(part, opset)
            except (RuntimeError, converter.ConvertError):
                return True
            return False

        nodes = model.graph.node
        count = bisect_left(range(len(nodes) + 1), True, key=fails)
        node = nodes[count - 1] if 0 < count <= len(nodes) else None
        where = f"node {shown(node.name or node.output[0])}: {node.op_type}" if node else "it"
        _, _, found = str(error).rpartition("failed: ")  # behind a place in C++
        raise FormatError(f"{where} failed: {found}") from None


def _raise_newer(source: Path, target: Path, opset: int) -> None:
    _onnxscript(source, target, "onnxscript.version_converter", "convert_version", opset)


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


def _onnxscript(source: Path, target: Path, module: str, function: str, *more: int) -> None:
    ir, found = _modules("onnx_ir", module)
    model = ir.load(source)
    getattr(found, function)(model, *more)
    ir.save(model, target, external_data=f"{target.name}.data")


def _modules(*names: str) -> list[Any]:
    """Modules of the extra. Raises UnsupportedError if one is missing."""
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError:
        raise UnsupportedError("optimizing needs onnx, onnxscript and onnx-ir: pip install 'lowbit[onnx]'") from None


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


def _tidied(result: Model, model: Model) -> Model:
    """The model of another package's file, with the domains that it uses, and what the old one says of itself."""
    if result.opset >= TRANSFORMERS_OPSET:
        result = rewrite(result, _standard)
    used = {*result.opsets} if result.functions else _domains(result.graph)
    opsets = {domain: version for domain, version in result.opsets.items() if domain in used | {""}}
    lists = {value.name for value in result.graph.inputs}
    is_old = result.ir_version < CONSTANT_INPUTS_BEFORE and not lists.issuperset(result.graph.tensors)
    return replace(
        result,
        opsets=opsets,
        ir_version=CONSTANT_INPUTS_BEFORE if is_old else result.ir_version,
        producer=model.producer,
        metadata=model.metadata,
        path=None,
    )


def _standard(node: Node, scope: Scope) -> list[Node] | None:
    """ONNX Runtime's SimplifiedLayerNormalization, in the domain ai.onnx without being there, is RMSNormalization."""
    del scope
    if node.operator != "SimplifiedLayerNormalization" or len(node.outputs) > 1:
        return None
    return [replace(node, op_type="RMSNormalization")]


def _domains(graph: Graph) -> set[str]:
    return {"" if node.domain in _STANDARD else node.domain for each in graph.graphs() for node in each.nodes}
