"""`optimize`: an ONNX model that calculates the same with fewer nodes."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lowbit.base import arguments
from lowbit.base.errors import Error, FormatError, InputError
from lowbit.base.operation import operation, replacing
from lowbit.base.paths import AnyPath, checked
from lowbit.base.progress import ProgressLike, steps
from lowbit.base.quoting import reason
from lowbit.base.threads import num_threads
from lowbit.onnx.calibration import CalibrationData
from lowbit.onnx.graph import Graph, Model, Node
from lowbit.onnx.measuring import Comparison
from lowbit.onnx.passes import FUSIONS, TRANSFORMERS_OPSET, Pass, passes
from lowbit.onnx.reading import open_model, opened
from lowbit.onnx.rewriting import Scope, rewrite
from lowbit.onnx.writing import MOST_BYTES, file_bytes, write

LEVELS = ("portable", "all")
_STANDARD = ("", "ai.onnx")
#: Weights of so many bytes are written beside the model in any case: protobuf ends at 2 GiB.
_MOST_INSIDE = MOST_BYTES // 4 * 3


@dataclass(frozen=True)
class OptimizeReport:
    """The result of `lowbit.onnx.optimize`.

    operators_before, operators_after: operators and how often they occur. bytes_before, bytes_after: the model and the
    files beside it. error: of the worst output, relative to its 2-norm. notes: optimizations that were left out.
    """

    path: str
    level: str
    operators_before: Mapping[str, int]
    operators_after: Mapping[str, int]
    bytes_before: int
    bytes_after: int
    error: float
    notes: list[str] = field(default_factory=list)

    @property
    def nodes_before(self) -> int:
        """The number of nodes, those of subgraphs included."""
        return sum(self.operators_before.values())

    @property
    def nodes_after(self) -> int:
        """The number of nodes, those of subgraphs included."""
        return sum(self.operators_after.values())


@operation()
def optimize(
    source: AnyPath | Model,
    target: AnyPath,
    *,
    level: str = "portable",
    fusions: Sequence[str] | None = None,
    inputs: CalibrationData | None = None,
    tolerance: float = 1e-4,
    external_data: bool | str | None = None,
    dry_run: bool = False,
    threads: int | None = None,
    progress: ProgressLike = None,
) -> OptimizeReport:
    """Folds constants, removes what has no effect, and fuses nodes. Needs the extra `onnx`.

    source: a file, or a model. target: the file to write; it is never the source.
    level: "portable" writes operators of ai.onnx only, unless the model has others; every runtime reads the file. "all"
        also fuses to operators of com.microsoft, which only ONNX Runtime and OpenVINO have.
    fusions: "gemm" (MatMul and Add), "batch-norm" (into Conv), "gelu", "layer-norm", "rms-norm", "skip", "rotary",
        "attention"; all if None. In portable files "gelu" needs opset 20, "layer-norm" 17, "rms-norm", "rotary" and
        "attention" 23; "skip" has no operator there.
    inputs: what to compare the outputs with, as for calibration; random values if None.
    tolerance: the largest relative error of an output. An optimization that exceeds it is left out, with a note.
    external_data: as in `lowbit.onnx.write`.
    dry_run: writes nothing; the report says what would be written.

    Raises FileError, FormatError, UnsupportedError or InputError.
    """
    if level not in LEVELS:
        raise arguments.wrong("level", " or ".join(LEVELS), level)
    chosen = (
        list(FUSIONS)
        if fusions is None
        else [arguments.text("fusions", each) for each in arguments.items("fusions", fusions)]
    )
    for name in chosen:
        if name not in FUSIONS:
            raise arguments.wrong("fusions", ", ".join(FUSIONS), name)
    tolerance = arguments.number("tolerance", tolerance, 0)
    target, dry_run, threads = checked(target), arguments.flag("dry_run", dry_run), num_threads(threads)
    model = opened(source)
    replacing([target])
    comparison = Comparison(model, inputs, threads)
    with tempfile.TemporaryDirectory(prefix="lowbit-", ignore_cleanup_errors=True) as folder:
        result, error, notes = model, 0.0, []
        planned = passes(model.opset, level == "portable", chosen)
        with steps("optimize", "pass", progress) as advance:
            for number, each in enumerate(planned):
                try:
                    tried = _applied(each, result, Path(folder) / str(number), level == "portable")
                    found = comparison.error(tried)
                    if found > tolerance:
                        raise InputError(f"the outputs differ by {found:.1e}, more than {tolerance:.1e}")
                    result, error = tried, found
                except Error as left_out:
                    notes.append(f"{each.name} was left out: {left_out}")
                advance(number + 1, len(planned))
        if external_data is None and not model.files and _nbytes(result) < _MOST_INSIDE:
            external_data = False  # the files of the passes had their tensors beside them
        sizes = file_bytes(model), file_bytes(result, external_data=external_data)
        report = OptimizeReport(target, level, count(model), count(result), *sizes, error, notes)
        if not dry_run:
            write(target, result, external_data=external_data, progress=progress)
    return report


def count(model: Model) -> dict[str, int]:
    """The operators of a model, the most frequent first."""
    return dict(Counter(node.operator for graph in model.graph.graphs() for node in graph.nodes).most_common())


def _applied(each: Pass, model: Model, folder: Path, portable: bool) -> Model:
    """The model after a pass."""
    folder.mkdir()
    source, target = folder / "source.onnx", folder / "target.onnx"
    write(source, model)
    try:
        each.run(source, target)
    except Error:
        raise
    except Exception as error:  # those of other packages
        raise FormatError(f"it failed: {reason(error)}") from None
    result = _tidied(open_model(target), model)
    new = _domains(result.graph) - _domains(model.graph)
    if portable and new:
        raise FormatError(f"it needs operators of {', '.join(sorted(new))}")
    return result


def _tidied(result: Model, model: Model) -> Model:
    """The model of another package's file, with the domains that it uses, and what the old one says of itself."""
    if result.opset >= TRANSFORMERS_OPSET:
        result = rewrite(result, _standard)
    used = {*result.opsets} if result.functions else _domains(result.graph)
    opsets = {domain: version for domain, version in result.opsets.items() if domain in used | {""}}
    lists = {value.name for value in result.graph.inputs}
    is_old = result.ir_version < 4 and not lists.issuperset(result.graph.tensors)
    return replace(
        result,
        opsets=opsets,
        # Before IR version 4, initializers had to be inputs, too.
        ir_version=4 if is_old else result.ir_version,
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


def _nbytes(model: Model) -> int:
    return sum(tensor.nbytes for graph in model.graph.graphs() for tensor in graph.tensors.values())


def _domains(graph: Graph) -> set[str]:
    return {"" if node.domain in _STANDARD else node.domain for each in graph.graphs() for node in each.nodes}
