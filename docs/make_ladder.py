"""Writes docs/ladder.md and docs/ladder.svg: measures the embedded model in every rung.

    python docs/make_ladder.py

Takes a few minutes, and shows the machine's speed of the moment: run it when the machine has nothing else to do.
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

quantizes a checkpoint or a GGUF file of floats to one mix after the other, from 8 bits down to 1, and says what each
costs and loses: size, perplexity, divergence from the original and speed. Files are made one at a time in a temporary
folder. `--rungs Q8_0,Q4_K_M,Q2_K` chooses the mixes, `--json` prints every figure; from Python it is
`lowbit.evaluate.ladder.ladder`.

Every rung is encoded with importances, which the lowest cannot do without. They come from `--imatrix`, or else from the
text itself: the first half of its windows is measured, and the second half, which is not, gives the importances.

This is the model that comes with lowbit, bard (3.7 million weights, made for 16 bits), on the text held out from it.
`python docs/make_ladder.py` makes this page.

![Divergence, perplexity and speed of each format over its bits a weight](ladder.svg)

"""

TAIL = """
- KL divergence is the mean over the tokens, in nats, of how far a rung's predictions are from the original's. It sees
  losses that perplexity, whose own error is larger, cannot: of two rungs compare this one.
- Bits a weight are those of the whole file's tensors. In a model as small as this one the embeddings, which have more
  bits than the layers in the lowest mixes, are a large part: bigger models come closer to a format's nominal bits.
- TQ1_0 and TQ2_0 hold ternary weights. For models trained to have such weights they lose nothing; for others, like
  this one, they are not meant, and the figures show why.
- A model as small as this one stays in the processor's cache, so its tokens/s say little of larger models: those are
  read from memory for each token, and fewer bits are fewer bytes to read.
"""


def table(found: Ladder) -> str:
    """The figures in Markdown."""
    lines = [
        "| format | bits a weight | file | perplexity | KL divergence | same top token | tokens/s |",
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
        f"{found.tokens} tokens in {found.windows} windows of {found.context}; importances from {found.importances}; "
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
