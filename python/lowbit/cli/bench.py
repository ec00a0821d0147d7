"""lowbit bench: the speed of prefill and decode, and the limits of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lowbit.cli.app import app, examples
from lowbit.cli.console import print_json
from lowbit.cli.options import Compute, Json, Like, Threads, parsed
from lowbit.cli.tables import print_table

if TYPE_CHECKING:
    from lowbit.evaluate.bench import BenchReport


@app.command(
    epilog=examples(
        "lowbit bench model.gguf",
        "lowbit bench model.gguf -p 2048 -n 64 --threads 2 --json",
        "lowbit bench model.gguf --depth 0 --batch 8",
        "lowbit bench model.gguf --depth 4096 --compare llama-bench=./llama.cpp/build/bin/llama-bench",
        "lowbit bench --limits",
    )
)
def bench(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="GGUF file, checkpoint folder or hub id.")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option("-p", "--prompt-tokens", min=1, help="Tokens of the prompt.")] = 512,
    new_tokens: Annotated[
        int, typer.Option("-n", "--new-tokens", min=1, help="Tokens that each sequence generates.")
    ] = 128,
    depth: Annotated[
        int | None,
        typer.Option("--depth", "-d", min=0, help="Tokens of a sequence before these. [default: --prompt-tokens]"),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", "-b", min=1, help="Sequences that generate together.")] = 1,
    repetitions: Annotated[
        int, typer.Option("-r", "--repetitions", min=1, help="Measured runs; the median is shown.")
    ] = 3,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="llama-bench=PATH",
            help="Run this program of llama.cpp on the same GGUF file, in turn with lowbit.",
        ),
    ] = None,
    limits: Annotated[
        bool, typer.Option("--limits", help="Measure this machine instead: memory reads and multiply-adds.")
    ] = False,
    like: Like = None,
    threads: Threads = None,
    compute: Compute = "auto",
    json: Json = False,
) -> None:
    """Measures the speed of prefill and decode.

    Prefill reads a prompt; decode generates tokens one by one after --depth others. A step of decoding reads all
    weights and the keys and values of the sequences: GB/s counts these bytes, and the limit is the memory's speed,
    measured.
    """
    if limits == (model is not None):
        raise typer.BadParameter("expected a MODEL, or --limits alone")
    if limits:
        _machine(threads, json)
        return
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
        threads=threads,
        compute=compute,
        like=like,
        compare=compare,
        progress=True,
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
