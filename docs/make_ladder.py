"""Writes docs/ladder.md and docs/ladder.svg: measures the embedded model in every mix.

    python docs/make_ladder.py

Takes a few minutes. Run it on an idle machine: the figures include speed.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import lowbit
from lowbit.evaluate.ladder import Ladder, ladder
from lowbit.evaluate.plot import draw

DOCS = Path(__file__).parent

HEAD = """\
# The ladder

    lowbit ladder MODEL [TEXT] --plot ladder.svg

quantizes a checkpoint or a GGUF file of floats to one mix after another, from 8 bits down to 1. It reports size,
perplexity, divergence from the original, and speed. The files are temporary, and only one exists at a time.
`--rungs Q8_0,Q4_K_M,Q2_K` selects the mixes. `--json` prints every figure. The Python function is
`lowbit.evaluate.ladder.ladder`.

All mixes are encoded with an importance matrix, because the lowest ones require it. It comes from `--imatrix`. Without
this option it is computed from the second half of the text's chunks; only the first half is measured.

The model of this page is bard, which is part of lowbit (3.7 million weights, trained for 16 bits). The text is held out
from its training. `python docs/make_ladder.py` writes this page.

![Divergence, perplexity and speed of each format over its bits per weight](ladder.svg)

"""

TAIL = """
- KL divergence is the mean over the tokens, in nats, of the difference between the predictions of a mix and of the
  original. It shows losses that perplexity hides, because the standard error of perplexity is larger. Compare two mixes
  by this column.
- Bits per weight are those of all tensors in the file. In a small model the embeddings are a large part, and in the
  lowest mixes they have more bits than the layers. Larger models come closer to a format's nominal bits.
- TQ1_0 and TQ2_0 hold ternary weights. Models that were trained with ternary weights lose nothing. For other models,
  such as this one, they are unsuitable, as the figures show.
- A model of this size stays in the processor's cache, so its tokens/s say little about larger models. A larger model is
  read from memory for each token, and fewer bits mean fewer bytes to read.
"""


def table(found: Ladder) -> str:
    """The figures in Markdown."""
    lines = [
        "| format | bits per weight | file | perplexity | KL divergence | same top token | tokens/s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for rung in (found.original, *found.rungs):
        divergence = f"{rung.kl_divergence:.5f}" if rung is not found.original else ""
        lines.append(
            f"| {rung.format} | {rung.bits_per_weight:.2f} | {rung.file_bytes / 1e6:.2f} MB | "
            f"{rung.perplexity:.2f} ± {rung.perplexity_error:.1f} | {divergence} | {rung.same_top:.1%} | "
            f"{rung.decode_tokens_per_s:.0f} |"
        )
    note = (
        f"{found.tokens} tokens in {found.chunks} chunks of {found.context}; importances from {found.importances}; "
        f"speed of one thread, {lowbit.simd.current()}."
    )
    return "\n".join([*lines, "", note]) + "\n"


def main() -> None:
    """Measures, draws and writes."""
    found = ladder(Path(str(files("lowbit") / "data" / "bard")), threads=1)
    draw(found, DOCS / "ladder.svg")
    (DOCS / "ladder.md").write_text(HEAD + table(found) + TAIL, encoding="utf-8")


if __name__ == "__main__":
    main()
