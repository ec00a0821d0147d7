"""lowbit diff: compares two GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowbit.base.quoting import MOST_MESSAGE, printable, reason
from lowbit.cli.app import app, examples, settings
from lowbit.cli.console import note, print_json
from lowbit.cli.options import Json, Threads, gguf_argument
from lowbit.cli.tables import print_table

if TYPE_CHECKING:
    from lowbit.gguf import GgufDiff, TensorDiff, TensorInfo

_FAILED = 2  # 1 means that the files differ


@app.command(
    epilog=examples(
        "lowbit diff a.gguf b.gguf",
        "lowbit diff ours.gguf theirs.gguf --ignore 'lowbit.*' --ignore general.name",
        "lowbit diff model-bf16.gguf model-Q4_K_M.gguf --no-metadata",
        "lowbit diff whole.gguf parts-00001-of-00003.gguf --ignore 'split.*' --json",
    )
)
def diff(
    a: Annotated[Path, gguf_argument("A.gguf", "GGUF file, or one of a split model.")],
    b: Annotated[Path, gguf_argument("B.gguf", "The file to compare with.")],
    metadata: Annotated[bool, typer.Option("--metadata/--no-metadata", help="Compare the metadata.")] = True,
    tensors: Annotated[bool, typer.Option("--tensors/--no-tensors", help="Compare the tensors.")] = True,
    ignore: Annotated[
        list[str] | None,
        typer.Option("--ignore", metavar="PATTERN", help="Ignore matching keys, for example 'lowbit.*'; repeatable."),
    ] = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Compares two GGUF files, key by key and tensor by tensor.

    For tensors with different weights, the number of different blocks and the size of the difference are shown. The
    exit status is 0 if nothing differs, 1 if something differs, 2 if the comparison failed.
    """
    if not (metadata or tensors):
        raise typer.BadParameter("nothing is left to compare", param_hint="--no-metadata --no-tensors")
    import lowbit

    try:
        found = lowbit.gguf.diff(
            a, b, metadata=metadata, tensors=tensors, ignore=ignore or (), threads=threads, progress=True
        )
    except (lowbit.Error, OSError) as error:
        if settings.debug:
            raise
        note(f"lowbit: {reason(error, MOST_MESSAGE)}")
        raise typer.Exit(_FAILED) from None
    if json:
        print_json(_as_json(found))
    else:
        _print(found)
    raise typer.Exit(0 if found.equal else 1)


def _print(found: GgufDiff) -> None:
    from lowbit.gguf.values import described

    if found.keys:
        rows = [[k.key, k.kind, _typed(k.a, described(k.a, k.b)), _typed(k.b, described(k.b, k.a))] for k in found.keys]
        print_table(["key", "differs in", "A", "B"], rows)
    if found.tensors:
        columns = ["tensor", "differs in", "A", "B", ">blocks", ">relative RMSE", ">largest"]
        print_table(columns, [_row(tensor) for tensor in found.tensors])
    orders = [what for what, order in (("keys", found.key_order), ("tensors", found.tensor_order)) if order]
    if orders:
        print(f"The order of {' and '.join(orders)} differs.")
    keys, tensors = (
        f"{len(found.keys)} of {found.num_keys} keys",
        f"{len(found.tensors)} of {found.num_tensors} tensors",
    )
    print("No difference." if found.equal else f"{keys} and {tensors} differ.")


def _typed(value: Any, text: str) -> str:
    from lowbit.gguf.values import type_name

    return "" if value is None else f"{printable(text)} ({type_name(value)})"


def _row(tensor: TensorDiff) -> list[str]:
    def info(side: TensorInfo | None, other: TensorInfo | None = None) -> str:
        if side is None:
            return ""
        # An equal shape is not repeated, so that the table fits into 80 columns.
        return (
            side.format if other and other.shape == side.shape else f"{' x '.join(map(str, side.shape))} {side.format}"
        )

    blocks = "" if tensor.blocks is None else f"{tensor.blocks} of {tensor.num_blocks}"
    figures = ["" if number is None else f"{number:.4g}" for number in (tensor.relative, tensor.max)]
    return [tensor.name, tensor.kind, info(tensor.a), info(tensor.b, tensor.a), blocks, *figures]


def _as_json(found: GgufDiff) -> dict[str, Any]:
    from lowbit.evaluate.inspect import summary
    from lowbit.gguf.values import type_name

    def side(value: Any) -> Any:
        return None if value is None else {"type": type_name(value), "value": summary(value)}

    def info(side: TensorInfo | None) -> Any:
        return None if side is None else side._asdict()

    return {
        "equal": found.equal,
        "keys": [{"key": k.key, "kind": k.kind, "a": side(k.a), "b": side(k.b)} for k in found.keys],
        "tensors": [
            vars(tensor)
            | {"kind": tensor.kind, "a": tensor.a and tensor.a._asdict(), "b": tensor.b and tensor.b._asdict()}
            for tensor in found.tensors
        ],
        "key_order": found.key_order,
        "tensor_order": found.tensor_order,
        "num_keys": found.num_keys,
        "num_tensors": found.num_tensors,
    }
