"""Stores what llama-imatrix collects: `python tests/make_imatrix.py LLAMA_CPP_BINARIES`.

Writes data/imatrix.npz, which test_imatrix.py compares with: its files as bytes.
"""

import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import numpy as np
from tiny_checkpoint import make_checkpoint

import lowbit

DATA = Path(str(files("lowbit"))) / "data"
STORED = Path(__file__).parent / "data" / "imatrix.npz"
#: Text for the tiny network, with a special token written out. In `special` it counts as such.
TINY_TEXT = "the thing and <|eot_id|> another one\nin the sand, there " * 20
#: A tokenizer that begins each text with a token; an output matrix of its own.
TINY = {"arch": "llama", "layers": 1, "hidden": 64, "ffn": 96, "heads": 4, "kv_heads": 2, "head_dim": 16, "seed": 7}
TINY_CONTEXT, TINY_FIRST, TINY_CHUNKS = 32, 1, 6
BARD_CONTEXT, BARD_CHUNKS = 512, 6


def main() -> None:
    program = Path(sys.argv[1]) / "llama-imatrix"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def run(out: str, *arguments: object) -> None:
            # Products and cache in float32, so that only the order of sums differs; a chunk at a time, since several
            # together leave a rest of fewer than 16 tokens, which the program does not count.
            command = [program, "-o", out, "-ctk", "f32", "-ctv", "f32", "-fa", "off", "-t", "2", "--no-ppl"]
            subprocess.run([*command, *map(str, arguments)], cwd=folder, check=True, capture_output=True)

        lowbit.convert(DATA / "bard", folder / "bard.gguf", "F32", verify=False, provenance=False)
        lowbit.convert(
            make_checkpoint(folder / "checkpoint", **TINY), folder / "tiny.gguf", "F32", verify=False, provenance=False
        )
        (folder / "bard.txt").write_bytes((DATA / "bard-valid.txt").read_bytes())
        (folder / "tiny.txt").write_text(TINY_TEXT)
        run(
            "bard", "-m", "bard.gguf", "-f", "bard.txt", "-c", BARD_CONTEXT, "-b", BARD_CONTEXT, "--chunks", BARD_CHUNKS
        )  # fmt: skip
        tiny = ["-m", "tiny.gguf", "-f", "tiny.txt", "-c", TINY_CONTEXT, "-b", TINY_CONTEXT]
        tiny += ["--chunk", TINY_FIRST, "--chunks", TINY_CHUNKS]
        run("tiny", *tiny, "--process-output")
        run("special", *tiny, "--parse-special")
        run("old", *tiny, "--output-format", "dat")
        run("merged", "-m", "none", "-c", TINY_CONTEXT, "--in-file", "tiny,old,special")
        names = ("bard", "tiny", "special", "old", "merged")
        np.savez_compressed(STORED, **{name: np.fromfile(folder / name, np.uint8) for name in names})


if __name__ == "__main__":
    main()
