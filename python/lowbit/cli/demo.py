"""lowbit demo: all steps with the embedded checkpoint."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from lowbit.base.log import without_notes
from lowbit.base.progress import steps
from lowbit.cli.app import app, examples
from lowbit.cli.console import note, print_json, size
from lowbit.cli.options import Json, Threads, any_path
from lowbit.cli.tables import print_table

FORMATS = ("BF16", "Q8_0", "Q4_K_M", "Q2_K")  # the first is the reference of the divergence
CONTEXT = 512
PROMPT = "ROMEO:\n"
SPEAKER = "Q4_K_M"


@dataclass(frozen=True)
class Row:
    """The figures of one format."""

    format: str
    path: str
    file_bytes: int
    bits_per_weight: float
    perplexity: float
    kl_divergence: float
    same_top: float
    decode_tokens_per_s: float


@app.command(epilog=examples("lowbit demo", "lowbit demo --keep ./bard  # keeps the GGUF files there"))
def demo(
    keep: Annotated[
        Path | None,
        typer.Option("--keep", metavar="DIR", parser=any_path, help="Keep the GGUF files in this folder."),
    ] = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Runs all steps with the embedded model, in about a minute.

    Converts it to four formats, measures each, and generates a passage with one of them.
    """
    start = time.perf_counter()
    with ExitStack() as stack:
        data = stack.enter_context(as_file(files("lowbit") / "data"))
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lowbit-")))
        folder.mkdir(parents=True, exist_ok=True)
        paths = _convert(data / "bard", folder)
        rows, tokens = _measure(paths, (data / "bard-valid.txt").read_text(encoding="utf-8"), threads)
        passage = _write(paths[SPEAKER], threads)
    if json:
        print_json({"context": CONTEXT, "tokens": tokens, "formats": rows, "passage": passage})
        return
    _print(rows, tokens)
    print(f"{SPEAKER} writes:\n\n{passage}")
    kept = f"; files in {keep}" if keep else ""
    note(f"\n{time.perf_counter() - start:.1f} s in all{kept}")


def _convert(checkpoint: Path, folder: Path) -> dict[str, Path]:
    import lowbit

    paths = {name: folder / f"bard-{name}.gguf" for name in FORMATS}
    with steps("convert", "files", True) as advance, without_notes():
        for done, (name, path) in enumerate(paths.items(), 1):
            lowbit.convert(checkpoint, path, format=name, verify=False)
            advance(done, len(paths))
    return paths


def _measure(paths: dict[str, Path], text: str, threads: int | None) -> tuple[list[Row], int]:
    """The rows, and the number of predicted tokens."""
    import lowbit
    from lowbit.evaluate.bench import bench
    from lowbit.evaluate.inspect import inspect
    from lowbit.evaluate.measures import compare

    models = {name: lowbit.load(path, threads=threads) for name, path in paths.items()}
    figures = compare(models, text, context=CONTEXT, threads=threads, progress=True)
    rows = []
    with steps("bench", "files", True) as advance:
        for done, (name, path) in enumerate(paths.items(), 1):
            report, found = inspect(path), figures[name]
            rows.append(
                Row(
                    format=name,
                    path=str(path),
                    file_bytes=report.file_bytes,
                    bits_per_weight=report.total.bits_per_weight,
                    perplexity=found.perplexity.value,
                    kl_divergence=found.divergence.mean if found.divergence else 0.0,
                    same_top=found.divergence.same_top if found.divergence else 1.0,
                    decode_tokens_per_s=bench(
                        path, prompt_tokens=128, new_tokens=64, threads=threads
                    ).decode_tokens_per_s,
                )
            )
            advance(done, len(paths))
    return rows, figures[FORMATS[0]].perplexity.tokens


def _write(path: Path, threads: int | None) -> str:
    import lowbit

    model = lowbit.load(path, threads=threads)
    return PROMPT + model.generate(PROMPT, max_tokens=160, temperature=0.8, top_p=0.95, seed=1)


def _print(rows: list[Row], tokens: int) -> None:
    columns = ["format", ">file", ">bits per weight", ">perplexity", ">KL to BF16", ">same top token", ">tokens/s"]
    cells = [
        [
            row.format,
            size(row.file_bytes),
            f"{row.bits_per_weight:.2f}",
            f"{row.perplexity:.3f}",
            f"{row.kl_divergence:.5f}",
            f"{row.same_top:.1%}",
            f"{row.decode_tokens_per_s:.0f}",
        ]
        for row in rows
    ]
    print_table(columns, cells, f"bard, a model of Shakespeare, on {tokens} tokens of held-out text")
