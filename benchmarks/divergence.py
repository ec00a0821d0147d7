"""What the arithmetic of products loses, ours and llama.cpp's: KL divergence from exact products with the same weights.

    divergence.py --peers peer --models bard m-bf16.gguf --text wiki.txt --json divergence.json
    divergence.py --llama-perplexity bin/llama-perplexity --models bard --text wiki.txt --formats Q4_0,"Q4_K_M mix"

A model is quantized to each format, and each file is run with compute="f32" and every other arithmetic that
`lowbit.load` has, and by llama-perplexity. `lowbit.evaluate.compare` gives the divergence of each from "f32" over the
second half of each window, so the loss of quantization is not in the figures: quantizing a quantized file again changes
none of them. A row "Q4_K_M mix" has the formats of this mix; if the file of --models has it, it is measured as it is. A
row "Q4_K" has this format in all matrices whose rows fit its blocks, and Q8_0 in others; `share` is its part of the
weights. Importances come from the windows after the measured ones. The embedding has none, so it is Q8_0 in a row of a
format that needs them.

llama.cpp's predictions are those that `llama-perplexity --kl-divergence-base` writes (log_probabilities.py), and its
tokens must be ours. That file rounds to steps of up to 16 nats / 65,535, which changes a divergence by about 1e-9. It
lacks words that are less likely than the likeliest by more than 16 nats. They get the reference's log-probability, so
their part of the loss is not counted, in llama.cpp's favour. Its own `--kl-divergence` is not used: it leaves these
words out of the sum, its base is stored in the same way, and it needs a file of all weights as float32. The two agree:
both give 0.000292 for bard as Q4_K_M; for Gemma 3 270M it gives 0.00450, and this script 0.00449. The row F32 has all
weights as float32. It shows what both sides lose outside the products, mostly in the cache of 16-bit floats, and how
small a divergence can be measured.

Rows are written as they come, and a second call measures only what --json lacks; --again measures all.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import harness
import log_probabilities
import numpy as np
from peer import facts_of
from peers import builds

import lowbit
from lowbit import _core, evaluate
from lowbit.base.compute import COMPUTE_MODES
from lowbit.evaluate.imatrix import Sums, collect
from lowbit.evaluate.inspect import inspect
from lowbit.evaluate.measures import Divergence
from lowbit.quantization.options import ACTIVATION_FORMATS
from lowbit.quantization.recipes import MIXES

#: The exact arithmetic, and those that are compared with it.
EXACT = "f32"
MODES = [mode for mode in COMPUTE_MODES if mode not in (EXACT, "auto")]
#: Of other arithmetic, "auto" uses one of these for each product.
MIXED = ("Q4_K_M", "Q5_K_M", "Q3_K_M", "Q2_K")
PACKED = [format for format in lowbit.formats() if format.block_size > 1 and format.name not in ACTIVATION_FORMATS]
ROWS = ["F32", *(format.name for format in PACKED), *(f"{name} mix" for name in MIXED)]
CONTEXT = 512
PEER = "llama.cpp"


class Remembered:
    """A model for `compare` that keeps its last predictions."""

    def __init__(self, model: lowbit.Model) -> None:
        self._model = model
        self.spec, self.tokenizer, self.weights, self.make_room = (
            model.spec, model.tokenizer, model.weights, model.make_room,
        )  # fmt: skip
        self.last = np.zeros((0, 0), np.float32)

    def logits(self, tokens: np.ndarray, start: int) -> np.ndarray:
        self.last = self._model.logits(tokens, start=start)
        return self.last


class Stored:
    """A model for `compare`, after the reference, that predicts what a file has for the text's next window."""

    def __init__(self, file: log_probabilities.LogProbabilities, reference: Remembered) -> None:
        self._file, self._reference, self._next = file, reference, 0
        self.weights = reference.weights
        self.spec = SimpleNamespace(vocab_size=file.vocabulary)

    def make_room(self, context: int) -> None:
        if self._file.tokens.shape[1] != context:
            raise SystemExit(f"{PEER}: windows of {self._file.tokens.shape[1]} tokens, expected {context}")

    def logits(self, tokens: np.ndarray, start: int) -> np.ndarray:
        index, self._next = self._next, self._next + 1
        theirs = self._file.tokens[index, : len(tokens)]
        first = 1 if index else 0  # BOS in place of a token, except in the first window, where it is one
        if not np.array_equal(theirs[first:], tokens[first:]):
            at = first + int(np.argmax(theirs[first:] != tokens[first:]))
            raise SystemExit(f"{PEER}: window {index}: token {at} is {theirs[at]}, expected {tokens[at]}")
        values, known = self._file.window(index)
        reference = self._reference.last
        first_word = np.zeros(len(reference), np.int64)
        total = reference[:, :1] - _core.log_probabilities(reference, first_word, 1)[:, None].astype(np.float32)
        np.subtract(reference, total, out=values, where=~known)
        return values


class LlamaPerplexity:
    """llama-perplexity of a build of llama.cpp."""

    def __init__(self, program: Path, threads: int) -> None:
        self._program, self._threads = program, threads
        self._env = {"LD_LIBRARY_PATH": str(program.parent)}

    def facts(self) -> dict[str, Any]:
        return facts_of(str(self._program), self._program.absolute().parent.parent.name, self._env)

    def predictions(self, model: Path, text: Path, windows: int, target: Path) -> log_probabilities.LogProbabilities:
        numbers = {"-c": CONTEXT, "-b": CONTEXT, "--chunks": windows, "-t": self._threads}
        command = [str(self._program), "-m", str(model), "-f", str(text), "--kl-divergence-base", str(target)]
        harness.run_command([*command, *(str(word) for pair in numbers.items() for word in pair)], self._env)
        return log_probabilities.read(target)


class Source:
    """A model to quantize: a GGUF file, or a checkpoint, of which `scratch` gets a BF16 file."""

    def __init__(self, path: Path, scratch: Path, text: str, options: argparse.Namespace) -> None:
        self.name, self._scratch, self._options = path.stem, scratch, options
        self._is_given = path.is_file()
        self._path = path if self._is_given else scratch / f"{path.name}.gguf"
        if not self._is_given:
            lowbit.convert(path, self._path, "BF16", verify=False, threads=options.threads, progress=False)
        report = inspect(self._path)
        self._mix, self._tensors = report.metadata.get("general.file_type"), report.tensors
        self._text = text
        self._importances: Sums | None = None

    def made(self, row: str) -> Path:
        """The file of a row: a new one in the scratch folder, or the given one."""
        name, is_mix = row.removesuffix(" mix"), row.endswith(" mix")
        if is_mix and self._is_given and self._mix == MIXES[name].file_type:
            return self._path
        target = self._scratch / f"{self.name}-{row.replace(' ', '-')}.gguf"
        options: dict[str, Any] = {"allow_requantize": True, "threads": self._options.threads, "progress": False}
        if row != "F32":
            options["imatrix"] = self._collected()
            options["tensor_types"] = [] if is_mix else self._fitting(lowbit.Format(name))
        lowbit.quantize_file(self._path, target, name if is_mix or row == "F32" else "Q8_0", **options)
        return target

    def _fitting(self, format: lowbit.Format) -> list[tuple[str, str]]:
        """Of each matrix that can have the format, a pattern for its name and the format."""
        names = [
            tensor.name
            for tensor in self._tensors
            if len(tensor.shape) > 1
            and tensor.shape[-1] % format.block_size == 0
            and not (format.needs_imatrix and tensor.name == "token_embd.weight")
        ]
        return [(f"^{re.escape(name)}$", format.name) for name in names]

    def remove(self, path: Path) -> None:
        if path != self._path:
            path.unlink()

    def _collected(self) -> Sums:
        if self._importances is None:
            windows = self._options.windows
            model = lowbit.load(self._path, threads=self._options.threads)
            self._importances = collect(
                model,
                self._text,
                context=CONTEXT,
                from_chunk=windows,
                chunks=windows,
                process_output=True,
                progress=False,
            )
        return self._importances


def measure(row: str, path: Path, text: Path, peer: LlamaPerplexity, options: argparse.Namespace) -> dict[str, Any]:
    """The divergences of one file on one text, by arithmetic and of the peer."""
    reference = Remembered(lowbit.load(path, compute=EXACT, threads=options.threads))
    models: dict[str, Any] = {EXACT: reference}
    models |= {mode: lowbit.load(path, compute=mode, threads=options.threads) for mode in MODES}
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        entry: dict[str, Any] = {}
        try:
            file = peer.predictions(path, text, options.windows, Path(folder) / "log-probabilities")
            models[PEER] = Stored(file, reference)
        except harness.CommandError as error:
            entry["peer_error"] = str(error).splitlines()[-1]
        figures = evaluate.compare(
            models,
            text.read_text(encoding="utf-8"),
            context=CONTEXT,
            chunks=options.windows,
            threads=options.threads,
            progress=False,
        )
    totals = inspect(path).formats
    matrices = {name: total.weights for name, total in totals.items()}
    exact = figures.pop(EXACT).perplexity
    return entry | {
        "format": row,
        "text": text.stem,
        "share": matrices.get(row, 0) / sum(matrices.values()),
        "formats": matrices,
        "tokens": exact.tokens,
        "perplexity": exact.value,
        "divergence": {name: _plain(found.divergence) for name, found in figures.items()},
    }


def _plain(divergence: Divergence | None) -> dict[str, float]:
    assert divergence is not None
    return {name: float(value) for name, value in vars(divergence).items()}


def line(entry: dict[str, Any]) -> str:
    """What is printed on a row."""
    cells = [f"{name} {found['mean']:.2e}" for name, found in entry["divergence"].items()]
    return "  ".join([f"{entry['name']:44}", *cells, entry.get("peer_error", "")])


def missing(options: argparse.Namespace, recorder: harness.Recorder, model: str) -> Iterator[tuple[str, list[Path]]]:
    """The rows that are not in the file yet, with their texts."""
    for row in options.formats:
        entries = {text: recorder.found(name_of(model, row, text)) for text in options.text}
        texts = [text for text, entry in entries.items() if options.again or not entry or not _is_whole(entry, options)]
        if texts:
            yield row, texts


def name_of(model: str, row: str, text: Path) -> str:
    return f"{model} {row}, {text.stem}"


def _is_whole(entry: dict[str, Any], options: argparse.Namespace) -> bool:
    return set(MODES) <= entry["divergence"].keys() and entry["windows"] == options.windows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--peers", type=Path, metavar="DIR", help="llama.cpp: the first DIR/BUILD/bin/llama-perplexity")
    where.add_argument("--llama-perplexity", type=Path, metavar="PATH", help="llama.cpp's program")
    parser.add_argument(
        "--models", type=Path, nargs="+", required=True, metavar="MODEL", help="GGUF files, checkpoints"
    )
    parser.add_argument("--text", type=Path, nargs="+", required=True, metavar="FILE", help="texts in UTF-8")
    parser.add_argument("--windows", type=int, default=5, metavar="N", help=f"of {CONTEXT} tokens [default: 5]")
    parser.add_argument("--formats", type=_rows, default=ROWS, metavar="A,B", help=f"[default: {','.join(ROWS)}]")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of both [default: 1]")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="folder for files [default: the system's]")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the rows to OUT; other rows in it are kept")
    parser.add_argument("--again", action="store_true", help="measure rows anew that OUT has")
    return parser.parse_args()


def _rows(text: str) -> list[str]:
    words = text.split(",")
    if unknown := set(words) - {*ROWS}:
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: expected some of {','.join(ROWS)}")
    return words


def _program(options: argparse.Namespace) -> Path:
    if options.llama_perplexity:
        return Path(options.llama_perplexity)
    found = [build.bin / "llama-perplexity" for build in builds(options.peers)]
    if not any(path.exists() for path in found):
        raise SystemExit(f"{options.peers}: no BUILD/bin/llama-perplexity")
    return next(path for path in found if path.exists())


def main() -> None:
    options = parse()
    peer = LlamaPerplexity(_program(options), options.threads)
    recorder = harness.Recorder("divergence", options, peer.facts(), update=True)
    facts = {"windows": options.windows, "commit": harness.machine()["commit"]}
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        for model in options.models:
            rows = list(missing(options, recorder, model.stem))
            if not rows:
                continue
            source = Source(model, Path(folder), options.text[0].read_text(encoding="utf-8"), options)
            for row, texts in rows:
                path = source.made(row)
                for text in texts:
                    entry = {"name": name_of(source.name, row, text), "model": source.name, **facts}
                    entry |= measure(row, path, text, peer, options)
                    recorder.add(entry, line(entry))
                source.remove(path)


if __name__ == "__main__":
    main()
