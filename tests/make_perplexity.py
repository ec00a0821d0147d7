"""Stores what llama-perplexity says of the embedded model: `python tests/make_perplexity.py LLAMA_CPP_BINARIES`.

Writes data/perplexity.json, which test_perplexity.py compares with.
"""

import json
import re
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import lowbit

DATA = Path(str(files("lowbit"))) / "data"
CONTEXT, CHUNKS = 512, 12
MIXES = ("BF16", "Q8_0", "Q4_K_M", "Q2_K")


FIGURES = {
    "perplexity": "Mean PPL(Q)",
    "mean": "Mean    KLD",
    "median": "Median  KLD",
    "percentile_99": "99.0%   KLD",
}


def measure(command: list[object]) -> dict[str, float]:
    """The figures that the program prints at its end; it loses its last lines at times, so it is asked again."""
    for _ in range(20):
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        lines = {key: rf"^{re.escape(name)}\s*:\s*(-?[\d.]+)" for key, name in FIGURES.items()}
        found = {key: re.search(line, output, re.MULTILINE) for key, line in lines.items()}
        if all(found.values()):
            return {key: float(match[1]) for key, match in found.items() if match}
    raise SystemExit(f"no figures in what llama-perplexity printed:\n{output}")


def main() -> None:
    binaries = Path(sys.argv[1])
    result: dict[str, object] = {"context": CONTEXT, "chunks": CHUNKS}
    with tempfile.TemporaryDirectory() as folder:
        base = f"{folder}/base"
        for mix in MIXES:
            model = lowbit.convert(DATA / "bard", f"{folder}/{mix}.gguf", mix, verify=False, provenance=False).path
            command: list[object] = [binaries / "llama-perplexity", "-m", model, "-f", DATA / "bard-valid.txt"]
            command += ["-t", "2", "-c", str(CONTEXT), "--chunks", str(CHUNKS), "--kl-divergence-base", base]
            if mix == MIXES[0]:
                subprocess.run(command, check=True, capture_output=True)
            result[mix] = measure([*command, "--kl-divergence"])
    (Path(__file__).parent / "data" / "perplexity.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
