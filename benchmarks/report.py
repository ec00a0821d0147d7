"""Writes the tables of docs/benchmarks.md and docs/performance.md from the stored results.

`report.py` reads benchmarks/results/*.json and puts one table of each between the two marker lines of its page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results: written by benchmarks/report.py -->", "<!-- end of results -->"
TITLES = {
    "formats": "Encoding and decoding",
    "convert": "Whole files",
    "memory": "Memory",
    "tokenizer": "Loading tokenizers",
    "loading": "From the start to the first token",
    "sampling": "Drawing tokens",
    "onnx": "ONNX models",
    "inference": "Running models",
    "sharing": "Two processes at once",
    "pages": "Weights in large pages",
    "divergence": "Divergence from exact products",
}
#: Pages of docs/ with the benchmarks that they show, in this order, and a picture of these if there is one.
PAGES = {
    "benchmarks.md": ("formats", "convert", "memory", "tokenizer", "loading", "sampling", "onnx"),
    "performance.md": ("inference", "pages", "sharing", "divergence"),
}
PICTURES = {"performance.md": "![Speed of lowbit and others, and the limit of the machine](performance.svg)"}

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
    sides = ("ours", "peer")
    seconds, cpu = ([_median(entry[side][field]) for side in sides] for field in ("wall_s", "cpu_s"))
    return [*seconds, ratio(entry), *cpu, *(_median(entry[side]["peak_rss"], 1e6) for side in sides)]


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


def rates_table(header: list[str], results: list[Record]) -> list[str]:
    return table(header, [[entry["name"], *rates(entry)] for entry in results])


def _cpu(entry: Record, unit: float = 1.0) -> list[str]:
    medians = [sorted(entry[side]["cpu_s"])[len(entry[side]["cpu_s"]) // 2] for side in ("ours", "peer")]
    return [*(number(seconds / unit) for seconds in medians), ratio(entry, "cpu_ratio")]


def loading_table(results: list[Record]) -> list[str]:
    """Medians: seconds of the stages and programs, and megabytes."""
    stages = list(dict.fromkeys(entry["stage"] for entry in results if "stage" in entry))
    programs = list(dict.fromkeys(entry["program"] for entry in results if "program" in entry))
    memory = list(dict.fromkeys(entry["memory"] for entry in results if "memory" in entry))
    header = ["file", *stages, *programs, *(f"MB {kind}" for kind in memory)]
    rows = []
    for file in dict.fromkeys(entry["file"] for entry in results):
        found = {entry["name"]: entry for entry in results if entry["file"] == file}
        seconds = [_median(found[f"{file} {name}"]["wall_s"]) for name in (*stages, *programs)]
        sizes = [_median(found[f"{file} {kind} memory"]["bytes"], 1e6) for kind in memory]
        rows.append([file, *seconds, *sizes])
    return table(header, rows)


def _median(values: list[float], unit: float = 1.0) -> str:
    return number(sorted(values)[len(values) // 2] / unit) if values else "-"


def onnx_table(results: list[Record]) -> list[str]:
    header = ["model", "error", "peer", "MB", "peer", "seconds", "peer", "ratio", "CPU seconds", "peer"]
    return table(
        [*header, "peak MB", "peer"], [[entry["name"], *_losses(entry), *_process(entry)] for entry in results]
    )


def _losses(entry: Record) -> list[str]:
    errors, sizes = (entry["error"], entry["peer_error"]), (entry["bytes"], entry["peer_bytes"])
    return [*map(number, errors), *(number(size / 1e6) for size in sizes)]


PARTS = {
    "prefill": "Prompt, tokens/s",
    "decode": "Decoding, tokens/s",
    "depth": "Decoding at a depth, tokens/s",
    "batch": "Sequences together, tokens/s in sum",
    "load": "Load and first token, seconds",
}


def inference_table(results: list[Record]) -> list[str]:
    """A table of each part: our figure, the part of the limit that it reaches, and each peer's with the ratio."""
    lines: list[str] = []
    for part, title in PARTS.items():
        rows = [entry for entry in results if entry["part"] == part]
        peers = list(dict.fromkeys(entry["opponent"] for entry in rows))
        groups: dict[tuple[str, str, str], dict[str, Record]] = {}
        for entry in rows:
            groups.setdefault((entry["file"], entry["setting"], entry["simd"]), {})[entry["opponent"]] = entry
        header = [title, "lowbit", "of limit", *(cell for peer in peers for cell in (peer, "ratio"))]
        cells = [[" ".join(key), *_against(found, peers)] for key, found in groups.items()]
        lines += [*table(header, cells), ""] if cells else []
    return lines[:-1]


def _against(found: dict[str, Record], peers: list[str]) -> list[str]:
    def figure(entry: Record, side: str) -> str:
        rate = float(entry[side]["per_s"]["median"])
        return number(1 / rate if entry["part"] == "load" else rate)

    first = next(iter(found.values()))
    share = f"{first['ours_share']:.0%} of {first['bound']}" if "bound" in first else "-"
    theirs = [(figure(found[peer], "peer"), ratio(found[peer])) if peer in found else ("-", "-") for peer in peers]
    return [figure(first, "ours"), share, *(cell for pair in theirs for cell in pair)]


def divergence_table(results: list[Record]) -> list[str]:
    """A table of each model and text: mean divergence, with standard error, of each arithmetic and of llama.cpp.

    The rows are in the order in which formats come first in the results.
    """
    lines: list[str] = []
    formats = list(dict.fromkeys(entry["format"] for entry in results))
    groups: dict[tuple[str, str], list[Record]] = {}
    for entry in results:
        groups.setdefault((entry["model"], entry["text"]), []).append(entry)
    for (model, text), entries in groups.items():
        names = list(dict.fromkeys(name for entry in entries for name in entry["divergence"]))
        header = [f"{model} on {text}, 0.000001 nats", "in this format", *names, "llama.cpp / int8"]
        entries.sort(key=lambda entry: formats.index(entry["format"]))
        lines += [*table(header, [_divergences(entry, names) for entry in entries]), ""]
    return lines[:-1]


def _divergences(entry: Record, names: list[str]) -> list[str]:
    found = entry["divergence"]
    means = {name: figures["mean"] for name, figures in found.items()}
    errors = {name: figures["standard_error"] for name, figures in found.items()}
    cells = [f"{number(means[n] * 1e6)} ± {number(errors[n] * 1e6)}" if n in found else "-" for n in names]
    share = "-" if entry["format"].endswith(" mix") else f"{entry['share']:.0%}"
    times = means["llama.cpp"] / means["int8"] if "llama.cpp" in means else None
    return [entry["format"], share, *cells, f"**{times:.2f}**" if times else "-"]


TABLES = {
    "formats": format_table,
    "convert": convert_table,
    "memory": memory_table,
    "tokenizer": tokenizer_table,
    "loading": loading_table,
    "sampling": sampling_table,
    "sharing": partial(rates_table, ["model", "all threads each", "half of them each", "ratio"]),
    "pages": partial(rates_table, ["model, tokens/s", "large pages", "file in small pages", "ratio"]),
    "onnx": onnx_table,
    "inference": inference_table,
    "divergence": divergence_table,
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
    opponents = dict.fromkeys(f"; {e['opponent']} {e['version']}" for e in record["results"] if "opponent" in e)
    against = f"; {peer['name']} {peer['version']}, build `{peer['build']}`" if peer else "".join(opponents)
    facts = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}{pairs}; "
        f"load {machine['load']:.2f} before and {machine['load_after']:.2f} after.",
        f"lowbit {machine['lowbit']} ({machine['commit']}) on {simd}{against}.",
        *([f"{differing} encoded blocks differ from the peer's."] if differing else []),
    ]
    title = f"### {TITLES[record['benchmark']]}, {threads}, {simd}"
    lines = [title, "", *facts, "", f"`{record['command']}`", "", *TABLES[record["benchmark"]](record["results"])]
    return "\n".join(lines)


def rewritten(name: str, page: str, records: Iterable[Record]) -> str:
    """The page of PAGES with this name, with its results between its markers."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    shown = [record for record in records if record["benchmark"] in PAGES[name]]
    sections = [section(record) for record in sorted(shown, key=lambda record: PAGES[name].index(record["benchmark"]))]
    if sections and name in PICTURES:
        sections.insert(0, PICTURES[name])
    return "\n\n".join([before + BEGIN, *sections, END + after])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="*", default=sorted((ROOT / "benchmarks/results").glob("*.json")))
    options = parser.parse_args()
    records = [json.loads(path.read_text()) for path in options.results]
    for name in PAGES:
        page = ROOT / "docs" / name
        page.write_text(rewritten(name, page.read_text(), records))


if __name__ == "__main__":
    main()
