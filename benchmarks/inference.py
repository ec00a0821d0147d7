"""Running models, ours against every peer that is found, in turn, in one run.

Peers: builds of llama.cpp (DIR/BUILD/bin/llama-bench and llama-batched-bench), and OpenVINO GenAI and ONNX Runtime
GenAI if they are installed. The latter two run --source, exported by lowbit as int4 into DIR/exported, or folders of
their own exporters: --openvino, --onnxruntime. A build named avx2 is compared with LOWBIT_SIMD=AVX2.

    inference.py --peers peer --models m-Q4_0.gguf m-Q8_0.gguf --source m-bf16.gguf --threads 2 --json inference.json
    inference.py --peers peer --models m-Q4_0.gguf --part decode,depth --json inference.json     # these rows anew

Each row has the samples, the ratio of neighbouring runs, the limit of this machine and the part of it that is reached.
A prompt is limited by multiply-adds, a decoded token by the weights and caches that it reads, or by multiply-adds.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chart
import harness
from harness import Sample
from peers import PACKAGES, TARGETS, Engine, LlamaCpp, builds, exported, packages

import lowbit

PARTS = ("prefill", "decode", "depth", "batch", "load")
Runner = Engine | LlamaCpp
Run = Callable[[Runner], Sample]


@dataclass(frozen=True)
class Test:
    """One row for each peer: `tokens` tokens of `batch` sequences at `depth`, or a prompt of `tokens`."""

    part: str
    setting: str
    tokens: int
    depth: int = 0
    batch: int = 1

    @property
    def name(self) -> str:
        return f"{self.part} {self.setting}"

    def run(self, runner: Runner) -> Sample:
        if self.part == "prefill":
            return runner.prefill(self.tokens)
        if self.part != "load":
            return runner.decode(self.tokens, self.depth, self.batch)
        if isinstance(runner, Engine) and runner.name == "lowbit":
            return runner.load(tokenizer=self.setting == "with tokenizer")
        return runner.load()

    def is_for(self, runner: Runner) -> bool:
        """llama.cpp always loads the tokenizer; the models of the others have none. Some builds lack a program."""
        if self.batch > 1 and isinstance(runner, LlamaCpp) and not runner.has_batches:
            return False
        return self.part != "load" or (self.setting == "with tokenizer") == isinstance(runner, LlamaCpp)

    def limit(self, ours: Engine, limits: dict[str, Any]) -> tuple[str, float] | None:
        """What bounds it, and the tokens per second that this allows."""
        if self.part == "load":
            return None
        is_prompt = self.part == "prefill"
        work = ours.ask("work", tokens=self.tokens, depth=self.depth, batch=self.batch, prefill=is_prompt)
        peak = max(limits[f"{name}_per_s"] for name in ("int8", "bf16", "f32"))
        seconds = {
            "memory": work["bytes"] / limits["read_huge_pages_bytes_per_s"],
            "arithmetic": work["multiply_adds"] / peak,
        }
        bound = max(seconds, key=lambda name: seconds[name])
        return bound, self.tokens * self.batch / seconds[bound]


def tests(options: argparse.Namespace) -> list[Test]:
    """What the options ask for, in the order of PARTS."""
    found = {
        "prefill": [Test("prefill", str(n), n) for n in options.prompt],
        "decode": [Test("decode", str(options.new), options.new)],
        "depth": [Test("depth", str(n), options.new, depth=n) for n in options.depth],
        "batch": [Test("batch", str(n), options.new, batch=n) for n in options.batch],
        "load": [Test("load", name, 1) for name in ("without tokenizer", "with tokenizer")],
    }
    return [test for part in PARTS if part in options.part for test in found[part]]


def measure(
    path: Path,
    test: Test,
    ours: Engine,
    peers: list[Runner],
    facts: dict[str, Any],
    pairs: int,
    recorder: harness.Recorder,
) -> None:
    """Times one test and records a row for each peer."""
    runners = [ours, *(peer for peer in peers if test.is_for(peer))]
    if len(runners) == 1:
        return
    limit = test.limit(ours, facts["limits"])
    samples = harness.alternate(*(lambda r=r: test.run(r) for r in runners), pairs=pairs)
    for peer, theirs in zip(runners[1:], samples[1:], strict=True):
        entry = harness.comparison(
            f"{path.stem} {test.name}, {peer.name}, {facts['simd']}",
            test.tokens * test.batch,
            "load" if test.part == "load" else "tokens",
            samples[0],
            theirs,
            file=path.stem,
            part=test.part,
            setting=test.setting,
            opponent=peer.name,
            version=peer.version,
            **facts,
        )
        if limit is not None:
            rates = {side: entry[side]["per_s"]["median"] for side in ("ours", "peer")}
            entry |= {"bound": limit[0], "limit_per_s": limit[1]}
            entry |= {f"{side}_share": rate / limit[1] for side, rate in rates.items()}
        recorder.add(entry)


@contextlib.contextmanager
def opponents(options: argparse.Namespace, path: Path, is_own_target: bool, builds_here: list[Any]) -> Iterator[Any]:
    """The peers of one model: builds of llama.cpp, and the engines of the environment beside our best target."""
    with contextlib.ExitStack() as stack:
        found: list[Runner] = [LlamaCpp(build, path, options.threads) for build in builds_here]
        for engine in _engines(options) if is_own_target else ():
            folder = getattr(options, engine) or exported(engine, options.source, options.peers / "exported")
            found.append(stack.enter_context(Engine(engine, PACKAGES[engine][1], folder, options.threads)))
        yield found


def _engines(options: argparse.Namespace) -> list[str]:
    """The installed engines that there is a model for."""
    return [engine for engine in packages() if options.source or getattr(options, engine)]


def measure_all(options: argparse.Namespace, recorder: harness.Recorder) -> None:
    found = [build for build in builds(options.peers) if not options.builds or build.build in options.builds]
    targets: dict[str | None, list[Any]] = {}
    for build in found:
        target = TARGETS.get(build.build)
        if target is None or target in lowbit.simd.targets():
            targets.setdefault(target, []).append(build)
    if _engines(options):
        targets.setdefault(None, [])
    if not targets:
        raise SystemExit(f"{options.peers}: no peer: no BUILD/bin/llama-bench, and no --source for other engines")
    for target, its_builds in targets.items():
        environment = {"LOWBIT_SIMD": target} if target else {}
        for path in options.models:
            harness.read_anew(path)
            ours = Engine("lowbit", "lowbit", path, options.threads, environment, compute=options.compute)
            with ours, opponents(options, path, target is None, its_builds) as peers:
                facts = ours.ask("facts") | {"file_bytes": path.stat().st_size, "compute": options.compute}
                facts |= {"simd": facts["limits"]["simd"], "commit": harness.machine()["commit"]} | ours.ask("check")
                for test in tests(options):
                    measure(path, test, ours, peers, facts, options.pairs, recorder)


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _parts(text: str) -> list[str]:
    words = text.split(",")
    if unknown := set(words) - {*PARTS}:
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: expected some of {','.join(PARTS)}")
    return words


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", type=Path, required=True, metavar="DIR", help="llama.cpp: DIR/BUILD/bin")
    parser.add_argument("--builds", type=lambda text: text.split(","), metavar="BUILD,...", help="[default: all]")
    parser.add_argument("--models", type=Path, nargs="+", required=True, metavar="GGUF", help="formats of one network")
    parser.add_argument("--source", type=Path, metavar="MODEL", help="GGUF file or checkpoint, for the other engines")
    parser.add_argument(
        "--part", type=_parts, default=[*PARTS], metavar="PART,...", help=f"[default: {','.join(PARTS)}]"
    )
    for engine, (_, name, _) in PACKAGES.items():
        parser.add_argument(f"--{engine}", type=Path, metavar="FOLDER", help=f"model for {name}, in place of --source")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the rows to OUT; other rows in it are kept")
    parser.add_argument("--chart", type=Path, metavar="SVG", help="draw the rows of --json")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="threads of all [default: 2]")
    parser.add_argument("--pairs", type=int, default=3, metavar="N", help="timed runs of each [default: 3]")
    parser.add_argument("--compute", default="auto", help="as in lowbit.load [default: auto]")
    for name, default, text in (
        ("prompt", "512,2048", "tokens of prompts"),
        ("depth", "4096", "tokens before the decoded ones, part depth"),
        ("batch", "1,2,4,8", "sequences decoded together, part batch"),
    ):
        parser.add_argument(f"--{name}", type=_numbers, default=default, help=f"{text} [default: {default}]")
    parser.add_argument("--new", type=int, default=32, metavar="N", help="decoded tokens of a sequence [default: 32]")
    options = parser.parse_args()
    if options.chart and not options.json:
        parser.error("--chart draws what --json has")
    return options


def main() -> None:
    options = parse()
    recorder = harness.Recorder("inference", options, update=True)
    measure_all(options, recorder)
    if options.chart:
        chart.draw(options.json, options.chart)


if __name__ == "__main__":
    main()
