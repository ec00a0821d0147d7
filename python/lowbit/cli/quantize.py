"""lowbit quantize: converts a GGUF file to another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowbit.cli.app import app, examples
from lowbit.cli.options import DryRun, Json, Threads, gguf_argument
from lowbit.cli.splits import NoTensorFirst, SplitMaxSize, SplitMaxTensors
from lowbit.cli.writing import (
    EmbeddingType,
    Exclude,
    Imatrix,
    Include,
    LeaveOutput,
    OutputType,
    Overrides,
    PruneLayers,
    Pure,
    Strict,
    TensorTypeFile,
    TensorTypes,
    write,
)


@app.command(
    epilog=examples(
        "lowbit quantize model-bf16.gguf model-Q4_K_M.gguf Q4_K_M",
        "lowbit quantize model-bf16.gguf model-IQ2_M.gguf IQ2_M --imatrix imatrix.gguf",
        "lowbit quantize model-bf16.gguf out.gguf Q4_K_M --tensor-type 'blk\\.[01]\\.=Q8_0' --dry-run",
        "lowbit quantize model-bf16.gguf out.gguf Q5_K_M --output-tensor-type Q8_0 --token-embedding-type Q8_0",
        "lowbit quantize model-Q8_0.gguf out.gguf Q4_0 --allow-requantize --override-kv general.name=str:Mine",
        "lowbit quantize model-00001-of-00003.gguf out.gguf Q6_K --keep-split",
    )
)
def quantize(
    source: Annotated[Path, gguf_argument("IN.gguf", "The file to read.")],
    target: Annotated[str, typer.Argument(metavar="OUT.gguf", help="The file to write, or a folder for it.")],
    format: Annotated[
        str, typer.Argument(metavar="FORMAT", help="A mix (Q4_K_M), a format (Q8_0), their number, or COPY.")
    ],
    imatrix: Imatrix = None,
    include_weights: Include = None,
    exclude_weights: Exclude = None,
    tensor_type: TensorTypes = None,
    tensor_type_file: TensorTypeFile = None,
    pure: Pure = False,
    leave_output_tensor: LeaveOutput = False,
    output_tensor_type: OutputType = None,
    token_embedding_type: EmbeddingType = None,
    allow_requantize: Annotated[
        bool,
        typer.Option("--allow-requantize", help="Quantize tensors again that are already quantized. Loses quality."),
    ] = False,
    keep_split: Annotated[
        bool, typer.Option("--keep-split", help="Write one file OUT-00001-of-0000N.gguf for each file of IN.")
    ] = False,
    prune_layers: PruneLayers = None,
    override_kv: Overrides = None,
    split_max_size: SplitMaxSize = "0",
    split_max_tensors: SplitMaxTensors = 0,
    no_tensor_first_split: NoTensorFirst = False,
    strict: Strict = False,
    threads: Threads = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Quantizes a GGUF file or a split model."""
    given = dict(locals())
    import lowbit

    write(lowbit.quantize_file, given)
