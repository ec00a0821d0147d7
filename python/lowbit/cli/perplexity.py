"""lowbit perplexity: measures perplexity on a text, and divergence from another model."""

from __future__ import annotations

from typing import Annotated

import typer

from lowbit.base.files import read_model_text
from lowbit.cli.app import app, examples
from lowbit.cli.console import print_json
from lowbit.cli.options import Compute, ExistingFile, Json, Like, ModelPath, Threads
from lowbit.cli.tables import print_table


@app.command(
    epilog=examples(
        "lowbit perplexity model.gguf wiki.test.raw",
        "lowbit perplexity model-Q4_K_M.gguf text.txt --reference model-bf16.gguf --json",
    )
)
def perplexity(
    model: ModelPath,
    text: ExistingFile,
    context: Annotated[int, typer.Option("--context", "-c", min=3, help="Tokens per chunk of the text.")] = 512,
    chunks: Annotated[
        int | None, typer.Option("--chunks", min=1, help="Most chunks to measure. [default: all]")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="MODEL", help="Also measure the KL divergence from this model."),
    ] = None,
    like: Like = None,
    threads: Threads = None,
    compute: Compute = "auto",
    json: Json = False,
) -> None:
    """Measures perplexity, and divergence from another model.

    As in llama-perplexity, the first half of each chunk is context and the second half is measured. The text is used
    unchanged, Windows line ends included; only one line feed at its end is removed.
    """
    import lowbit
    from lowbit.base.paths import checked, is_file
    from lowbit.evaluate import measures

    content = read_model_text(text)
    paths = {"model": model} if reference is None else {"reference": reference, "model": model}
    checkpoints = [path for path in paths.values() if not is_file(checked(path))] or paths.values()
    models = {
        name: lowbit.load(
            path, compute=compute, threads=threads, like=like if path in checkpoints else None, progress=True
        )
        for name, path in paths.items()
    }
    figures = measures.compare(models, content, context=context, chunks=chunks, threads=threads, progress=True)
    result, divergence = figures["model"].perplexity, figures["model"].divergence
    if json:
        print_json(
            {
                "model": model,
                "perplexity": result.value,
                "standard_error": result.standard_error,
                "tokens": result.tokens,
                "chunks": result.chunks,
                "context": result.context,
                **({} if divergence is None else {"reference": reference, "divergence": divergence}),
            }
        )
        return
    rows = [["perplexity", _measured(result.value, result.standard_error)]]
    if divergence is not None:
        base = figures["reference"].perplexity
        rows += [
            ["perplexity of the reference", _measured(base.value, base.standard_error)],
            ["KL divergence, mean", _measured(divergence.mean, divergence.standard_error)],
            ["KL divergence, median", f"{divergence.median:.5f}"],
            ["KL divergence, 99th percentile", f"{divergence.percentile_99:.5f}"],
            ["KL divergence, largest", f"{divergence.maximum:.5f}"],
            ["same top token", f"{divergence.same_top:.2%}"],
        ]
    print_table(["figure", ">value"], rows, f"{result.tokens} tokens in {result.chunks} chunks of {context}")


def _measured(value: float, error: float) -> str:
    return f"{value:.5f} ± {error:.5f}"
