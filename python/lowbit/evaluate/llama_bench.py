"""llama-bench of llama.cpp, run on the same GGUF file."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowbit.base.errors import Error, FileError, FormatError, InputError
from lowbit.base.paths import AnyPath, checked, is_file

__all__ = ["LlamaBench", "LlamaBenchReport", "comparison", "program_of", "spread"]

_FORM = "llama-bench=PATH"
#: Output that an error quotes.
_MOST_QUOTED = 200


@dataclass(frozen=True)
class LlamaBenchReport:
    """What llama-bench measured in turn with lowbit: medians in tokens per second, and spreads as in BenchReport.

    A ratio is llama-bench's time divided by lowbit's time just before it (median): above 1, lowbit is faster.
    """

    program: str
    prefill_tokens_per_s: float
    prefill_spread: float
    prefill_ratio: float
    decode_tokens_per_s: float
    decode_spread: float
    decode_ratio: float


def program_of(compare: str) -> str:
    """The path in "llama-bench=PATH". Raises InputError for another form, or if there is no such file."""
    name, _, path = compare.partition("=")
    if name != "llama-bench" or not path:
        raise InputError("compare:", expected=_FORM, found=compare)
    program = checked(path)
    if not is_file(program):
        raise InputError("no such file", path=program)
    return program


class LlamaBench:
    """Runs the program once for each measurement. It warms up by itself, and its seconds do not include loading.

    environment: variables beside those of this process. Raises FileError if the program cannot be started, FormatError
    if it is not llama-bench.
    """

    def __init__(
        self, program: AnyPath, model: AnyPath, threads: int, environment: Mapping[str, str] | None = None
    ) -> None:
        self.program = checked(program)
        self._environment = {**os.environ, **(environment or {})}
        self._options = ["-m", checked(model), "-t", str(threads), "-r", "1", "-o", "json"]
        if "--n-depth" not in self._run(["--help"]).stdout:
            raise FormatError(
                path=self.program, expected="llama-bench, with the option --n-depth", found="another program"
            )

    def prefill(self, tokens: int) -> float:
        """Seconds for a prompt of `tokens` random tokens."""
        return self._seconds(["-p", str(tokens), "-n", "0"])

    def decode(self, tokens: int, depth: int) -> float:
        """Seconds for `tokens` tokens, one by one, after `depth` others."""
        return self._seconds(["-p", "0", "-n", str(tokens), "-d", str(depth)])

    def _seconds(self, test: Sequence[str]) -> float:
        done = self._run([*self._options, *test])
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or ["nothing on stderr"]
            raise Error(f"exit status {done.returncode}: {lines[-1][:_MOST_QUOTED]}", path=self.program)
        try:
            (result,) = json.loads(done.stdout)
            seconds = result["samples_ns"][0] * 1e-9
        except (ValueError, TypeError, LookupError, RecursionError):
            raise FormatError(
                path=self.program, expected="the JSON of llama-bench", found=done.stdout[:_MOST_QUOTED]
            ) from None
        if not seconds > 0:
            raise FormatError(path=self.program, expected="a time above 0", found=seconds)
        return float(seconds)

    def _run(self, arguments: Sequence[str]) -> Any:
        try:
            return subprocess.run(
                [self.program, *arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise FileError.of(error, self.program, "cannot be started") from None


def comparison(
    program: str, tokens: Sequence[int], ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]
) -> LlamaBenchReport:
    """tokens, ours, theirs: tokens and seconds of prefill, then of decode; theirs[i][k] was taken after ours[i][k]."""
    rates = [num / statistics.median(seconds) for num, seconds in zip(tokens, theirs, strict=True)]
    ratios = [
        statistics.median(b / a for a, b in zip(own, other, strict=True))
        for own, other in zip(ours, theirs, strict=True)
    ]
    spreads = [spread(seconds) for seconds in theirs]
    return LlamaBenchReport(program, rates[0], spreads[0], ratios[0], rates[1], spreads[1], ratios[1])


def spread(seconds: Sequence[float]) -> float:
    """(slowest - fastest) / median."""
    return (max(seconds) - min(seconds)) / statistics.median(seconds)
