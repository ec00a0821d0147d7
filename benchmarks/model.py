"""Reading a prompt and making tokens, ours against llama-bench on the same GGUF file.

Prefill: `--prompt` tokens into an empty cache, in one call. Decode: `--new` tokens one by one, behind `--depth` tokens.
Neither counts loading. llama-bench warms up by itself and gives the seconds of each test; it feeds random tokens.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import harness
import numpy as np
from harness import Sample
from peer import Peer

import lowbit
from lowbit.engine.model import Model

#: Tokens of the check before timing.
CHECK_TOKENS = 64
#: What rounding a group of 32 normal activations to 8 bits does to a product, relative, root mean square: the largest
#: of the group, 2.4 standard deviations, is 127 steps, and a step's rounding is off by 1 / sqrt(12) of it.
ROUNDING = 2.4 / 127 / 12**0.5


def allowed_error(num_layers: int) -> float:
    """How far logits may be from exact ones: four times what the roundings of seven products a layer come to.

    Measured over the spread of the logits, where a wrong kernel is off by 1 or more.
    """
    return 4 * ROUNDING * (7 * num_layers + 1) ** 0.5


def check(path: Path, model: Model, threads: int) -> dict[str, float]:
    """Compares with compute="f32". Ends the program if logits are too far off."""
    ids = np.random.default_rng(2).integers(0, model.spec.vocab_size, CHECK_TOKENS).tolist()
    exact = lowbit.load(path, compute="f32", threads=threads).logits(ids)
    model.truncate(0)
    prefill = model.logits(ids)
    decode = np.concatenate([model.forward([token], [i], [0]) for i, token in enumerate(ids)])
    model.truncate(0)
    figures: dict[str, float] = {}
    for name, logits in (("prefill", prefill), ("decode", decode)):
        error = float(np.sqrt(np.square(logits - exact).mean() / exact.var(axis=-1).mean()))
        same = float((logits.argmax(-1) == exact.argmax(-1)).mean())
        if not error <= allowed_error(model.spec.num_layers):  # NaN included
            raise SystemExit(f"{path}: {name}: error {error:.3g} and same likeliest token {same:.3g} against f32")
        figures |= {f"{name}_error": error, f"{name}_same_top": same}
    return figures


class Ours:
    """Our engine, loaded once."""

    def __init__(self, model: Model, prompt: int, new: int, depth: int) -> None:
        self._model, self._new, self._depth = model, new, depth
        self._prompt = np.random.default_rng(0).integers(0, model.spec.vocab_size, max(prompt, depth, 1))
        self._length = prompt

    def _read(self, length: int) -> np.ndarray:
        last = np.arange(length) == length - 1
        return self._model.forward(
            self._prompt[:length], np.arange(length), np.zeros(length, np.int32), wants_logits=last
        )

    def prefill(self) -> Sample:
        self._model.truncate(0)
        return harness.time_calls(lambda: self._read(self._length))

    def decode(self) -> Sample:
        self._model.truncate(0)
        token = self._read(self._depth)[0].argmax() if self._depth else self._prompt[0]

        def make() -> None:
            nonlocal token
            for position in range(self._depth, self._depth + self._new):
                token = self._model.forward([token], [position], [0])[0].argmax()

        return harness.time_calls(make)


class Theirs:
    """llama-bench, a process a sample; loading and its warm-up are not in the seconds it gives."""

    def __init__(self, peer: Peer, options: argparse.Namespace, path: Path) -> None:
        program = peer.program("llama-bench")
        self._common = [program, "-m", str(path), "-t", str(options.threads), "-r", "1", "-o", "json"]
        self._prefill = ["-p", str(options.prompt), "-n", "0"]
        self._decode = ["-p", "0", "-n", str(options.new), "-d", str(options.depth)]
        self._env = peer.env

    def _run(self, test: list[str]) -> Sample:
        _, output = harness.run_command([*self._common, *test], self._env)
        (result,) = json.loads(output)
        return Sample(result["samples_ns"][0] * 1e-9)

    def prefill(self) -> Sample:
        return self._run(self._prefill)

    def decode(self) -> Sample:
        return self._run(self._decode)


def measure(path: Path, peer: Peer, options: argparse.Namespace, recorder: harness.Recorder) -> None:
    model = lowbit.load(path, compute=options.compute, threads=options.threads)
    facts: dict[str, Any] = {"file_bytes": path.stat().st_size, "compute": options.compute, **_sizes(model)}
    facts |= check(path, model, options.threads)
    ours = Ours(model, options.prompt, options.new, options.depth)
    theirs = Theirs(peer, options, path)
    for kind, tokens, a, b in (
        ("prefill", options.prompt, ours.prefill, theirs.prefill),
        ("decode", options.new, ours.decode, theirs.decode),
    ):
        if tokens:
            samples = harness.alternate(a, b, pairs=options.pairs)
            name = f"{path.stem} {kind} {tokens}"
            recorder.add(harness.comparison(name, tokens, "tokens", *samples, file=path.stem, kind=kind, **facts))


def _sizes(model: Model) -> dict[str, int]:
    return {"weights": sum(int(np.prod(w.shape)) for w in model.weights.values()), "weight_bytes": model.nbytes}


def parse() -> argparse.Namespace:
    parser = harness.model_arguments(__doc__ or "", pairs=3)
    parser.add_argument("models", type=Path, nargs="+", metavar="GGUF")
    parser.add_argument("-p", "--prompt", type=int, default=512, help="tokens of the prompt [default: 512]")
    parser.add_argument("-n", "--new", type=int, default=64, help="tokens to make [default: 64]")
    parser.add_argument("-d", "--depth", type=int, default=0, help="tokens before those [default: 0]")
    parser.add_argument("--compute", default="auto", help="as in lowbit.load [default: auto]")
    return parser.parse_args()


def main() -> None:
    options = parse()
    peer = Peer(options.peer, options.peer_build)
    with lowbit.simd.force(options.simd):
        recorder = harness.Recorder("model", options, peer.facts())
        for path in options.models:
            measure(path, peer, options, recorder)
        recorder.finish()


if __name__ == "__main__":
    main()
