"""Writes the table of docs/export-matrix.md: families of language models, exported in each layout, in each engine.

    python docs/make_export_matrix.py --run   exports and runs tiny checkpoints, takes a quarter of an hour
    python docs/make_export_matrix.py         writes the table anew from benchmarks/results/export_matrix.json

The checkpoints are those of the tests, with random weights, and bard, which is trained. Each is exported in each layout
and format and runs with the settings for exact products. Expected is what lowbit's engine computes in float32 with the
weights of the exported file: the logits of 24 tokens, and 40 greedy tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import lowbit

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
RESULTS = ROOT / "benchmarks" / "results" / "export_matrix.json"
PAGE = DOCS / "export-matrix.md"
BEGIN, END = "<!-- written by docs/make_export_matrix.py -->", "<!-- end -->"
BARD = Path(lowbit.__file__).parent / "data" / "bard"


class Family(NamedTuple):
    """A row of the table. arch: of `tiny_checkpoint.make_checkpoint`; "" for bard. changes: its other arguments."""

    name: str
    arch: str = ""
    changes: Mapping[str, Any] = MappingProxyType({})


FAMILIES = (
    Family("bard (Qwen 3)"),
    Family("Llama 3", "llama"),
    Family("Llama with biases", "llama", {"biases": True, "config": {"attention_bias": True}}),
    Family("Llama, head size 24", "llama", {"head_dim": 24}),
    Family("Mistral, with a window", "mistral"),
    Family("Qwen 2, 2.5", "qwen2"),
    Family("Qwen 3", "qwen3"),
    Family("Gemma 3", "gemma3", {"layers": 7}),
    Family("Phi 3, 3.5 (LongRoPE)", "phi3"),
    Family("Phi 4 mini (LongRoPE of a part)", "phi3", {"config": {"partial_rotary_factor": 0.75}}),
    Family("BitNet b1.58", "bitnet"),
)
#: Name -> options of `lowbit.export_onnx`.
LAYOUTS: dict[str, dict[str, Any]] = {
    "genai": {"layout": "genai"},
    "standard": {"layout": "standard"},
    "standard, opset 21": {"layout": "standard", "opset": 21},
}
FORMATS = ("f32", "int4", "Q4_K_M")
ENGINES = {
    "ONNX Runtime": "onnxruntime",
    "onnxruntime-genai": "onnxruntime-genai",
    "OpenVINO": "openvino",
    "OpenVINO GenAI": "openvino-genai",
}
_TOKENS, _PROMPT, _GREEDY = 24, 12, 40

Entry = dict[str, Any]


def measure(family: Family, layout: str, format: str, source: Path, folder: Path) -> list[Entry]:
    """What each engine makes of one export."""
    import exported_models as models
    import numpy as np
    from random_network import random_ids

    options = LAYOUTS[layout] | ({"accuracy_level": 0} if layout == "genai" else {})
    path = folder / "onnx" / "model.onnx"
    report = lowbit.export_onnx(source, path.parent, format=format, **options)
    model = lowbit.load(source, compute="f32")
    if format == "int4":
        weights = {each.name: models.decoded(path, each.name, each.shape, 32) for each in report.matrices}
        model = models.with_weights(model, weights)
    elif format != "f32":
        lowbit.convert(source, folder / "model.gguf", format, verify=False, provenance=False)
        model = lowbit.load(folder / "model.gguf", compute="f32")
    ids = random_ids(model.spec, _TOKENS)
    logits, prompt = model.logits(ids), random_ids(model.spec, _PROMPT, seed=3).tolist()
    expected = list(model.tokens(prompt, max_tokens=_GREEDY, ignore_eos=True))
    unused = min({*range(model.spec.vocab_size)} - {*expected})

    def with_logits(engine: str) -> tuple[list[int], float]:
        run = models.ENGINES[engine](path)
        found = models.in_steps(run, model.spec, ids, [_TOKENS - 4, 1, 1, 1, 1])
        error = float(np.linalg.norm(found - logits) / np.linalg.norm(logits))
        return models.greedy(run, model.spec, prompt, _GREEDY), error

    runs: dict[str, Callable[[], tuple[list[int], float | None]]] = {
        "ONNX Runtime": lambda: with_logits("onnxruntime"),
        "onnxruntime-genai": lambda: (models.genai_greedy(path.parent, prompt, _GREEDY, unused), None),
        "OpenVINO": lambda: with_logits("openvino"),
        "OpenVINO GenAI": lambda: (models.openvino_genai_greedy(path, prompt, _GREEDY, unused), None),
    }
    entries = []
    for engine, run in runs.items():
        entry: Entry = {"family": family.name, "layout": layout, "format": format, "engine": engine}
        try:
            tokens, error = run()
        except Exception as failure:
            entries.append(
                {**entry, "failed": type(failure).__name__, "message": str(failure).strip().splitlines()[-1]}
            )
        else:
            same = next((i for i, (a, b) in enumerate(zip(tokens, expected, strict=True)) if a != b), _GREEDY)
            entries.append({**entry, "tokens": same, **({} if error is None else {"error": error})})
    return entries


def run_all() -> None:
    """Measures everything and writes the results."""
    from tiny_checkpoint import make_checkpoint

    results: list[Entry] = []
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as scratch:
            source = BARD
            if family.arch:
                source = make_checkpoint(Path(scratch) / "model", family.arch, tokenizer="llama-bpe", **family.changes)
            for layout in LAYOUTS:
                for format in FORMATS:
                    with tempfile.TemporaryDirectory() as folder:
                        entries = measure(family, layout, format, source, Path(folder))
                    for entry in entries:
                        print(*entry.values(), flush=True)
                    results += entries
    record = {
        "benchmark": "export_matrix",
        "versions": {name: version(package) for name, package in ENGINES.items()},
        "results": results,
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


def cell(entries: list[Entry]) -> str:
    """One engine and one export in all formats."""
    if any("failed" in entry for entry in entries):
        return "no" if all("failed" in entry for entry in entries) else "some formats"
    fewest = min(entry["tokens"] for entry in entries)
    errors = [entry["error"] for entry in entries if "error" in entry]
    text = "same text" if fewest == _GREEDY else f"{fewest} tokens"
    return f"{text}, {max(errors):.0e}" if errors else text


def table(record: dict[str, Any]) -> list[str]:
    """The results in Markdown."""
    heads = [f"{name} {record['versions'][name]}" for name in ENGINES]
    lines = [f"| family | layout | {' | '.join(heads)} |", "| :-- | :-- |" + " :-- |" * len(heads)]
    for family in FAMILIES:
        for number, layout in enumerate(LAYOUTS):
            entries = [e for e in record["results"] if e["family"] == family.name and e["layout"] == layout]
            cells = [cell([e for e in entries if e["engine"] == engine]) for engine in ENGINES]
            lines.append(f"| {'' if number else family.name} | {layout} | {' | '.join(cells)} |")
    return lines


def with_table(page: str, record: dict[str, Any]) -> str:
    """The page with the table of these results."""
    head, rest = page.split(BEGIN)
    return "\n".join([head + BEGIN, "", *table(record), "", END]) + rest.split(END)[1]


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="store_true", help="measure first; needs the extras test and oracle")
    if parser.parse_args().run:
        sys.path.append(str(ROOT / "tests"))
        run_all()
    PAGE.write_text(with_table(PAGE.read_text(), json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
