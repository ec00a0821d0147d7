"""Writes docs/formats.md: sizes come from the registry, byte maps from the comments that open src/formats/*/*.cc.

    python docs/make_formats.py [FILE]

FILE instead of docs/formats.md, for the test that compares the two.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import lowbit
from lowbit import _core

ROOT = Path(__file__).parents[1]

HEAD = """\
# Formats

lowbit encodes, decodes and multiplies all formats of this page. Encoded bytes are those of ggml's reference quantizers.
Decoded values equal ggml's bit for bit. `python docs/make_formats.py` writes this page.

Sizes include scales and padding. "smaller than F16" is the size of a matrix in F16 divided by its size in the format.
The last column says how encoding uses importances (`imatrix=`): some formats require them, some use them if given.

| format | GGUF type | bits per weight | weights per block | bytes per block | smaller than F16 | importances |
| --- | ---: | ---: | ---: | ---: | ---: | --- |
"""

MAPS = """
## In MLX

`mlx.core.load` of MLX 0.32.4 reads these formats of a GGUF file:

| format | result |
| --- | --- |
| F32, F16 | exact |
| BF16 | a float16 array: values beyond its range are lost |
| Q4_0, Q4_1, Q8_0 | packed codes, scales and biases of MLX, right to the rounding of the biases |
| Q2_K, Q6_K | a float16 array, right to its rounding |
| Q4_K | wrong values, without an error ([script](../findings/mlx-gguf-q4-k.sh)) |
| Q3_K, Q5_0, Q5_1, Q5_K, all IQ formats | RuntimeError |
| TQ1_0, TQ2_0, MXFP4, NVFP4, Q1_0 | missing, with all that follow ([script](../findings/mlx-gguf-unknown-type.sh)) |

Files of a mixture have several formats: Q4_K_M has Q4_K and Q6_K.

## Byte maps

The maps list the bytes of a block in order. Numbers are little-endian. `w[i]` is the decoded weight `i` of the block.
"""


def importances(format: _core.Format) -> str:
    """Determined by a trial: whether importances change the bytes of random weights."""
    if format.needs_imatrix:
        return "required"
    random = np.random.default_rng(0)
    weights = random.standard_normal((8, 1024)).astype(np.float32)
    weighted = lowbit.quantize(weights, format.name, imatrix=random.random(1024))
    return "used" if (weighted.data != lowbit.quantize(weights, format.name).data).any() else "not used"


def row(format: _core.Format) -> str:
    """The format's line of the table."""
    sizes = f"{format.bits_per_weight:g} | {format.block_size} | {format.block_bytes}"
    smaller = f"{16 / format.bits_per_weight:.2f}x"
    return f"| {format.name} | {format.ggml_type} | {sizes} | {smaller} | {importances(format)} |\n"


def _source(format: _core.Format) -> Path:
    (file,) = (ROOT / "src" / "formats").glob(f"*/{format.name.lower()}.cc")
    return file


def section(format: _core.Format) -> str:
    """The comment at the top of the format's file; its indented lines stay as they are."""
    lines = []
    for line in _source(format).read_text(encoding="utf-8").splitlines():
        if not line.startswith("//"):
            break
        text = line.removeprefix("//")
        lines.append(f" {text}" if text.startswith("   ") else text.removeprefix(" "))
    title, _, text = "\n".join(lines).partition(": ")
    return f"\n### {title}\n\n{text[0].upper()}{text[1:]}\n"


def page() -> str:
    """The whole page."""
    formats = sorted(lowbit.formats(), key=lambda f: f.ggml_type)
    return HEAD + "".join(map(row, formats)) + MAPS + "".join(map(section, formats))


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "formats.md"
    target.write_text(page(), encoding="utf-8")
