"""Makes data/split.json.xz with the reference tools, for test_split.py.

    python tests/make_split_reference.py LLAMA_CPP_SOURCE LLAMA_CPP_BIN

LLAMA_CPP_SOURCE holds convert_hf_to_gguf.py and gguf-py, LLAMA_CPP_BIN llama-gguf-split.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from make_reference import run, run_converter
from split_cases import CONVERSIONS, SPLITS
from stored import fingerprints, store

import lowbit

BARD = Path(lowbit.__file__).parent / "data" / "bard"


def main() -> None:
    source, binary = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve() / "llama-gguf-split"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(source), str(source / "gguf-py")])
    result: dict[str, dict[str, list[str]]] = {"split": {}, "merge": {}, "convert": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case, (format, arguments, _) in SPLITS.items():
            whole, parts = folder / f"{format}.gguf", folder / case
            lowbit.convert(
                BARD, whole, format, verify=False, provenance=False
            )  # which is the reference's: test_convert.py
            parts.mkdir()
            run(binary, "--split", *arguments, whole, parts / "m")
            result["split"][case] = fingerprints(parts)
            merged = folder / f"{case} merged" / "merged.gguf"
            merged.parent.mkdir()
            run(binary, "--merge", min(parts.iterdir()), merged)
            result["merge"][case] = fingerprints(merged.parent)
        for case, (format, arguments, _) in CONVERSIONS.items():
            parts = folder / f"{case} converted"
            parts.mkdir()
            run_converter(source, [("qwen2", BARD, format, parts / "m.gguf", *arguments)])
            result["convert"][case] = fingerprints(parts)
    store("split", result)


if __name__ == "__main__":
    main()
