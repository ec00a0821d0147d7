"""lowbit bench: the speed of prefill and decode, a profile of a step, and the limits of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowbit.cli.app import app, examples
from lowbit.cli.console import print_json
from lowbit.cli.options import Compute, Json, Like, Mmap, Threads, any_path, parsed
from lowbit.cli.tables import print_table

if TYPE_CHECKING:
    from lowbit.evaluate.bench import BenchReport
    from lowbit.evaluate.profile import ProfileReport, StageReport


@app.command(
    epilog=examples(
        "lowbit bench model.gguf",
        "lowbit bench model.gguf -p 2048 -n 64 --threads 2 --json",
        "lowbit bench model.gguf --depth 0 --batch 8",
        "lowbit bench model.gguf --depth 4096 --compare llama-bench=./llama.cpp/build/bin/llama-bench",
        "lowbit bench model.gguf --profile --depth 4096 --plot profile.svg",
        "lowbit bench model.gguf --profile --tokens 512 --json",
        "lowbit bench --limits",
    )
)
def bench(
    ctx: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="GGUF file, checkpoint folder or hub id.")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option("-p", "--prompt-tokens", min=1, help="Tokens of the prompt.")] = 512,
    new_tokens: Annotated[
        int, typer.Option("-n", "--new-tokens", min=1, help="Tokens that each sequence generates.")
    ] = 128,
    depth: Annotated[
        int | None,
        typer.Option(
            "--depth",
            "-d",
            min=0,
            help="Tokens of a sequence before these. [default: --prompt-tokens, with --profile 0]",
        ),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", "-b", min=1, help="Sequences that generate together.")] = 1,
    repetitions: Annotated[
        int,
        typer.Option("-r", "--repetitions", min=1, help="Measured runs, with --profile 10; the median is shown."),
    ] = 3,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="llama-bench=PATH",
            help="Run this program of llama.cpp on the same GGUF file, in turn with lowbit.",
        ),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Measure each stage and layer of one step instead.")
    ] = False,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens of the step of --profile.")] = 1,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", parser=any_path, help="Write a plot of the profile: .png, .svg or .pdf."
        ),
    ] = None,
    limits: Annotated[
        bool, typer.Option("--limits", help="Measure this machine instead: memory reads and multiply-adds.")
    ] = False,
    like: Like = None,
    threads: Threads = None,
    compute: Compute = "auto",
    mmap: Mmap = True,
    json: Json = False,
) -> None:
    """Measures the speed of prefill and decode.

    Prefill reads a prompt; decode generates tokens one by one after --depth others. A step of decoding reads all
    weights and the keys and values of the sequences: GB/s counts these bytes, and the limit is the memory's speed,
    measured.

    With --profile: time, bytes and multiply-adds of each stage of a step that reads --tokens tokens of one
    sequence after --depth others. One token is a step of decoding, more are a prompt.
    """
    if limits == (model is not None) or (limits and profile):
        raise typer.BadParameter("expected a MODEL, or --limits alone")
    if limits:
        _machine(threads, json)
        return
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    given = {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}
    options: dict[str, Any] = {"threads": threads, "compute": compute, "mmap": mmap, "like": like, "progress": True}
    if profile:
        if given & {"prompt_tokens", "new_tokens", "batch", "compare"}:
            raise typer.BadParameter("--profile excludes --prompt-tokens, --new-tokens, --batch and --compare")
        options |= {"repetitions": repetitions} if "repetitions" in given else {}
        _profile(str(model), plot, json, tokens=tokens, depth=depth or 0, **options)
        return
    if given & {"tokens", "plot"}:
        raise typer.BadParameter("--tokens and --plot need --profile")
    if compare is not None:
        from lowbit.evaluate.llama_bench import program_of

        parsed("--compare", program_of, [compare])
    from lowbit.evaluate.bench import bench as measure

    result = measure(
        str(model),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        depth=depth,
        batch=batch,
        repetitions=repetitions,
        compare=compare,
        **options,
    )
    if json:
        print_json(result)
    else:
        _print(result)


def _print(result: BenchReport) -> None:
    """The figures as a table."""
    sequences = f", {result.batch} sequences" if result.batch > 1 else ""
    prefill = [f"prefill of {result.prompt_tokens}", f"{result.prefill_tokens_per_s:.1f}", "", "", ""]
    decode = [f"decode of {result.new_tokens} at {result.depth}{sequences}", f"{result.decode_tokens_per_s:.1f}"]
    decode += [f"{result.decode_tokens_per_s / result.batch:.1f}" if sequences else ""]
    decode += [f"{result.read_bytes_per_s / 1e9:.1f}", f"{result.read_share:.0%}"]
    prefill.append(f"{result.prefill_spread:.1%}")
    decode.append(f"{result.decode_spread:.1%}")
    columns = ["what", ">tokens/s", ">each", ">GB/s", ">of limit", ">spread"]
    if peer := result.compared:
        columns += [">llama-bench", ">ratio"]
        prefill += [f"{peer.prefill_tokens_per_s:.1f}", f"{peer.prefill_ratio:.2f}"]
        decode += [f"{peer.decode_tokens_per_s:.1f}", f"{peer.decode_ratio:.2f}"]
    limit = f"memory reads {result.read_limit_bytes_per_s / 1e9:.1f} GB/s"
    title = f"{result.model}, {result.threads} threads, {result.simd}, compute {result.compute}; {limit}"
    print_table(columns, [prefill, decode], title)


def _profile(model: str, plot: Path | None, json: bool, **options: Any) -> None:
    """Profiles a step, writes its plot and prints it."""
    from lowbit.evaluate.profile import profile

    if plot:
        from lowbit.base.operation import replacing
        from lowbit.evaluate.plot import check

        check(plot)  # fails now, not after the work
        replacing([str(plot)])
    found = profile(model, **options)
    if plot:
        from lowbit.evaluate.profile_plot import draw

        draw(found, plot)
    if json:
        print_json(found)
    else:
        _print_profile(found)


def _print_profile(found: ProfileReport) -> None:
    """A table of the stages, and one of the layers."""
    limit = found.read_limit_bytes_per_s

    def row(stage: StageReport) -> list[str]:
        return [
            stage.stage,
            f"{stage.seconds * 1e3:.3f}",
            f"{stage.share:.1%}",
            f"{stage.bytes_read / 1e6:.3f}",
            f"{stage.read_bytes_per_s / 1e9:.1f}",
            f"{stage.read_bytes_per_s / limit:.0%}",
            f"{stage.multiply_adds / 1e6:.3f}",
            f"{stage.multiply_adds_per_s / 1e9:.1f}",
        ]

    step = f"{found.model}: step of {found.tokens} token{'s' if found.tokens > 1 else ''} at {found.depth}"
    machine = f"{found.threads} threads, {found.simd}, compute {found.compute}; memory reads {limit / 1e9:.1f} GB/s"
    columns = ["stage", ">ms", ">share", ">MB", ">GB/s", ">of limit", ">M multiply-adds", ">G/s"]
    print_table(columns, [row(stage) for stage in (*found.stages, found.step)], f"{step}; {machine}")
    names = list(dict.fromkeys(stage.stage for stage in found.layers))
    cells = {(stage.layer, stage.stage): f"{stage.seconds * 1e6:.1f}" for stage in found.layers}
    rows = [[str(layer), *(cells[layer, name] for name in names)] for layer in dict.fromkeys(key[0] for key in cells)]
    print_table(["layer", *(f">{name.replace('_', ' ')}" for name in names)], rows, "microseconds of each layer")


def _machine(threads: int | None, json: bool) -> None:
    """Measures and prints the machine's limits, with one thread and with all."""
    from lowbit.base.threads import num_threads
    from lowbit.evaluate.limits import machine_limits

    found = [machine_limits(count) for count in sorted({1, num_threads(threads)})]
    if json:
        print_json(found)
        return

    def row(name: str, rates: list[float]) -> list[str]:
        return [name, *(f"{rate / 1e9:.1f}" for rate in rates)]

    def rates(field: str) -> list[float]:
        return [getattr(limits, field) for limits in found]

    rows = [
        row("memory reads, GB/s", rates("read_bytes_per_s")),
        row("memory reads in huge pages, GB/s", rates("read_huge_pages_bytes_per_s")),
        row("int8 multiply-adds, G/s", rates("int8_per_s")),
        row("bf16 multiply-adds, G/s", rates("bf16_per_s")),
        row("f32 multiply-adds, G/s", rates("f32_per_s")),
    ]
    columns = ["what", *(f">{limits.threads} thread{'s' if limits.threads > 1 else ''}" for limits in found)]
    print_table(columns, rows, f"limits of this machine, {found[0].simd}")
