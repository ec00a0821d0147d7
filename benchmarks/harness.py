"""What every benchmark shares: timing two programs in turn, ratios, facts about the machine, JSON.

A benchmark checks results first, then calls `alternate`: ours, peer, ours, peer, ... after a warm-up of both. Whatever
else the machine does then falls on both, and the ratio of neighbours tells more than either time. CPU seconds stand
beside wall seconds, since on a shared machine they suffer less.

Run as a program, `harness.py REPORT COMMAND...` runs a command and writes what it used; see `run_command`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Sample:
    """What one run used. cpu_s counts all threads and child processes; peak_rss is in bytes."""

    wall_s: float
    cpu_s: float | None = None
    peak_rss: int | None = None

    def __add__(self, other: Sample) -> Sample:
        """One run after the other."""
        both = None not in (self.cpu_s, other.cpu_s)
        peaks = [peak for peak in (self.peak_rss, other.peak_rss) if peak is not None]
        return Sample(
            self.wall_s + other.wall_s, self.cpu_s + other.cpu_s if both else None, max(peaks) if peaks else None
        )


class CommandError(RuntimeError):
    """A command failed."""


def time_calls(call: Callable[[], Any], calls: int = 1) -> Sample:
    """Runs `call` so many times in this process; seconds for one."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(calls):
        call()
    end_wall, end_cpu = time.perf_counter(), time.process_time()
    return Sample((end_wall - wall) / calls, (end_cpu - cpu) / calls)


def calls_for(call: Callable[[], Any], seconds: float) -> int:
    """How many calls take about so long."""
    once = min(time_calls(call).wall_s for _ in range(2))
    return max(1, round(seconds / max(once, 1e-7)))


def run_command(command: Sequence[str], env: Mapping[str, str] | None = None) -> tuple[Sample, str]:
    """Runs a command; returns what it used and what it printed on stdout. Raises CommandError if it fails.

    A small process stands between: on Linux a child's peak memory counts what its parent had when it started it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        wrapped = [sys.executable, "-I", __file__, str(report), *command]
        done = subprocess.run(wrapped, env={**os.environ, **(env or {})}, capture_output=True, text=True)
        if done.returncode != 0:
            last = "\n".join(done.stderr.splitlines()[-12:])
            raise CommandError(f"{shlex.join(command)}: exit status {done.returncode}\n{last}")
        return Sample(**json.loads(report.read_text())), done.stdout


def _run_and_report(report: str, command: Sequence[str]) -> int:
    start = time.perf_counter()
    child = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024
    sample = Sample(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)
    Path(report).write_text(json.dumps(asdict(sample)))
    return 0 if status == 0 else 1


def read_anew(path: Path) -> None:
    """Takes a file out of the page cache and reads it again, as far as the system does that.

    The cache keeps a file in pages of the sizes in which it was read or written. Large ones are read up to 1.3 times as
    fast, by all programs, so a comparison starts from the same ones.
    """
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(8 << 20):
            pass


def alternate(*runs: Callable[[], Sample], pairs: int, warmups: int = 1) -> list[list[Sample]]:
    """Samples of each, taken in turn, after `warmups` of each that do not count."""
    for _ in range(warmups):
        for run in runs:
            run()
    rounds = [[run() for run in runs] for _ in range(pairs)]
    return [list(samples) for samples in zip(*rounds, strict=True)]


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def comparison(
    name: str, work: float, unit: str, ours: Sequence[Sample], peer: Sequence[Sample], **facts: Any
) -> dict[str, Any]:
    """One entry of a benchmark's results. `work` of `unit` was done in each sample.

    speedup: of each pair, the peer's wall seconds over ours, so above 1 ours is faster. cpu_ratio: the same of CPU
    seconds, and rss_ratio of peak memory, where both are known.
    """
    entry: dict[str, Any] = {"name": name, "work": work, "unit": unit, **facts}
    for key, samples in (("ours", ours), ("peer", peer)):
        rates = [work / sample.wall_s for sample in samples]
        columns = {field: [getattr(sample, field) for sample in samples] for field in ("wall_s", "cpu_s", "peak_rss")}
        entry[key] = {"per_s": spread(rates), **{k: v for k, v in columns.items() if None not in v}}
    for key, field in (("speedup", "wall_s"), ("cpu_ratio", "cpu_s"), ("rss_ratio", "peak_rss")):
        pairs = [(getattr(b, field), getattr(a, field)) for a, b in zip(ours, peer, strict=True)]
        if all(None not in pair and pair[1] > 0 for pair in pairs):
            entry[key] = spread([theirs / own for theirs, own in pairs])
    return entry


def machine() -> dict[str, Any]:
    """Facts about this machine and our build; nothing that names it."""
    import numpy as np

    import lowbit

    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "load": os.getloadavg()[0],
        "simd": lowbit.simd.current(),
        "simd_targets": lowbit.simd.targets(),
        "lowbit": lowbit.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _commit() -> str | None:
    """The commit of the sources, with a + if the package's have changed since; None outside a clone."""
    git = ["git", "-C", str(Path(__file__).resolve().parent.parent)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    if head.returncode != 0:
        return None
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "src", "python"], capture_output=True).returncode
    return head.stdout.strip() + ("+" if changed else "")


def arguments(description: str, pairs: int) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--peer", type=Path, required=True, metavar="DIR", help="llama.cpp: DIR/src and DIR/BUILD/bin")
    parser.add_argument("--peer-build", metavar="BUILD", help="which build of DIR [default: the first]")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write facts, samples and ratios to OUT")
    parser.add_argument("--pairs", type=int, default=pairs, metavar="N", help=f"timed pairs [default: {pairs}]")
    return parser


def model_arguments(description: str, pairs: int) -> argparse.ArgumentParser:
    """The same with what the benchmarks of whole programs have beside."""
    parser = arguments(description, pairs)
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of both [default: 1]")
    parser.add_argument("--simd", metavar="TARGET", help="our SIMD target, as lowbit.simd.targets() has it")
    return parser


def command_line(argv: Sequence[str]) -> str:
    """A command as one can quote it: of absolute paths, which mean something on one machine only, the last part."""
    return shlex.join(["python", *(Path(word).name if os.path.isabs(word) else word for word in argv)])


def _is_plain(value: Any) -> bool:
    """Whether an option means something on other machines: numbers and words, not paths."""
    return all(map(_is_plain, value)) if isinstance(value, list) else isinstance(value, int | float | str)


class Recorder:
    """Prints entries as they come and writes them all at the end.

    update: writes after each entry, and keeps the entries of an existing file that this run has no others for: a
    benchmark can be run in parts. The file must be of this benchmark and this machine.
    """

    def __init__(
        self,
        benchmark: str,
        options: argparse.Namespace,
        peer: Mapping[str, Any] | None = None,
        *,
        update: bool = False,
    ) -> None:
        self._path = options.json
        self._update = update
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        settings = {k: v for k, v in vars(options).items() if _is_plain(v) and k != "peer_python"}
        self._record = {
            "schema": SCHEMA,
            "benchmark": benchmark,
            "command": command_line(sys.argv),
            "settings": settings,
            "machine": machine(),
            "peer": dict(peer or {}),
            "results": [],
        }
        if update and self._path is not None and self._path.exists():
            self._record["results"] = self._kept(json.loads(self._path.read_text()))

    def _kept(self, old: Mapping[str, Any]) -> list[dict[str, Any]]:
        for before, now in (
            (old["benchmark"], self._record["benchmark"]),
            (old["machine"]["cpu"], self._record["machine"]["cpu"]),
        ):
            if before != now:
                raise SystemExit(f"{self._path}: has results of {before}, expected {now}; write another file")
        return list(old["results"])

    def found(self, name: str) -> dict[str, Any] | None:
        """The entry with this name, of this run or of the existing file."""
        return next((entry for entry in self._record["results"] if entry["name"] == name), None)

    def add(self, entry: dict[str, Any], line: str | None = None) -> None:
        """Takes an entry and prints a line on it, by default the rates of a comparison."""
        results = self._record["results"]
        same = [i for i, old in enumerate(results) if self._update and old["name"] == entry["name"]]
        if same:
            results[same[0]] = entry
        else:
            results.append(entry)
        print(line or _rates(entry), flush=True)
        if self._update:
            self.finish()

    def finish(self) -> None:
        if self._path is not None:
            self._record["machine"]["load_after"] = os.getloadavg()[0]
            self._path.write_text(json.dumps(self._record, indent=1) + "\n")


def _rates(entry: Mapping[str, Any]) -> str:
    ours, peer, ratio = entry["ours"]["per_s"], entry["peer"]["per_s"], entry["speedup"]
    return (
        f"{entry['name']:36} {ours['median']:12.4g} {peer['median']:12.4g} {entry['unit']}/s"
        f"  x {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
    )


if __name__ == "__main__":
    sys.exit(_run_and_report(sys.argv[1], sys.argv[2:]))
