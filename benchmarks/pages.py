"""Decoding with weights in small pages and in large ones, in turn. Needs no peer.

A system keeps a file in memory in pages of the sizes in which it was read or written. The same file is written in
pieces of 4 KiB and of 2 MiB, and mapped; and the first one's weights are copied to memory (`lowbit.load(mmap=False)`).
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import harness
from harness import Sample

import lowbit
from lowbit.evaluate.bench import Runs

SMALL, LARGE = 4 << 10, 2 << 20


def copy(path: Path, to: Path, piece: int) -> Path:
    """A copy of a file, written in pieces of so many bytes."""
    with path.open("rb") as source, to.open("wb", buffering=0) as target:
        while data := source.read(piece):
            target.write(data)
    return to


def decode(runs: Runs, tokens: int) -> Sample:
    return Sample(runs.decode(tokens, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", metavar="GGUF")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write facts, samples and ratios to OUT")
    parser.add_argument("--pairs", type=int, default=5, metavar="N", help="timed pairs [default: 5]")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="[default: 2]")
    parser.add_argument("--new", type=int, default=32, metavar="N", help="decoded tokens [default: 32]")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where files are written [default: temporary]")
    options = parser.parse_args()
    recorder = harness.Recorder("pages", options, {"name": "lowbit", "version": "the same", "build": "small pages"})
    for model in options.models:
        with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
            small = copy(model, Path(folder) / "small.gguf", SMALL)
            large = copy(model, Path(folder) / "large.gguf", LARGE)
            loaded = {
                "small": lowbit.load(small, threads=options.threads),
                "file in large pages": lowbit.load(large, threads=options.threads),
                "weights in memory": lowbit.load(small, threads=options.threads, mmap=False),
            }
            calls = [partial(decode, Runs(model), options.new) for model in loaded.values()]
            peer, *others = harness.alternate(*calls, pairs=options.pairs)
        for name, samples in zip(list(loaded)[1:], others, strict=True):
            recorder.add(harness.comparison(f"{model.stem}: {name}", options.new, "tokens", samples, peer))
    recorder.finish()


if __name__ == "__main__":
    main()
