"""lowbit formats: the tensor formats."""

from __future__ import annotations

from lowbit.cli.app import app, examples
from lowbit.cli.console import print_json
from lowbit.cli.options import Json
from lowbit.cli.tables import print_table


@app.command(name="formats", epilog=examples("lowbit formats", "lowbit formats --json | jq '.[].name'"))
def formats_command(json: Json = False) -> None:
    """Lists the tensor formats and their exact sizes."""
    import lowbit

    rows = [
        {
            "name": f.name,
            "ggml_type": f.ggml_type,
            "block_size": f.block_size,
            "block_bytes": f.block_bytes,
            "bits_per_weight": f.bits_per_weight,
            "needs_imatrix": f.needs_imatrix,
        }
        for f in lowbit.formats()
    ]
    if json:
        print_json(rows)
        return
    print_table(
        ["format", ">GGUF type", ">weights per block", ">bytes per block", ">bits per weight", "needs imatrix"],
        [
            [
                str(row["name"]),
                str(row["ggml_type"]),
                str(row["block_size"]),
                str(row["block_bytes"]),
                f"{row['bits_per_weight']:g}",
                "yes" if row["needs_imatrix"] else "",
            ]
            for row in rows
        ],
    )
