"""Two processes that decode at the same time: each with all threads, and each with half of them, in turn.

A server and a notebook, or two notebooks, by default use all processors each. The loss against half the machine for
each is what waiting costs: a thread that waits for another one, which the other process's thread keeps from running.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import harness
from harness import Sample
from peers import Engine


def together(engines: list[Engine], tokens: int) -> Sample:
    """Seconds of the slower one."""
    with ThreadPoolExecutor(len(engines)) as pool:
        runs = [pool.submit(engine.decode, tokens, 0, 1) for engine in engines]
        return Sample(max(run.result().wall_s for run in runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", metavar="GGUF")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write facts, samples and ratios to OUT")
    parser.add_argument("--pairs", type=int, default=5, metavar="N", help="timed pairs [default: 5]")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of the machine, even [default: 2]")
    parser.add_argument("--new", type=int, default=64, metavar="N", help="tokens of each process [default: 64]")
    options = parser.parse_args()
    peer = {"name": "lowbit", "version": "the same", "build": f"{options.threads // 2} threads each"}
    recorder = harness.Recorder("sharing", options, peer)
    for model in options.models:
        with ExitStack() as stack:
            sides = [
                [stack.enter_context(Engine("lowbit", "lowbit", model, threads)) for _ in range(2)]
                for threads in (options.threads, options.threads // 2)
            ]
            runs = [partial(together, engines, options.new) for engines in sides]
            samples = harness.alternate(*runs, pairs=options.pairs)
        recorder.add(harness.comparison(f"{model.stem}: two processes", 2 * options.new, "tokens", *samples))
    recorder.finish()


if __name__ == "__main__":
    main()
