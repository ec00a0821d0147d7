"""Whole files: converting a checkpoint and quantizing a GGUF file, ours against llama.cpp's two tools.

Of a checkpoint, ours is `lowbit convert` without what the peer does not do (verification, provenance), then with it,
which is the default; the peer's is convert_hf_to_gguf.py to a bf16 file, then llama-quantize; for f32, f16 and bf16 the
first alone. Of a GGUF file, ours is `lowbit quantize`, the peer's llama-quantize. Whole processes, from start to exit,
into the same folder, which is emptied after each so that neither waits for the other's data to reach the disk. The run
that is checked warms the page cache and does not count.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
from harness import Sample
from peer import Peer

import lowbit
from lowbit import gguf

#: Formats that the peer's converter writes without the second tool.
FLOATS = ("f32", "f16", "bf16")


class Conversion:
    """One format's commands, run in a scratch folder."""

    def __init__(self, options: argparse.Namespace, peer: Peer, source: Path, format: str, folder: Path) -> None:
        self.target, self.peer_target = folder / "ours.gguf", folder / "peer.gguf"
        self._env = {"LOWBIT_SIMD": options.simd} if options.simd else {}
        self._peer_env = peer.env
        self._folder = folder
        threads = str(options.threads)
        ours = ["quantize", str(source), str(self.target), format]
        self.verified_command: list[str] | None = None
        self.peer_commands = []
        middle = source
        lowbit_command = [sys.executable, "-m", "lowbit"]
        if source.is_dir():
            defaults = ["convert", str(source), str(self.target), "--format", format]
            self.verified_command = [*lowbit_command, *defaults, "--threads", threads]
            ours = [*defaults, "--no-verify", "--no-provenance"]
            middle = self.peer_target if format in FLOATS else folder / "middle.gguf"
            converter = [options.peer_python, str(peer.source / "convert_hf_to_gguf.py"), str(source)]
            outtype = format if format in FLOATS else "bf16"
            self.peer_commands.append([*converter, "--outtype", outtype, "--outfile", str(middle)])
        if middle != self.peer_target:
            quantize = [peer.program("llama-quantize"), str(middle), str(self.peer_target), format.upper(), threads]
            self.peer_commands.append(quantize)
        self.commands = [[*lowbit_command, *ours, "--threads", threads]]

    def ours(self) -> Sample:
        sample = self._run(self.commands, self._env)
        self._clear()
        return sample

    def verified(self) -> Sample:
        assert self.verified_command
        sample = self._run([self.verified_command], self._env)
        self._clear()
        return sample

    def peer(self) -> Sample:
        sample = self._run(self.peer_commands, self._peer_env)
        self._clear()
        return sample

    def _run(self, commands: Sequence[Sequence[str]], env: dict[str, str]) -> Sample:
        samples = [harness.run_command(command, env)[0] for command in commands]
        return sum(samples[1:], samples[0])

    def _clear(self) -> None:
        for path in self._folder.iterdir():
            path.unlink()

    def check(self) -> dict[str, Any]:
        """Runs both and compares the files; ends the program if a tensor or a key differs."""
        self._run(self.commands, self._env)
        self._run(self.peer_commands, self._peer_env)
        size = self.target.stat().st_size
        found = gguf.diff(self.target, self.peer_target, ignore="lowbit.*")
        differing = [tensor.name for tensor in found.tensors] + [key.key for key in found.keys]
        with gguf.open(self.target) as ours:
            weights, tensors = sum(math.prod(info.shape) for info in ours.infos.values()), len(ours.infos)
        self._clear()
        if differing:
            raise SystemExit(
                f"the files differ in {len(differing)} tensors or keys: {', '.join(sorted(differing)[:8])}"
            )
        return {"tensors": tensors, "weights": weights, "file_bytes": size}


def parse() -> argparse.Namespace:
    parser = harness.model_arguments(__doc__ or "", pairs=3)
    parser.add_argument(
        "sources", type=Path, nargs="+", metavar="SOURCE", help="Hugging Face folder, or GGUF file of floats"
    )
    parser.add_argument("--formats", default="Q4_K_M,Q8_0,bf16", metavar="A,B", help="[default: %(default)s]")
    parser.add_argument("--peer-python", default=sys.executable, metavar="EXE", help="has torch and transformers")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where files are written [default: temporary]")
    return parser.parse_args()


def main() -> None:
    options = parse()
    peer = Peer(options.peer, options.peer_build)
    with lowbit.simd.force(options.simd):
        recorder = harness.Recorder("convert", options, peer.facts())
    for source in options.sources:
        for format in options.formats.split(","):
            if source.is_file() and format in FLOATS:
                continue  # nothing to do
            with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
                conversion = Conversion(options, peer, source, format, Path(folder))
                facts = conversion.check()
                runs = [conversion.peer, conversion.ours, *([conversion.verified] if source.is_dir() else [])]
                theirs, *ours = harness.alternate(*runs, pairs=options.pairs, warmups=0)
            name = f"{source.resolve().name} {format}"
            for kind, samples in zip((name, f"{name}, verified"), ours, strict=False):
                entry = harness.comparison(kind, facts["weights"], "weights", samples, theirs, format=format, **facts)
                recorder.add(entry)
    recorder.finish()


if __name__ == "__main__":
    main()
