"""Loading the tokenizer of a GGUF file, compared with the tokenizers library and the same tokenizer as tokenizer.json.

Checked first: both give the same ids for the built-in texts. `Tokenizer.backend.save` writes tokenizer.json. Files are
in the page cache.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import harness
import tokenizers

import lowbit
from lowbit.tokenizer.differences import TEXTS


def check(path: Path, saved: Path) -> int:
    """Writes the peer's file; returns the number of tokens. Ends the program if ids differ."""
    ours = lowbit.load_tokenizer(path)
    ours.backend.save(str(saved))
    peer = tokenizers.Tokenizer.from_file(str(saved))
    for text in TEXTS:
        if ours.encode(text) != peer.encode(text).ids:
            sys.exit(f"{path}: ids of {text[:40]!r} differ")
    return ours.vocab_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.gguf")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write facts, samples and ratios to OUT")
    parser.add_argument("--pairs", type=int, default=7, metavar="N", help="timed pairs [default: 7]")
    options = parser.parse_args()
    options.threads = 1
    peer = {"name": "tokenizers", "version": tokenizers.__version__, "build": "wheel"}
    recorder = harness.Recorder("tokenizer", options, peer)
    for path in options.files:
        with tempfile.TemporaryDirectory() as folder:
            saved = Path(folder) / "tokenizer.json"
            count = check(path, saved)
            samples = harness.alternate(
                lambda path=path: harness.time_calls(lambda: lowbit.load_tokenizer(path)),
                lambda saved=saved: harness.time_calls(lambda: tokenizers.Tokenizer.from_file(str(saved))),
                pairs=options.pairs,
            )
        recorder.add(harness.comparison(path.stem, count, "tokens", *samples))
    recorder.finish()


if __name__ == "__main__":
    main()
