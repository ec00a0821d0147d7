"""lowbit onnx: ONNX models are quantized and optimized."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowbit.base.quoting import listed, quoted
from lowbit.cli.app import app, examples
from lowbit.cli.console import note, print_json, size
from lowbit.cli.options import DryRun, Json, Threads, existing_file, one_of, parsed, wrong_usage
from lowbit.cli.tables import print_table

if TYPE_CHECKING:
    from lowbit.onnx import NodeReport, QuantizeReport

onnx = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Source = Annotated[Path, typer.Argument(metavar="IN.onnx", parser=existing_file, help="The model to read.")]
Target = Annotated[str, typer.Argument(metavar="OUT.onnx", help="The file to write.")]
Mode = Annotated[
    str, typer.Option("--mode", help="dynamic, static, weight-only, float16 or bfloat16.", show_default=False)
]
IncludeNode = Annotated[
    list[str] | None, typer.Option("--include-nodes", metavar="PATTERN", help="Quantize only these nodes; repeatable.")
]
ExcludeNode = Annotated[
    list[str] | None, typer.Option("--exclude-nodes", metavar="PATTERN", help="Keep these nodes float; repeatable.")
]
IncludeOperator = Annotated[
    list[str] | None, typer.Option("--include-operators", metavar="NAME", help="Quantize only these; repeatable.")
]
ExcludeOperator = Annotated[
    list[str] | None, typer.Option("--exclude-operators", metavar="NAME", help="Keep these float; repeatable.")
]
Bits = Annotated[int, typer.Option("--bits", min=1, max=8, help="weight-only: bits of a weight.")]
NodeBits = Annotated[
    list[str] | None,
    typer.Option("--node-bits", metavar="PATTERN=BITS", help="weight-only: bits of these nodes' weights; repeatable."),
]
BlockSize = Annotated[int, typer.Option("--block-size", help="weight-only: weights with one scale, 16 to 256.")]
Symmetric = Annotated[
    bool, typer.Option("--symmetric/--no-symmetric", help="weight-only: blocks have only a scale, or a zero point too.")
]
Method = Annotated[str, typer.Option("--method", help="weight-only: scales by search, round or hqq.")]
AccuracyLevel = Annotated[
    int, typer.Option("--accuracy-level", help="weight-only, 4 bits: 4 rounds activations to 8 bits, 0 is exact.")
]
Standard = Annotated[
    bool, typer.Option("--standard", help="weight-only: DequantizeLinear of ai.onnx instead of com.microsoft.")
]
Importances = Annotated[
    str | None,
    typer.Option(
        "--importances", metavar="FILE.npz", help="weight-only: node -> importance of each input, for search."
    ),
]
Search = Annotated[
    bool,
    typer.Option("--search/--no-search", help="dynamic, static: int8 scales with the least error, or of the range."),
]
Fused = Annotated[bool, typer.Option("--fused", help="dynamic: operators of com.microsoft instead of several.")]
Format = Annotated[str, typer.Option("--format", help="static: QDQ or QOperator.")]
Activations = Annotated[str, typer.Option("--activations", help="static: uint8, int8, uint16 or int16.")]
SymmetricActivations = Annotated[
    bool, typer.Option("--symmetric-activations", help="static: zero is the middle of an activation's range.")
]
PerChannel = Annotated[
    bool, typer.Option("--per-channel/--no-per-channel", help="static: a scale for each channel of a weight, or one.")
]
Calibration = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="PATH",
        help="static, weight-only: typical inputs, an .npz file, a folder or a quoted pattern.",
    ),
]
CalibrationMethod = Annotated[
    str, typer.Option("--calibration-method", help="static: minmax, average, percentile, entropy or mse.")
]
Percentile = Annotated[float, typer.Option("--percentile", help="static: what the method percentile covers.")]
BatchSize = Annotated[
    int, typer.Option("--batch-size", min=1, help="static, weight-only: samples in a run of the calibration.")
]
Smooth = Annotated[
    float | None,
    typer.Option("--smooth", metavar="0..1", help="static: SmoothQuant, how much range moves into the weights."),
]
BiasCorrection = Annotated[
    bool,
    typer.Option(
        "--bias-correction/--no-bias-correction",
        help="static: biases make up for what rounded weights do to the mean of results.",
    ),
]
KeepIo = Annotated[
    bool, typer.Option("--keep-io/--no-keep-io", help="float16, bfloat16: the model's inputs and outputs stay float32.")
]
OutOfRange = Annotated[
    str, typer.Option("--out-of-range", help="float16, bfloat16: clamp constants that are too large, or float.")
]
MaxError = Annotated[
    float | None,
    typer.Option("--max-error", metavar="E", help="Keep the worst nodes float, until outputs differ by less."),
]
Inputs = Annotated[
    str | None, typer.Option("--inputs", metavar="PATH", help="What to measure with, as for --calibration.")
]
ExternalData = Annotated[
    bool | None,
    typer.Option(
        "--external-data/--no-external-data",
        help="Weights beside the model, in OUT.onnx.data, or in it. [default: as they are, beside from 2 GiB on]",
    ),
]
#: Options that occur several times, and their names in the library.
_REPEATED = ("include_nodes", "exclude_nodes", "include_operators", "exclude_operators")


@onnx.callback(epilog=examples("lowbit onnx quantize model.onnx small.onnx --mode dynamic"))
def _onnx() -> None:
    """Quantizes and optimizes ONNX models."""


@onnx.command(
    epilog=examples(
        "lowbit onnx quantize model.onnx out.onnx --mode dynamic",
        "lowbit onnx quantize model.onnx out.onnx --mode static --calibration 'samples/*.npz'",
        "lowbit onnx quantize model.onnx out.onnx --mode static --calibration data.npz --calibration-method mse --json",
        "lowbit onnx quantize model.onnx out.onnx --mode weight-only --bits 4 --node-bits '*lm_head*=8'",
        "lowbit onnx quantize model.onnx out.onnx --mode weight-only --bits 2 --calibration data.npz",
        "lowbit onnx quantize model.onnx out.onnx --mode float16 --exclude-operators Softmax --dry-run",
        "lowbit onnx quantize model.onnx out.onnx --mode dynamic --max-error 0.01 --inputs data.npz",
    )
)
def quantize(
    source: Source,
    target: Target,
    mode: Mode,
    include_nodes: IncludeNode = None,
    exclude_nodes: ExcludeNode = None,
    include_operators: IncludeOperator = None,
    exclude_operators: ExcludeOperator = None,
    bits: Bits = 4,
    node_bits: NodeBits = None,
    block_size: BlockSize = 32,
    symmetric: Symmetric = True,
    method: Method = "search",
    accuracy_level: AccuracyLevel = 4,
    standard: Standard = False,
    importances: Importances = None,
    search: Search = True,
    fused: Fused = False,
    format: Format = "QDQ",
    activations: Activations = "uint8",
    symmetric_activations: SymmetricActivations = False,
    per_channel: PerChannel = True,
    calibration: Calibration = None,
    calibration_method: CalibrationMethod = "minmax",
    percentile: Percentile = 99.999,
    batch_size: BatchSize = 1,
    smooth: Smooth = None,
    bias_correction: BiasCorrection = True,
    keep_io: KeepIo = True,
    out_of_range: OutOfRange = "clamp",
    max_error: MaxError = None,
    inputs: Inputs = None,
    external_data: ExternalData = None,
    threads: Threads = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Quantizes a model and lists what was quantized, and what stays float and why.

    The words before the colon say which modes an option belongs to. Static mode and --max-error run the model, which
    needs the extra onnx.
    """
    given = dict(locals())
    import lowbit

    for name in ("source", "target", "json"):
        del given[name]
    options = _options(given)
    start = time.perf_counter()
    report = lowbit.onnx.quantize(source, target, **options, progress=True)
    seconds = time.perf_counter() - start
    if json:
        print_json(vars(report) | {"written": not dry_run, "seconds": seconds})
        return
    _print_quantized(report)
    kept = f", {len(report.kept)} stay float" if report.kept else ""
    sizes = f"{size(report.bytes_before)} -> {size(report.bytes_after)}"
    error = "" if report.error is None else f", error {report.error:.2g}"
    done = f"{mode}, {len(report.quantized)} nodes quantized{kept}, {sizes}{error}"
    print(f"{report.path}: {'would be ' if dry_run else ''}{done}{'' if dry_run else f', {seconds:.1f} s'}")


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """The options of the library. What OnnxOptions refuses is wrong usage."""
    from dataclasses import fields

    from lowbit.onnx import OnnxOptions
    from lowbit.onnx.calibration import load_arrays

    for name in _REPEATED:
        given[name] = tuple(given[name] or ())
    if node_bits := given.pop("node_bits"):
        patterns = dict(parsed("--node-bits", _node_bits, node_bits))
        given["bits"] = {**patterns, "*": patterns.get("*", given["bits"])}
    if given["importances"] is not None:
        given["importances"] = load_arrays(given["importances"])
    with wrong_usage():
        OnnxOptions(**{option.name: given[option.name] for option in fields(OnnxOptions)})
    return given


def _node_bits(text: str) -> tuple[str, int]:
    from lowbit import InputError

    pattern, _, bits = text.rpartition("=")
    if not pattern or not bits.isascii() or not bits.isdecimal() or len(bits) > 2:
        raise InputError(f"{quoted(text)}:", expected="PATTERN=BITS")
    return pattern, int(bits)


def _print_quantized(report: QuantizeReport) -> None:
    groups: dict[tuple[str, str], list[NodeReport]] = defaultdict(list)
    for node in report.quantized:
        groups[node.operator, node.action].append(node)
    rows = []
    for (operator, action), nodes in groups.items():
        before, after = (sum(getattr(node, name) for node in nodes) for name in ("bytes_before", "bytes_after"))
        errors = [node.error for node in nodes if node.error is not None]
        sizes = [size(before), size(after)] if before else ["", ""]
        rows.append([operator, action, str(len(nodes)), *sizes, f"{max(errors):.2g}" if errors else ""])
    if rows:
        columns = ["operator", "quantized", ">nodes", ">weights before", ">after", ">largest error"]
        print_table(columns, rows)
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for node in report.kept:
        reasons[node.operator, node.reason].append(node.name)
    if reasons:
        rows = [[operator, reason, str(len(names)), listed(names)] for (operator, reason), names in reasons.items()]
        print_table(["operator", "stays float", ">nodes", "which"], rows)
    for text in report.notes:
        note(f"note: {text}")


@onnx.command(
    epilog=examples(
        "lowbit onnx sensitivity model.onnx --mode dynamic --inputs data.npz",
        "lowbit onnx sensitivity model.onnx --mode static --calibration 'samples/*.npz' --json",
    )
)
def sensitivity(
    source: Source,
    mode: Mode,
    include_nodes: IncludeNode = None,
    exclude_nodes: ExcludeNode = None,
    include_operators: IncludeOperator = None,
    exclude_operators: ExcludeOperator = None,
    bits: Bits = 4,
    node_bits: NodeBits = None,
    block_size: BlockSize = 32,
    symmetric: Symmetric = True,
    method: Method = "search",
    accuracy_level: AccuracyLevel = 4,
    standard: Standard = False,
    importances: Importances = None,
    search: Search = True,
    fused: Fused = False,
    format: Format = "QDQ",
    activations: Activations = "uint8",
    symmetric_activations: SymmetricActivations = False,
    per_channel: PerChannel = True,
    calibration: Calibration = None,
    calibration_method: CalibrationMethod = "minmax",
    percentile: Percentile = 99.999,
    batch_size: BatchSize = 1,
    smooth: Smooth = None,
    bias_correction: BiasCorrection = True,
    keep_io: KeepIo = True,
    out_of_range: OutOfRange = "clamp",
    inputs: Inputs = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Lists the error of the outputs that each node causes if only it is quantized, the worst first.

    The options are those of quantize. Needs the extra onnx.
    """
    given = dict(locals())
    import lowbit

    data = {name: given.pop(name) for name in ("calibration", "inputs")}
    for name in ("source", "json"):
        del given[name]
    options = lowbit.onnx.OnnxOptions(**_options(given))
    nodes = lowbit.onnx.sensitivity(source, options, **data, progress=True)
    if json:
        print_json({"mode": mode, "nodes": nodes})
        return
    rows = [[n.name, n.operator, n.action, "" if n.error is None else f"{n.error:.2g}"] for n in nodes]
    print_table(["node", "operator", "quantized", ">error"], rows)


@onnx.command(
    epilog=examples(
        "lowbit onnx optimize model.onnx optimized.onnx",
        "lowbit onnx optimize model.onnx raised.onnx --opset 21",
        "lowbit onnx optimize model.onnx optimized.onnx --level all",
        "lowbit onnx optimize model.onnx optimized.onnx --fusions gelu,layer-norm --inputs data.npz",
    )
)
def optimize(
    source: Source,
    target: Target,
    opset: Annotated[
        int | None,
        typer.Option(metavar="N", help="Raise the model to this opset before, 7 to 28. [default: as it is]"),
    ] = None,
    level: Annotated[
        str,
        typer.Option(
            help="portable: operators of ai.onnx only. all: also those that only ONNX Runtime and OpenVINO have.",
            callback=one_of("portable", "all"),
        ),
    ] = "portable",
    fusions: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="gemm, batch-norm, gelu, layer-norm, rms-norm, skip, rotary, attention. [default: all of them]",
        ),
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option(metavar="FILE.npz", help="What to compare outputs with; or a folder. [default: random values]"),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(metavar="ERROR", help="Leave out what changes an output by more, relative to its norm.")
    ] = 1e-4,
    external_data: ExternalData = None,
    dry_run: DryRun = False,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Folds constants, removes what has no effect, and fuses nodes. Raises the opset if asked.

    The outputs are compared with those of the model before. Needs the extra onnx.
    """
    import lowbit

    start = time.perf_counter()
    more: dict[str, Any] = {} if fusions is None else {"fusions": [name.strip() for name in fusions.split(",")]}
    report = lowbit.onnx.optimize(
        source, target, opset=opset, level=level, inputs=inputs, tolerance=tolerance, external_data=external_data,
        dry_run=dry_run, threads=threads, progress=True, **more,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    if json:
        print_json({**vars(report), "seconds": seconds, "written": not dry_run})
        return
    for text in report.notes:
        note(text)
    before, after = report.operators_before, report.operators_after
    names = sorted({*before, *after}, key=lambda name: (-before.get(name, 0), name))
    rows = [[name, str(before.get(name, 0)), str(after.get(name, 0))] for name in names]
    print_table(["operator", ">before", ">after"], rows)
    nodes = f"{report.nodes_before} -> {report.nodes_after} nodes"
    sizes = f"{size(report.bytes_before)} -> {size(report.bytes_after)}"
    would = "would be " if dry_run else ""
    opsets = f"opset {report.opset_before} -> {report.opset_after}, " if opset is not None else ""
    print(f"{report.path}: {would}{opsets}{nodes}, {sizes}, error {report.error:.1e}, {seconds:.1f} s")


app.add_typer(onnx, name="onnx")
