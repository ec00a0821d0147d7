"""Peak memory and time of converting checkpoints with the shapes of released models.

Of each model, `lowbit convert --no-verify` runs as a process of its own, or with --verified the command with all
defaults. Its peak resident memory counts everything, and nothing of a checkpoint is mapped. Beside its seconds stand
the two that bound them: encoding the same weights from memory, and reading the checkpoint and writing the file without
encoding. The larger one over the whole is the efficiency.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import checkpoint
import harness
import ml_dtypes
import numpy as np

import lowbit
from lowbit import gguf

CHUNK = 8 << 20


def encoding_seconds(path: Path, threads: int) -> float:
    """Seconds to encode a file's tensors from memory, by the rate of a few million weights of each format."""
    counts: dict[str, int] = {}
    with gguf.open(path) as file:
        for tensor in file.tensors.values():
            if isinstance(tensor, lowbit.QTensor):
                counts[tensor.format] = counts.get(tensor.format, 0) + int(np.prod(tensor.shape))
    weights = (0.02 * np.random.default_rng(0).standard_normal((4096, 2048), np.float32)).astype(ml_dtypes.bfloat16)
    total = 0.0
    for format, count in counts.items():
        encode = functools.partial(lowbit.quantize, weights, format, threads=threads)
        total += min(harness.time_calls(encode).wall_s for _ in range(3)) / weights.size * count
    return total


def copying_seconds(folder: Path, num_bytes: int, scratch: Path) -> float:
    """How long reading the weights and writing so many bytes takes, one after the other."""
    start = time.perf_counter()
    buffer = bytearray(CHUNK)
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    with open(scratch, "wb", buffering=0) as file:
        for at in range(0, num_bytes, CHUNK):
            file.write(memoryview(buffer)[: min(CHUNK, num_bytes - at)])
    seconds = time.perf_counter() - start
    scratch.unlink()
    return seconds


def measure(model: str, format: str, threads: int, verified: bool, scratch: Path) -> dict[str, Any]:
    """One entry of the results."""
    folder, target = scratch / model, scratch / "out.gguf"
    checkpoint.write(model, folder)
    command = [sys.executable, "-m", "lowbit", "convert", str(folder), str(target), "--format", format]
    sample, _ = harness.run_command([*command, "--threads", str(threads), *([] if verified else ["--no-verify"])])
    with gguf.open(target) as file:
        weights = sum(int(np.prod(tensor.shape)) for tensor in file.tensors.values())
    file_bytes = target.stat().st_size
    bounds = {
        "encoding_s": encoding_seconds(target, threads),
        "copying_s": copying_seconds(folder, file_bytes, scratch / "copy"),
    }
    return {
        "model": model,
        "format": format,
        "verified": verified,
        "weights": weights,
        "checkpoint_bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "file_bytes": file_bytes,
        "wall_s": sample.wall_s,
        "cpu_s": sample.cpu_s,
        "peak_rss": sample.peak_rss,
        **bounds,
        "efficiency": max(bounds.values()) / sample.wall_s,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "models", nargs="+", choices=checkpoint.MODELS, metavar="MODEL", help=", ".join(checkpoint.MODELS)
    )
    parser.add_argument("--format", default="Q4_K_M", metavar="F", help="[default: %(default)s]")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="[default: %(default)s]")
    parser.add_argument("--verified", action="store_true", help="with verification, as by default")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where files are written [default: temporary]")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write facts and figures to OUT")
    return parser.parse_args()


def main() -> None:
    options = parse()
    recorder = harness.Recorder("memory", options)
    for model in options.models:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            entry = measure(model, options.format, options.threads, options.verified, Path(scratch))
        recorder.add(
            entry,
            f"{model:20} {entry['weights'] / 1e9:5.2f} G weights: peak {entry['peak_rss'] / 1e6:.0f} MB, "
            f"{entry['wall_s']:.1f} s; encoding alone {entry['encoding_s']:.1f} s, "
            f"reading and writing alone {entry['copying_s']:.1f} s",
        )
        recorder.finish()  # after each: the large ones take minutes


if __name__ == "__main__":
    main()
