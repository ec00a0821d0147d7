"""Seconds and memory from the start of a program to the first token of a GGUF file, each in a fresh process.

In turn: a Python program that runs the file stage by stage, the command `lowbit run FILE Hello -n 1`, and with --peer
llama-completion. Files are in the page cache, and Python's compiled files are written before. Checked first: the
command prints what a model in this process writes, and every run gives the same tokens.

The stages come one after the other: `import` of lowbit.load, `open` the file, `first token` (one token is read),
`tokenizer` (loaded, and a word encoded), and `generation` of 16 tokens. Memory is given after the last: `anonymous`
memory, and all resident memory without the pages of the model's file, which also counts libraries. Both include the
cache of the sequence.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
from harness import Sample
from peer import Peer

import lowbit

PROMPT = "Hello"
STAGES = ("python", "import", "open", "first token", "tokenizer", "generation")
#: Prints seconds and CPU seconds of each stage, bytes of memory, and the tokens.
PROGRAM = """
import json, os, sys, time
def clock():
    return time.perf_counter(), time.process_time()
path, prompt, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
marks = [clock()]
import lowbit
lowbit.load
marks.append(clock())
model = lowbit.load(path, threads=threads)
marks.append(clock())
model.logits([1])
marks.append(clock())
ids = model.tokenizer.encode(prompt)
marks.append(clock())
tokens = list(model.tokens(ids, max_tokens=16, ignore_eos=True))
marks.append(clock())
status, mapped = {}, 0
if os.path.exists("/proc/self/smaps"):
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    lines = open("/proc/self/smaps").read().splitlines()
    begins = [i for i, line in enumerate(lines) if line.endswith(os.path.realpath(path))]
    mapped = sum(int(next(line for line in lines[i:] if line.startswith("Rss:")).split()[1]) for i in begins)
memory = {key: int(value.split()[0]) << 10 for key, value in status.items() if key in ("VmRSS", "RssAnon")}
print(json.dumps({"marks": marks, "memory": memory, "mapped": mapped << 10, "ids": ids, "tokens": tokens}))
"""
#: For our processes: compiled files are kept, as where lowbit is installed.
ENVIRONMENT = {"PYTHONDONTWRITEBYTECODE": ""}


class Stages:
    """The Python program; `runs` has what each run printed."""

    def __init__(self, path: Path, threads: int) -> None:
        self._command = [sys.executable, "-c", PROGRAM, str(path), PROMPT, str(threads)]
        self.runs: list[dict[str, Any]] = []

    def run(self) -> Sample:
        sample, output = harness.run_command(self._command, ENVIRONMENT)
        run = json.loads(output)
        if self.runs and run["tokens"] != self.runs[0]["tokens"]:
            sys.exit(f"{self._command[3]}: two runs gave {self.runs[0]['tokens']} and {run['tokens']}")
        self.runs.append(run)
        return sample

    def seconds(self) -> dict[str, list[tuple[float, float]]]:
        """Stage -> seconds and CPU seconds of each run. Of Python's own start both are CPU seconds."""
        marks = [run["marks"] for run in self.runs]
        found = {"python": [(first[0][1], first[0][1]) for first in marks]}
        for i, stage in enumerate(STAGES[1:]):
            found[stage] = [(run[i + 1][0] - run[i][0], run[i + 1][1] - run[i][1]) for run in marks]
        return found

    def memory(self) -> dict[str, list[int]]:
        """Bytes at the end of each run; empty where the system does not tell."""
        known = [run for run in self.runs if run["memory"]]
        return {
            "anonymous": [run["memory"]["RssAnon"] for run in known],
            "beyond the file": [run["memory"]["VmRSS"] - run["mapped"] for run in known],
        }


def check(path: Path, threads: int) -> None:
    """Ends the program if the command writes another text than a model in this process."""
    expected = lowbit.load(path, threads=threads).generate(PROMPT, max_tokens=1)
    _, output = harness.run_command([*command(path, threads), "--json"], ENVIRONMENT)
    if (text := json.loads(output)["text"]) != expected:
        sys.exit(f"{path}: lowbit run gave {text!r}, expected {expected!r}")


def command(path: Path, threads: int) -> list[str]:
    return [sys.executable, "-m", "lowbit", "run", str(path), PROMPT, "-n", "1", "--threads", str(threads)]


def peer_command(peer: Peer, path: Path, threads: int) -> list[str]:
    options = ["-p", PROMPT, "-n", "1", "-t", str(threads), "--temp", "0", "-no-cnv", "--no-warmup"]
    return [peer.program("llama-completion"), "-m", str(path), *options]


def measure(path: Path, peer: Peer | None, options: argparse.Namespace, recorder: harness.Recorder) -> None:
    check(path, options.threads)
    stages = Stages(path, options.threads)
    runs: list[Callable[[], Sample]] = [
        stages.run,
        lambda: harness.run_command(command(path, options.threads), ENVIRONMENT)[0],
    ]
    if peer is not None:
        theirs = peer_command(peer, path, options.threads)
        runs.append(lambda: harness.run_command(theirs, peer.env)[0])
    samples = harness.alternate(*runs, pairs=options.pairs)
    stages.runs = stages.runs[1:]  # without the warm-up
    facts = {"file": path.stem, "file_bytes": path.stat().st_size}
    for stage, pairs in stages.seconds().items():
        wall, cpu = ([pair[i] for pair in pairs] for i in (0, 1))
        entry = {"name": f"{path.stem} {stage}", "stage": stage, "wall_s": wall, "cpu_s": cpu, **facts}
        recorder.add(entry, f"{entry['name']:44} {min(wall):8.3f} s {min(cpu):8.3f} CPU s")
    for kind, sizes in stages.memory().items():
        entry = {"name": f"{path.stem} {kind} memory", "memory": kind, "bytes": sizes, **facts}
        recorder.add(entry, f"{entry['name']:44} {max(sizes, default=0) / 1e6:8.1f} MB")
    for name, found in zip(("lowbit run", "llama-completion"), samples[1:], strict=False):
        wall, cpu = ([getattr(sample, field) for sample in found] for field in ("wall_s", "cpu_s"))
        entry = {"name": f"{path.stem} {name}", "program": name, "wall_s": wall, "cpu_s": cpu, **facts}
        entry["peak_rss"] = [sample.peak_rss for sample in found]
        recorder.add(entry, f"{entry['name']:44} {min(wall):8.3f} s {min(cpu):8.3f} CPU s")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.gguf")
    parser.add_argument("--peer", type=Path, metavar="DIR", help="llama.cpp: DIR/src and DIR/BUILD/bin")
    parser.add_argument("--peer-build", metavar="BUILD", help="which build of DIR [default: the first]")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write facts and samples to OUT")
    parser.add_argument("--pairs", type=int, default=5, metavar="N", help="timed runs of each [default: 5]")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), metavar="N", help="threads of all")
    return parser.parse_args()


def main() -> None:
    options = parse()
    peer = None if options.peer is None else Peer(options.peer, options.peer_build)
    recorder = harness.Recorder("loading", options, None if peer is None else peer.facts())
    for path in options.files:
        measure(path, peer, options, recorder)
    recorder.finish()


if __name__ == "__main__":
    main()
