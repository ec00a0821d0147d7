"""Encoding and decoding of every format, ours against ggml's.

The same float32 matrix, in the caches, into arrays that exist already. ggml: ggml_quantize_chunk and to_float of its
libggml-base, called from as many Python threads as asked for, each with its share of the rows. Each of our SIMD targets
and numbers of threads is timed in turn with ggml at that number of threads.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import harness
import numpy as np
from peer import Ggml, Peer

import lowbit
from lowbit import _core

K = 1024
MAX_ROWS = 1024
#: What one call of the peer's slowest formats may take; fewer rows then.
CALL_SECONDS = 0.1
#: A library that was compiled with fused multiply-add may decide ties in its searches otherwise than the reference. Its
#: blocks then differ, but not in how well they fit: by so much at most, relative to the whole error.
ERROR_TOLERANCE = 1e-3
PEER = "ggml"


class Work:
    """One format's arrays, and the same work done by us and by the peer."""

    def __init__(self, format: _core.Format, rows: int, ggml: Ggml, pool: ThreadPoolExecutor) -> None:
        self.format, self.rows, self.ggml, self._pool = format, rows, ggml, pool
        random = np.random.default_rng(1)
        self.weights = (random.standard_normal((rows, K)) * 0.02).astype(np.float32)
        self.weights[::4] *= random.standard_t(4, (len(self.weights[::4]), K)).astype(np.float32)  # some with tails
        self.importance = random.gamma(1.0, 1.0, K).astype(np.float32) + np.float32(1e-3)
        shape = (rows, K // format.block_size * format.block_bytes)
        self.bytes, self.peer_bytes = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        self.floats, self.peer_floats = np.zeros((rows, K), np.float32), np.zeros((rows, K), np.float32)

    def encode(self, importance: np.ndarray | None, threads: int = 1) -> None:
        _core.quantize_rows(self.weights, self.format.name, importance, self.bytes, False, threads)

    def decode(self, threads: int = 1) -> None:
        _core.dequantize_rows(self.bytes, self.format.name, self.floats, threads)

    def peer_encode(self, importance: np.ndarray | None, threads: int = 1) -> None:
        def part(rows: slice) -> None:
            self.ggml.encode(self.format.ggml_type, self.weights[rows], importance, self.peer_bytes[rows])

        self._in_parts(part, threads)

    def peer_decode(self, threads: int = 1) -> None:
        def part(rows: slice) -> None:
            self.ggml.decode(self.format.ggml_type, self.bytes[rows], self.peer_floats[rows])

        self._in_parts(part, threads)

    def _in_parts(self, part: Callable[[slice], None], threads: int) -> None:
        """Shares the rows out to the threads, in runs as even as can be; ctypes lets go of the GIL."""
        bounds = [self.rows * i // threads for i in range(threads + 1)]
        slices = [slice(a, b) for a, b in pairwise(bounds)]
        if len(slices) == 1:
            part(slices[0])
        else:
            list(self._pool.map(part, slices))

    def check_encode(self, importance: np.ndarray | None) -> int:
        """Encodes with both; how many blocks differ. Ends the program if they differ in more than ties."""
        self.encode(importance)
        self.peer_encode(importance)
        blocks = (self.bytes != self.peer_bytes).reshape(-1, self.format.block_bytes).any(1)
        if not blocks.any():
            return 0
        ours, theirs = (self._error(data, importance) for data in (self.bytes, self.peer_bytes))
        if abs(ours - theirs) > ERROR_TOLERANCE * theirs:
            raise SystemExit(f"{self.format.name}: {blocks.sum()} blocks differ, error {ours:.6g} and {theirs:.6g}")
        return int(blocks.sum())

    def _error(self, data: np.ndarray, importance: np.ndarray | None) -> float:
        decoded = lowbit.dequantize(data, self.format.name)
        return float(
            (np.square(decoded - self.weights, dtype=np.float64) * (1 if importance is None else importance)).sum()
        )

    def check_decode(self) -> None:
        self.decode()
        self.peer_decode()
        if not np.array_equal(self.floats.view(np.uint32), self.peer_floats.view(np.uint32)):
            raise SystemExit(f"{self.format.name}: decoded values differ")


def measure(work: Work, operation: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Checks, then times one operation: "encode", "encode.imatrix" or "decode"."""
    facts: dict[str, Any] = {"format": work.format.name, "operation": operation, "rows": work.rows, "columns": K}
    if operation == "decode":
        work.check_decode()
        ours, theirs = work.decode, work.peer_decode
    else:
        importance = work.importance if operation == "encode.imatrix" else None
        facts["differing_blocks"] = work.check_encode(importance)
        ours, theirs = partial(work.encode, importance), partial(work.peer_encode, importance)

    def timed(call: Callable[..., None], threads: int, simd: str | None = None) -> Callable[[], harness.Sample]:
        def run() -> harness.Sample:
            with lowbit.simd.force(simd):
                return harness.time_calls(bound, calls)

        bound = partial(call, threads=threads)
        with lowbit.simd.force(simd):
            calls = harness.calls_for(bound, options.seconds)
        return run

    variants = [(simd, threads) for threads in options.threads for simd in (PEER, *options.simd)]
    runs = [timed(theirs, n) if simd == PEER else timed(ours, n, simd) for simd, n in variants]
    samples = dict(zip(variants, harness.alternate(*runs, pairs=options.pairs), strict=True))
    for simd, threads in variants:
        if simd == PEER:
            continue
        pair = samples[simd, threads], samples[PEER, threads]
        name = f"{work.format.name} {operation} {simd} x{threads}"
        entry = harness.comparison(name, work.rows * K, "weights", *pair, **facts, simd=simd, threads=threads)
        alone = samples.get((simd, 1))
        if alone is not None and threads > 1:  # how many times as fast as one thread of ours
            entry["scaling"] = harness.spread([a.wall_s / b.wall_s for a, b in zip(alone, pair[0], strict=True)])
        yield entry


def rows_for(format: _core.Format, ggml: Ggml, pool: ThreadPoolExecutor) -> int:
    """Rows that the peer encodes within CALL_SECONDS, a multiple of 16."""
    probe = Work(format, 16, ggml, pool)
    once = harness.time_calls(partial(probe.peer_encode, probe.importance), 1).wall_s  # builds the format's tables
    once = min(once, harness.time_calls(partial(probe.peer_encode, probe.importance), 1).wall_s)
    return int(np.clip(CALL_SECONDS / once, 2, MAX_ROWS // 16)) * 16


def possible(format: _core.Format, operation: str, ggml: Ggml) -> bool:
    """Whether both sides have the operation; importances mean nothing to formats of single floats."""
    return {
        "encode": not format.needs_imatrix,
        "encode.imatrix": format.block_size > 1,
        "decode": ggml.can_decode(format.ggml_type),
    }[operation]


def parse() -> argparse.Namespace:
    parser = harness.arguments(__doc__ or "", pairs=7)
    parser.add_argument("--formats", metavar="A,B", help="only these formats")
    parser.add_argument(
        "--operations", default="encode,encode.imatrix,decode", metavar="A,B", help="[default: %(default)s]"
    )
    targets = lowbit.simd.targets()
    best = [targets[0], *(["AVX2"] if "AVX2" in targets[1:] else [])]
    parser.add_argument(
        "--simd",
        type=lambda text: text.split(","),
        default=best,
        metavar="A,B",
        help=f"our SIMD targets, as lowbit.simd.targets() has them [default: {','.join(best)}]",
    )
    parser.add_argument(
        "--threads",
        type=lambda text: [int(n) for n in text.split(",")],
        default=[1, 2],
        metavar="N,N",
        help="threads of both [default: 1,2]",
    )
    parser.add_argument("--seconds", type=float, default=0.05, help="of one sample, about [default: 0.05]")
    return parser.parse_args()


def main() -> None:
    options = parse()
    peer = Peer(options.peer, options.peer_build)
    ggml = Ggml(peer)
    names = options.formats.split(",") if options.formats else [format.name for format in lowbit.formats()]
    with ThreadPoolExecutor(max(options.threads)) as pool:
        recorder = harness.Recorder("formats", options, peer.facts())
        for format in map(_core.Format, names):
            work = Work(format, rows_for(format, ggml, pool), ggml, pool)
            for operation in options.operations.split(","):
                if possible(format, operation, ggml):
                    for entry in measure(work, operation, options):
                        recorder.add(entry)
        recorder.finish()


if __name__ == "__main__":
    main()
