"""Fuzzes one target with Atheris: python tests/fuzz/fuzz.py TARGET [options and corpora of libFuzzer]

Ends with a traceback at the first exception that is no lowbit.Error, and with libFuzzer's report where memory or time
run out. The bytes are then in the file that libFuzzer names; kept in corpus/TARGET, tests/project/test_fuzz.py
replays them.
"""

from __future__ import annotations

import logging
import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["lowbit"]):
    from targets import CORPUS, TARGETS, accepts, make_folder

    import lowbit  # noqa: F401

from json_mutator import mutated


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """JSON stays JSON two times of three."""
    changed = mutated(data, max_size, seed) if random.Random(seed).random() < 0.67 else None
    return atheris.Mutate(data, max_size) if changed is None else changed


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in TARGETS:
        sys.exit(f"{__doc__}\nTARGET: one of {', '.join(TARGETS)}")
    target = TARGETS[name]
    logging.disable()  # notes about what a file has
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        folder = make_folder(Path(scratch), target)
        is_json = target.file.endswith((".json", ".safetensors"))
        arguments = [sys.argv[0], *sys.argv[2:], str(CORPUS / name)]
        atheris.Setup(
            arguments, lambda data: accepts(target, folder, data), **({"custom_mutator": mutate} if is_json else {})
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
