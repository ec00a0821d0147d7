"""Makes data/inputs.json.xz with the reference converter: SHA-256 of the files it makes of test_prequantized.py's.

Needs the extra `oracle` and llama.cpp:

    python tests/make_inputs.py LLAMA_CPP_SOURCE LLAMA_CPP_BIN
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from pathlib import Path

from input_cases import FLOAT8_CASES, make_float8
from make_reference import CONVERT, run, store

FORMATS = ("F32", "BF16", "F16", "Q8_0", "Q4_K_M")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("bin", type=Path)
    arguments = parser.parse_args()
    source, quantize = arguments.source.resolve(), arguments.bin.resolve() / "llama-quantize"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(source), str(source / "gguf-py")])
    script = str(source / "convert_hf_to_gguf.py")
    result: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, case in FLOAT8_CASES.items():
            if not case.in_reference:
                continue
            checkpoint, _ = make_float8(Path(folder) / name, name)
            result[name] = {}
            for format in FORMATS:
                path = Path(folder) / f"{name}-{format}.gguf"
                if format in ("F32", "BF16", "F16"):
                    argv = [script, str(checkpoint), "--outtype", format.lower(), "--outfile", str(path)]
                    pre = "llama-bpe" if case.arch == "llama" else "qwen2"
                    run(sys.executable, "-c", CONVERT.format(pre=pre, argv=argv, script=script))
                else:
                    run(quantize, path.with_name(f"{name}-BF16.gguf"), path, format, 1)
                result[name][format] = hashlib.sha256(path.read_bytes()).hexdigest()
    store("inputs", result)


if __name__ == "__main__":
    main()
