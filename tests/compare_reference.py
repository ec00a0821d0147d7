"""Compares the files that lowbit makes of checkpoints with those of llama.cpp's tools, one line a file.

Needs the extra `oracle` and llama.cpp:

    python tests/compare_reference.py LLAMA_CPP_SOURCE LLAMA_CPP_BIN CHECKPOINT... [--formats BF16,Q4_K_M]

Each line ends in "identical" (byte for byte), "equal" (the same keys and tensors in another order: the converter's own
Q8_0, whose order is not llama-quantize's), or the first difference. Exits 1 if any file differs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import lowbit

CONVERTED = {"BF16": "bf16", "F16": "f16", "F32": "f32", "Q8_0 converter": "q8_0"}
QUANTIZED = ["Q8_0", "Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q2_K", "Q3_K_M", "IQ4_XS"]
#: What the reference drops and lowbit keeps (docs/models.md).
ADDED = ("llama.attention.sliding_window",)


def reference_file(source: Path, quantize: Path, checkpoint: Path, format: str, folder: Path) -> Path:
    """The file that llama.cpp's tools make."""
    path = folder / f"{format}.gguf"
    if format in CONVERTED:
        script = [sys.executable, source / "convert_hf_to_gguf.py", checkpoint]
        command = [*script, "--outtype", CONVERTED[format], "--outfile", path]
    else:
        if not (folder / "BF16.gguf").exists():
            reference_file(source, quantize, checkpoint, "BF16", folder)
        command = [quantize, folder / "BF16.gguf", path, format, "1"]
    environment = {**os.environ, "PYTHONPATH": str(source / "gguf-py")}
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    if result.returncode:
        sys.exit(f"{command}: {result.stdout[-2000:]}{result.stderr[-2000:]}")
    return path


def difference(expected: Path, found: Path) -> str:
    """Identical, equal, or what differs first."""
    if expected.read_bytes() == found.read_bytes():
        return "identical"
    differing = lowbit.gguf.diff(expected, found, ignore=ADDED)
    for key in differing.keys:
        return f"key {key.key} differs ({key.kind}): {str(key.b)[:60]}, expected {str(key.a)[:60]}"
    for tensor in differing.tensors:
        return f"tensor {tensor.name} differs ({tensor.kind}): {tensor.b}, expected {tensor.a}"
    return "equal"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("bin", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--formats", default=",".join([*CONVERTED, *QUANTIZED]))
    arguments = parser.parse_args()
    differing = 0
    for checkpoint in arguments.checkpoints:
        with tempfile.TemporaryDirectory() as folder:
            for format in arguments.formats.split(","):
                quantize = arguments.bin.resolve() / "llama-quantize"
                expected = reference_file(
                    arguments.source.resolve(), quantize, checkpoint.resolve(), format, Path(folder)
                )
                found = Path(folder) / "found.gguf"
                name, _, is_direct = format.partition(" ")  # the converter's own Q8_0 rounds once
                before = "F32" if is_direct else None
                lowbit.convert(checkpoint, found, name, intermediate=before, verify=False, provenance=False)
                verdict = difference(expected, found)
                differing += verdict not in ("identical", "equal")
                print(f"{checkpoint.name} {format}: {verdict}", flush=True)
    sys.exit(differing > 0)


if __name__ == "__main__":
    main()
