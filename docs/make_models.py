"""Writes the first table of docs/models.md: the tests of each family of models, and the memory of a conversion.

    python docs/make_models.py [JUNIT_FILE ...]

Runs the commands of the page, or reads the results of an earlier run with `pytest --junitxml`. Both need the extras
`test` and `oracle`. Memory comes from benchmarks/results/memory.json.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
BEGIN, END = "<!-- written by docs/make_models.py -->", "<!-- end -->"


#: Column -> the file of its tests.
TESTS = {
    "convert equal": "tests/conversion/test_convert.py",
    "logits": "tests/oracle/test_model_oracle.py",
    "tokenizer": "tests/tokenizer/test_tokenizer.py",
    "template": "tests/oracle/test_chat_oracle.py",
}
MEMORY = ROOT / "benchmarks" / "results" / "memory.json"


class Family(NamedTuple):
    """A row of the table.

    models: released models. gguf: the architecture. words: for each column, words that select tests by name.
    shapes: the model of benchmarks/memory.py. different: the page that explains why files differ from the reference's;
    if set, the first of `words` is a test file instead.
    """

    models: str
    gguf: str
    words: tuple[str, str, str, str]
    shapes: str
    different: str = ""


FAMILIES = (
    Family("Llama 2, TinyLlama", "llama", ("llama-2 TinyLlama", "llama-", "llama-spm", "TinyLlama"), "TinyLlama-1.1B"),
    Family("Llama 3, 3.1, 3.2", "llama", ("Llama-3", "llama3-", "llama-bpe", "Llama-3"), "Llama-3.2-3B"),
    Family("Mistral, Mistral Nemo", "llama", ("Mistral", "mistral", "llama-spm tekken", "Mistral"), "Mistral-7B"),
    Family("SmolLM2", "llama", ("SmolLM2", "llama-tied", "smollm", "SmolLM"), "SmolLM2-135M"),
    Family("Qwen 2, 2.5", "qwen2", ("Qwen2", "qwen2", "qwen2", "Qwen2"), "Qwen2.5-1.5B"),
    Family("Qwen 3", "qwen3", ("Qwen3 bard", "qwen3", "qwen2", "Qwen3"), "Qwen3-4B"),
    Family("Gemma 3: 270M, 1B, text of 4B", "gemma3", ("gemma-3", "gemma3", "gemma", "gemma"), "gemma-3-1b"),
    Family("Phi-3, Phi-3.5", "phi3", ("phi3", "phi3.5", "phi-3", "Phi-3"), "Phi-3.5-mini"),
    Family("Phi-4-mini", "phi3", ("phi4", "phi4", "gpt-4o", "Phi-4"), "Phi-4-mini"),
    Family(
        "BitNet b1.58",
        "bitnet",
        ("tests/arch/test_bitnet.py", "bitnet", "llama-bpe", "bitnet"),
        "bitnet-b1.58-2B-4T",
        "bitnet.md",
    ),
)


class Result(NamedTuple):
    """A test that ran."""

    file: str
    name: str
    passed: bool
    figures: dict[str, float]  #: figures that the test recorded


def tests(family: Family) -> list[tuple[str, list[str]]]:
    """For each column: the test file, and words that select tests by name. No words: all tests."""
    columns = list(zip(TESTS.values(), map(str.split, family.words), strict=True))
    return [(columns[0][1][0], []), *columns[1:]] if family.different else columns


def commands(family: Family) -> list[list[str]]:
    """The command of each cell."""
    commands = [["pytest", file, *(["-k", " or ".join(words)] if words else [])] for file, words in tests(family)]
    return [*commands, ["python", "benchmarks/memory.py", family.shapes]]


def run_tests(junit: Path) -> None:
    """Runs every test of the table. The table shows failures."""
    files = sorted({file for family in FAMILIES for file, _ in tests(family)})
    command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", f"--junitxml={junit}", *files]
    subprocess.run(command, cwd=ROOT, check=False)


def results(junit: Path) -> list[Result]:
    """The tests of a junit file."""
    found = []
    for case in ElementTree.parse(junit).getroot().iter("testcase"):
        figures = {str(p.get("name")): float(str(p.get("value"))) for p in case.iter("property")}
        failed = any(case.find(kind) is not None for kind in ("failure", "error", "skipped"))
        file = str(case.get("classname")).replace(".", "/") + ".py"
        found.append(Result(file, str(case.get("name")), not failed, figures))
    return found


def cell(found: list[Result], file: str, words: list[str]) -> str:
    """The number of tests that passed, and the largest recorded value of each figure."""
    chosen = [r for r in found if r.file == file and any(word.lower() in r.name.lower() for word in words or [""])]
    failed = sum(not result.passed for result in chosen)
    if failed or not chosen:
        return f"**{failed} of {len(chosen)} failed**"
    figures: dict[str, float] = {}
    for result in chosen:
        figures |= {name: max(value, figures.get(name, 0.0)) for name, value in result.figures.items()}
    return ", ".join([f"{len(chosen)} passed", *(f"{name} {value:.0e}" for name, value in figures.items())])


def memory_cells() -> dict[str, str]:
    """Model of benchmarks/memory.py -> peak memory of its conversion."""
    entries = json.loads(MEMORY.read_text())["results"]
    return {e["model"]: f"{e['peak_rss'] / 1e6:.0f} MB for {e['weights'] / 1e9:.2f} G weights" for e in entries}


def page(rows: list[list[str]]) -> str:
    """The table, then the commands."""
    columns = [*TESTS, "resident memory"]
    lines = [f"| models | architecture | {' | '.join(columns)} |", "| --- " * (len(columns) + 2) + "|"]
    lines += [f"| {f.models} | `{f.gguf}` | {' | '.join(row)} |" for f, row in zip(FAMILIES, rows, strict=True)]
    lines += ["", "The commands behind the cells, from left to right:", ""]
    for family in FAMILIES:
        lines += [f"**{family.models}**", "", "```sh", *map(shlex.join, commands(family)), "```", ""]
    return "\n".join(lines)


def main(junit_files: list[Path]) -> None:
    """Writes the page."""
    with tempfile.TemporaryDirectory() as scratch:
        if not junit_files:
            junit_files = [Path(scratch) / "junit.xml"]
            run_tests(junit_files[0])
        found = [result for junit in junit_files for result in results(junit)]
    memory = memory_cells()
    rows = [[*(cell(found, *test) for test in tests(f)), memory.get(f.shapes, "-")] for f in FAMILIES]
    for family, row in zip(FAMILIES, rows, strict=True):
        row[0] += f", [differs]({family.different})" if family.different else ""
    path = DOCS / "models.md"
    before, rest = path.read_text().split(BEGIN)
    path.write_text("".join([before, BEGIN, "\n\n", page(rows), "\n", END, rest.split(END)[1]]))


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
