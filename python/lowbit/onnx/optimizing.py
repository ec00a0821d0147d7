"""`optimize`: an ONNX model that calculates the same with fewer nodes."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lowbit.base import arguments
from lowbit.base.errors import Error, InputError
from lowbit.base.operation import operation, replacing
from lowbit.base.paths import AnyPath, checked
from lowbit.base.progress import ProgressLike, steps
from lowbit.base.threads import num_threads
from lowbit.onnx.calibration import CalibrationData
from lowbit.onnx.graph import Model
from lowbit.onnx.measuring import Comparison
from lowbit.onnx.opsets import OPSETS, converted, lacking
from lowbit.onnx.passes import FUSION_OPSETS, FUSIONS, passes
from lowbit.onnx.reading import opened
from lowbit.onnx.writing import MOST_BYTES, file_bytes, write

LEVELS = ("portable", "all")
#: Weights of so many bytes are written beside the model in any case: protobuf ends at 2 GiB.
_MOST_INSIDE = MOST_BYTES // 4 * 3


@dataclass(frozen=True)
class OptimizeReport:
    """The result of `lowbit.onnx.optimize`.

    opset_before, opset_after: the versions of ai.onnx. operators_before, operators_after: operators and how often they
    occur. bytes_before, bytes_after: the model and the files beside it. error: of the worst output, relative to its
    2-norm. notes: optimizations that were left out.
    """

    path: str
    level: str
    opset_before: int
    opset_after: int
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
    opset: int | None = None,
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
    opset: the version of ai.onnx, 7 to 28, that the model is raised to before; None: the one it has. Its operators are
        converted by onnx.version_converter, or onnxscript's. It is an error if they cannot be, or outputs change.
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
    if opset is not None:
        opset = arguments.integer("opset", opset, OPSETS[0], OPSETS[-1])
    target, dry_run, threads = checked(target), arguments.flag("dry_run", dry_run), num_threads(threads)
    model = opened(source)
    replacing([target])
    comparison = Comparison(model, inputs, threads)
    with tempfile.TemporaryDirectory(prefix="lowbit-", ignore_cleanup_errors=True) as folder:
        result, error, notes = model, 0.0, []
        if opset is not None:
            result, error = converted(model, opset, comparison, tolerance, Path(folder))
        if fusions is not None and level == "portable":
            notes += [
                f"{name} was left out: {lacking('it needs', least, result.opset)}"
                for name, least in FUSION_OPSETS.items()
                if name in fusions and result.opset < least
            ]
        planned = passes(result.opset, level == "portable", chosen)
        with steps("optimize", "pass", progress) as advance:
            for number, each in enumerate(planned):
                try:
                    tried = each.applied(result, Path(folder) / str(number), level == "portable")
                    found = comparison.error(tried)
                    if found > tolerance:
                        raise InputError(f"the outputs differ by {found:.1e}, more than {tolerance:.1e}")
                    result, error = tried, found
                except Error as left_out:
                    notes.append(f"{each.name} was left out: {left_out}")
                advance(number + 1, len(planned))
        if external_data is None and not model.files and _nbytes(result) < _MOST_INSIDE:
            external_data = False  # the files of the passes had their tensors beside them
        sizes = file_bytes(model), file_bytes(result, target, external_data=external_data)
        opsets = model.opset, result.opset
        report = OptimizeReport(target, level, *opsets, count(model), count(result), *sizes, error, notes)
        if not dry_run:
            write(target, result, external_data=external_data, progress=progress)
    return report


def count(model: Model) -> dict[str, int]:
    """The operators of a model, the most frequent first."""
    return dict(Counter(node.operator for graph in model.graph.graphs() for node in graph.nodes).most_common())


def _nbytes(model: Model) -> int:
    return sum(tensor.nbytes for graph in model.graph.graphs() for tensor in graph.tensors.values())
