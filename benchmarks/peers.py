"""Our engine and its peers as inference.py measures them: found in a folder and in the Python environment.

Each has a name and `prefill`, `decode` and `load`, which give a Sample of wall seconds.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import harness
from harness import Sample
from peer import Peer

import lowbit
from lowbit.evaluate.llama_bench import LlamaBench

ROOT = Path(__file__).resolve().parent.parent
#: Builds of llama.cpp for one instruction set, by name: our target for the comparison. Other builds: the best of both.
TARGETS = {"avx2": "AVX2", "sse2": "SSE2"}
#: llama-batched-bench prints in a thread and may end before its result is out, so it is run again, at most so often.
BATCHED_RUNS = 8
#: Engines of the Python environment: module, name, layout of lowbit.export_onnx.
PACKAGES = {
    "openvino": ("openvino_genai", "OpenVINO GenAI", "standard"),
    "onnxruntime": ("onnxruntime_genai", "ONNX Runtime GenAI", "genai"),
}


class Engine:
    """One of engines.py, in a process of its own. Its model is opened at the first measurement."""

    def __init__(
        self,
        engine: str,
        name: str,
        model: Path,
        threads: int,
        environment: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.name, self._options = name, options
        self.version = importlib.metadata.version(PACKAGES[engine][0] if engine in PACKAGES else engine)
        self._command = [sys.executable, str(Path(__file__).with_name("engines.py")), engine, str(model), str(threads)]
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.communicate()
            self._process = None

    def ask(self, request: str, **arguments: Any) -> Any:
        """The result of a request. Ends the program if the engine reports an error."""
        if self._process is None:
            self._start()
            if request != "open":
                self.ask("open", **self._options)
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": request, **arguments}) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith('{"'):  # other lines are messages of libraries
                answer = json.loads(line)
                if "error" in answer:
                    raise SystemExit(f"{self.name}: {request}: {answer['error']}")
                return answer["result"]
        raise SystemExit(f"{self.name}: {request}: the process has ended")

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._command, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def prefill(self, tokens: int) -> Sample:
        return Sample(self.ask("prefill", tokens=tokens))

    def decode(self, tokens: int, depth: int, batch: int) -> Sample:
        return Sample(self.ask("decode", tokens=tokens, depth=depth, batch=batch))

    def load(self, **options: Any) -> Sample:
        """Opening and a first token, in a new process; starting Python and importing is not counted."""
        self.__exit__()
        with self:
            seconds = self.ask("open", **self._options, **options)
            return Sample(seconds) + Sample(self.ask("prefill", tokens=1))


class LlamaCpp:
    """A build of llama.cpp: llama-bench, and llama-batched-bench for several sequences."""

    def __init__(self, peer: Peer, model: Path, threads: int) -> None:
        self.name, self.version = f"llama.cpp {peer.build}", peer.facts()["version"]
        self._bench = LlamaBench(peer.program("llama-bench"), model, threads, peer.env)
        self.has_batches = Path(peer.program("llama-batched-bench")).exists()
        self._peer, self._model, self._threads = peer, model, threads

    def prefill(self, tokens: int) -> Sample:
        return Sample(self._bench.prefill(tokens))

    def decode(self, tokens: int, depth: int, batch: int) -> Sample:
        return Sample(self._bench.decode(tokens, depth)) if batch == 1 else self._together(tokens, depth, batch)

    def _together(self, tokens: int, depth: int, batch: int) -> Sample:
        """llama-batched-bench reads -npp tokens into each of -npl sequences, then decodes -ntg tokens of each, one of
        every sequence a step. t_tg: seconds of these steps; its speed_tg counts the tokens of all sequences."""
        depth = max(depth, 1)  # without a prompt, it prints a rate that is no JSON
        context = batch * (-(-(depth + tokens) // 256) * 256)  # a sequence's part is rounded up to 256
        numbers = {"-t": self._threads, "-c": context, "-npp": depth, "-ntg": tokens, "-npl": batch}
        command = [self._peer.program("llama-batched-bench"), "-m", str(self._model), "--output-format", "jsonl"]
        command += [word for option, number in numbers.items() for word in (option, str(number))]
        for _ in range(BATCHED_RUNS):
            _, output = harness.run_command(command, self._peer.env)
            for line in output.splitlines():
                if line.startswith("{"):
                    return Sample(json.loads(line)["t_tg"])
        raise SystemExit(f"{self.name}: llama-batched-bench printed no result in {BATCHED_RUNS} runs")

    def load(self) -> Sample:
        """A whole process that loads, with the tokenizer, and makes one token."""
        command = [self._peer.program("llama-bench"), "-m", str(self._model), "-t", str(self._threads)]
        sample, _ = harness.run_command([*command, "-p", "0", "-n", "1", "-r", "1", "--no-warmup"], self._peer.env)
        return Sample(sample.wall_s)


def builds(folder: Path) -> list[Peer]:
    """The builds of llama.cpp in a folder; a link to another one is not counted."""
    found: dict[Path, str] = {}
    for path in sorted(folder.glob("*/bin/llama-bench")):
        found.setdefault(path.resolve(), path.parent.parent.name)
    return [Peer(folder, name) for name in found.values()]


def packages() -> list[str]:
    """The engines of the Python environment that are installed."""
    return [engine for engine, (module, _, _) in PACKAGES.items() if importlib.util.find_spec(module)]


def exported(engine: str, source: Path, folder: Path) -> Path:
    """The source as int4 in blocks of 32, in a folder that the engine reads; made at the first call."""
    layout = PACKAGES[engine][2]
    target = folder / f"{source.stem}-{layout}"
    if not (target / "config.json").exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        lowbit.export_onnx(source, target, format="int4", layout=layout, allow_requantize=True)
    if engine != "openvino":
        return target
    if not (target / "openvino" / "config.json").exists():
        page = (ROOT / "docs" / "openvino-genai.md").read_text(encoding="utf-8")
        (code,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
        names: dict[str, Any] = {}
        exec(code, names)
        names["write"](target, target / "openvino")
    return target / "openvino"
