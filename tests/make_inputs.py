"""Makes data/inputs.json.xz with the reference converter: fingerprints of the files it makes of test_prequantized.py's.

Needs the extra `oracle` and llama.cpp:

    python tests/make_inputs.py LLAMA_CPP_SOURCE LLAMA_CPP_BIN
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from input_cases import FLOAT8_CASES, make_float8
from make_reference import convert, run
from stored import fingerprint, store

QUANTIZED = ("Q8_0", "Q4_K_M")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("bin", type=Path)
    arguments = parser.parse_args()
    source, quantize = arguments.source.resolve(), arguments.bin.resolve() / "llama-quantize"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(source), str(source / "gguf-py")])
    result: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, case in FLOAT8_CASES.items():
            if not case.in_reference:
                continue
            checkpoint, _ = make_float8(Path(folder) / name, name)
            paths = convert(source, {checkpoint: "llama-bpe" if case.arch == "llama" else "qwen2"})[checkpoint]
            for format in QUANTIZED:
                paths[format] = checkpoint.with_name(f"{name}-{format}.gguf")
                run(quantize, paths["BF16"], paths[format], format, 1)
            result[name] = {format: fingerprint(path) for format, path in paths.items()}
    store("inputs", result)


if __name__ == "__main__":
    main()
