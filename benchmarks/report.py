"""Writes the tables of docs/benchmarks.md from the stored results.

`report.py` reads benchmarks/results/*.json and puts one table of each between the page's two marker lines.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results: written by benchmarks/report.py -->", "<!-- end of results -->"
TITLES = {
    "formats": "Encoding and decoding",
    "convert": "Whole files",
    "model": "Running models",
    "memory": "Memory",
    "tokenizer": "Loading tokenizers",
    "sampling": "Drawing tokens",
    "onnx": "ONNX models",
}

Record = dict[str, Any]


def table(header: list[str], rows: Iterable[list[str]]) -> list[str]:
    """A Markdown table; columns but the first are numbers."""
    rule = [":--"] + ["--:"] * (len(header) - 1)
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def ratio(entry: Record, key: str = "speedup") -> str:
    spread = entry[key]
    return f"**{spread['median']:.2f}** ({spread['min']:.2f} to {spread['max']:.2f})"


def rates(entry: Record | None, unit: float = 1.0) -> list[str]:
    """Ours, the peer's, the ratio; dashes where there is nothing."""
    if entry is None:
        return ["-"] * 3
    return [number(entry[side]["per_s"]["median"] / unit) for side in ("ours", "peer")] + [ratio(entry)]


OPERATIONS = {"encode": "Encoding", "encode.imatrix": "Encoding with importances", "decode": "Decoding"}


def format_table(results: list[Record]) -> list[str]:
    """A table of each operation. One thread: rates and ratios. More: ratios, and ours over one thread of ours."""
    found = {(entry["format"], entry["operation"], entry["simd"], entry["threads"]): entry for entry in results}
    targets = list(dict.fromkeys(entry["simd"] for entry in results))
    counts = list(dict.fromkeys(entry["threads"] for entry in results))
    lines: list[str] = []
    for operation, title in OPERATIONS.items():
        header = [f"{title}, million weights/s"]
        for count in counts:
            threads = "" if count == 1 else f" x{count}"
            header += [cell for simd in targets for cell in (f"{simd}{threads}", "ratio")]
            header += ["peer"] if count == 1 else ["one to more"]
        rows = []
        for name in dict.fromkeys(entry["format"] for entry in results if entry["operation"] == operation):
            cells = [name]
            for count in counts:
                entries = [found[name, operation, simd, count] for simd in targets]
                cells += [cell for entry in entries for cell in (number(_rate(entry, "ours")), _times(entry))]
                cells.append(number(_rate(entries[0], "peer")) if count == 1 else _scaling(entries))
            rows.append(cells)
        lines += [*table(header, rows), ""]
    return lines[:-1]


def _rate(entry: Record, side: str) -> float:
    """Million weights a second."""
    return float(entry[side]["per_s"]["median"]) / 1e6


def _times(entry: Record) -> str:
    return f"**{entry['speedup']['median']:.2f}**"


def _scaling(entries: list[Record]) -> str:
    found = [entry["scaling"]["median"] for entry in entries if "scaling" in entry]
    return ", ".join(f"{value:.2f}x" for value in found) or "-"


def convert_table(results: list[Record]) -> list[str]:
    header = ["checkpoint, format", "seconds", "peer", "ratio", "CPU seconds", "peer", "peak MB", "peer"]
    return table(header, [[entry["name"], *_process(entry)] for entry in results])


def _process(entry: Record) -> list[str]:
    def median(side: str, field: str, unit: float = 1.0) -> str:
        values = sorted(entry[side][field])
        return number(values[len(values) // 2] / unit)

    sides = ("ours", "peer")
    seconds, cpu = ([median(side, field) for side in sides] for field in ("wall_s", "cpu_s"))
    return [*seconds, ratio(entry), *cpu, *(median(side, "peak_rss", 1e6) for side in sides)]


def model_table(results: list[Record]) -> list[str]:
    found = {(entry["file"], entry["kind"]): entry for entry in results}
    header = ["file", "MB", "prefill tokens/s", "peer", "ratio", "decode tokens/s", "peer", "ratio"]
    rows = []
    for name in dict.fromkeys(entry["file"] for entry in results):
        size = next(entry["file_bytes"] for entry in results if entry["file"] == name)
        both = [cell for kind in ("prefill", "decode") for cell in rates(found.get((name, kind)))]
        rows.append([name, number(size / 1e6), *both])
    return table(header, rows)


def memory_table(results: list[Record]) -> list[str]:
    header = ["shapes of", "million weights", "peak MB", "seconds", "encoding alone", "reading and writing alone"]
    rows = []
    for entry in results:
        seconds = [number(entry[key]) for key in ("wall_s", "encoding_s", "copying_s")]
        rows.append([entry["model"], number(entry["weights"] / 1e6), number(entry["peak_rss"] / 1e6), *seconds])
    return table(header, rows)


def tokenizer_table(results: list[Record]) -> list[str]:
    header = ["file", "tokens", "CPU seconds", "peer", "CPU ratio"]
    return table(header, [[entry["name"], str(entry["work"]), *_cpu(entry)] for entry in results])


def sampling_table(results: list[Record]) -> list[str]:
    header = ["logits: options", "vocabulary", "CPU milliseconds", "peer", "CPU ratio"]
    return table(header, [[entry["name"], str(entry["vocabulary"]), *_cpu(entry, 1e-3)] for entry in results])


def _cpu(entry: Record, unit: float = 1.0) -> list[str]:
    medians = [sorted(entry[side]["cpu_s"])[len(entry[side]["cpu_s"]) // 2] for side in ("ours", "peer")]
    return [*(number(seconds / unit) for seconds in medians), ratio(entry, "cpu_ratio")]


def onnx_table(results: list[Record]) -> list[str]:
    header = ["model", "error", "peer", "MB", "peer", "seconds", "peer", "ratio", "CPU seconds", "peer"]
    return table(
        [*header, "peak MB", "peer"], [[entry["name"], *_losses(entry), *_process(entry)] for entry in results]
    )


def _losses(entry: Record) -> list[str]:
    errors, sizes = (entry["error"], entry["peer_error"]), (entry["bytes"], entry["peer_bytes"])
    return [*map(number, errors), *(number(size / 1e6) for size in sizes)]


TABLES = {
    "formats": format_table,
    "convert": convert_table,
    "model": model_table,
    "memory": memory_table,
    "tokenizer": tokenizer_table,
    "sampling": sampling_table,
    "onnx": onnx_table,
}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def section(record: Record) -> str:
    """One result file as Markdown."""
    machine, peer, settings = record["machine"], record["peer"], record["settings"]
    counts, targets = _list(settings["threads"]), _list(settings.get("simd") or machine["simd"])
    threads = "1 thread" if counts == [1] else f"{' and '.join(map(str, counts))} threads"
    simd = " and ".join(targets)
    blocks = {(e.get("format"), e.get("operation")): e.get("differing_blocks", 0) for e in record["results"]}
    differing = sum(blocks.values())
    pairs = f"; {threads}, {settings['pairs']} pairs" if "pairs" in settings else f"; {threads}"
    against = f"; {peer['name']} {peer['version']}, build `{peer['build']}`" if peer else ""
    facts = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}{pairs}; "
        f"load {machine['load']:.2f} before and {machine['load_after']:.2f} after.",
        f"lowbit {machine['lowbit']} ({machine['commit']}) on {simd}{against}.",
        *([f"{differing} encoded blocks differ from the peer's."] if differing else []),
    ]
    title = f"### {TITLES[record['benchmark']]}, {threads}, {simd}"
    lines = [title, "", *facts, "", f"`{record['command']}`", "", *TABLES[record["benchmark"]](record["results"])]
    return "\n".join(lines)


def rewritten(page: str, records: Iterable[Record]) -> str:
    """The page with these results between its markers."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    records = (record for record in records if record["benchmark"] in TABLES)  # others are on pages of their own
    return "".join([before, BEGIN, "\n\n", "\n\n".join(map(section, records)), "\n\n", END, after])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="*", default=sorted((ROOT / "benchmarks/results").glob("*.json")))
    parser.add_argument("--doc", type=Path, default=ROOT / "docs/benchmarks.md", help="[default: docs/benchmarks.md]")
    options = parser.parse_args()
    records = [json.loads(path.read_text()) for path in options.results]
    options.doc.write_text(rewritten(options.doc.read_text(), records))


if __name__ == "__main__":
    main()
