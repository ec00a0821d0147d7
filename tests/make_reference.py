"""Makes data/{kept,mixes,quantized,special_tokens,variants}.json.xz and data/converted/ with the reference tools.

Needs the extra `oracle` and llama.cpp:

    python tests/make_reference.py LLAMA_CPP_SOURCE LLAMA_CPP_BIN [CONVERSION ...]

With names of CONVERSIONS (tiny_checkpoint.py) only their files in data/converted are made, with "variants" that
file. LLAMA_CPP_SOURCE holds convert_hf_to_gguf.py and gguf-py; LLAMA_CPP_BIN holds llama-quantize. What the files hold
is said in test_recipes.py, test_convert.py, test_quantize.py and test_vocab.py.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import ml_dtypes
import numpy as np
from family_variants import FORMATS, THROUGH, VARIANTS, variant_source
from mix_cases import CASES, LETTERS, case_name, case_tensors
from quantize_cases import CASES as QUANTIZE_CASES
from quantize_cases import make_sources
from stored import fingerprint, fingerprints, store
from tiny_checkpoint import CONVERSIONS, FAMILIES, conversion_source, write_imatrix

import lowbit
from lowbit.quantization.assignment import KEPT, KEPT_NAMES

MIXES = [
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q2_K_S", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M",
    "Q5_K_S", "Q5_K_M", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "IQ3_S",
    "IQ3_M", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4_MOE", "Q1_0", "Q2_0",
]  # fmt: skip
NO_FALLBACK, NO_IMATRIX = "no tensor type fallback is defined", "this quantization requires an imatrix"
LINE = re.compile(r"\[ *\d+/ *\d+\] (\S+) +- \[.*?\], type = +(\w+), size = .*")
SHRUNK = re.compile(r"-> +[\d.]+ MiB \((\w+)\)")


def run(*command: object, refusals: tuple[str, ...] = (), folder: Path | None = None) -> str:
    """What the command prints; nothing if it fails with words that hold one of `refusals`."""
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=folder)
    if result.returncode and any(refusal in result.stderr for refusal in refusals):
        return ""
    if result.returncode:
        sys.exit(f"{command}: {result.stdout[-2000:]}{result.stderr[-2000:]}")
    return result.stdout + result.stderr


def mixes(quantize: Path, folder: Path) -> dict[str, dict[str, str]]:
    """Case -> mix -> one letter a tensor, as `llama-quantize --dry-run` says, none where it refuses."""
    result: dict[str, dict[str, str]] = {}
    sums = {
        "blk.0.attn_q.weight.in_sum2": np.ones(256, np.float32),
        "blk.0.attn_q.weight.counts": np.ones(1, np.float32),
    }
    keys = {"general.type": "imatrix", "imatrix.datasets": ["x"], "imatrix.chunk_count": 1, "imatrix.chunk_size": 1}
    lowbit.gguf.write(folder / "imatrix.gguf", keys, sums)
    for case in CASES:
        metadata, shapes = case_tensors(case)
        tensors = {
            name: np.zeros(shape, np.float32 if len(shape) == 1 else ml_dtypes.bfloat16)
            for name, shape in shapes.items()
        }
        lowbit.gguf.write(folder / "case.gguf", metadata, tensors)
        options = ["--imatrix", folder / "imatrix.gguf"] if case.imatrix else []
        result[case_name(case)] = {}
        for mix in MIXES:
            found = {}
            command = (quantize, "--dry-run", *options, folder / "case.gguf", mix)
            for line in run(*command, refusals=(NO_FALLBACK,)).splitlines():
                if match := LINE.search(line):
                    shrunk = SHRUNK.search(line)
                    found[match[1]] = (shrunk[1] if shrunk else match[2]).upper()
            assert list(found) in (list(shapes), []), (case, mix)
            result[case_name(case)][mix] = "".join(LETTERS[format] for format in found.values())
    return result


def kept(quantize: Path, folder: Path) -> dict[str, bool]:
    """Name of a matrix -> whether llama-quantize changes it: names that it knows, and others that hold them."""
    parts = sorted({part.strip(".") for part in (*KEPT, *KEPT_NAMES)} | {"weighted", "x.weight.y", "blk.0.ffn_up.bias"})
    forms = ("{}", "blk.0.{}", "v.blk.0.{}.weight", "{}.weight", "a{}b.weight", "blk.0.{}.bias")
    names = [name for part in parts for name in (form.format(part) for form in forms) if len(name) < 64]
    metadata, _ = case_tensors(CASES[0])
    tensors = {name: np.zeros((2, 32), np.float16) for name in names}
    lowbit.gguf.write(folder / "kept.gguf", metadata, tensors)
    lines = run(quantize, "--dry-run", folder / "kept.gguf", "Q8_0").splitlines()
    found = {match[1]: bool(SHRUNK.search(line)) for line in lines if (match := LINE.search(line))}
    assert found.keys() == tensors.keys()
    return found


# The reference knows tokenizers by a hash and refuses the small ones of the tests, so it is told what they are.
CONVERT = """
import runpy, sys
import conversion.base
for pre, *arguments in {jobs!r}:
    conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
    sys.argv = [{script!r}, *arguments]
    runpy.run_path({script!r}, run_name="__main__")
"""
FLOATS = ["BF16", "F16", "F32"]


def run_converter(source: Path, jobs: Iterable[Sequence[object]]) -> None:
    """Runs the reference converter for each job: tokenizer.ggml.pre, checkpoint, format, file, and other arguments."""
    arguments = [
        [pre, str(checkpoint), "--outtype", format.lower(), "--outfile", str(path), *options]
        for pre, checkpoint, format, path, *options in jobs
    ]
    run(sys.executable, "-c", CONVERT.format(jobs=arguments, script=str(source / "convert_hf_to_gguf.py")))


def convert(source: Path, checkpoints: dict[Path, str]) -> dict[Path, dict[str, Path]]:
    """Checkpoint -> format -> the file that the reference converter makes of it, beside it.

    checkpoints: folder -> tokenizer.ggml.pre.
    """
    made = {folder: {f: folder.parent / f"{folder.name}-{f}.gguf" for f in FLOATS} for folder in checkpoints}
    run_converter(source, [(checkpoints[f], f, *item) for f, paths in made.items() for item in paths.items()])
    return made


def pre_tokenizer(arguments: dict[str, Any]) -> str:
    """tokenizer.ggml.pre of a checkpoint that make_checkpoint writes."""
    return arguments.get("tokenizer") or FAMILIES[arguments.get("arch", "qwen3")].tokenizer


def converted(source: Path, quantize: Path, folder: Path, name: str) -> dict[str, str]:
    """Format -> fingerprint of the file that the reference tools make of a checkpoint.

    "FORMAT imatrix" is with an importance matrix. What the reference refuses to make is left out.
    """
    checkpoint = conversion_source(folder, name)
    write_imatrix(folder / "imatrix.gguf", checkpoint)
    if name == "bard":
        checkpoint = Path(shutil.copytree(checkpoint, folder / name))
    paths = convert(source, {checkpoint: pre_tokenizer(CONVERSIONS[name])})[checkpoint]
    result = {format: fingerprint(path) for format, path in paths.items()}
    for format in [*MIXES, *(f"{mix} imatrix" for mix in MIXES)]:
        mix, _, imatrix = format.partition(" ")
        files = (f"{name}-BF16.gguf", f"{name}-{format}.gguf")
        importances = ("--imatrix", "imatrix.gguf") if imatrix else ()
        if run(quantize, *importances, *files, mix, 1, refusals=(NO_FALLBACK, NO_IMATRIX), folder=folder):
            result[format] = fingerprint(folder / files[1])
    return result


def variants(source: Path, quantize: Path, folder: Path) -> dict[str, dict[str, str]]:
    """Checkpoint (family_variants.py) -> format -> fingerprint of the file that the reference tools make of it.

    "FORMAT through BEFORE" is quantized from a file of that format, others from BF16.
    """
    pres = {name: variant.pre or pre_tokenizer(variant.arguments) for name, variant in VARIANTS.items()}
    made = convert(source, {variant_source(folder, name): pre for name, pre in pres.items()})
    for checkpoint, paths in made.items():
        for format in FORMATS:
            if format not in paths:
                paths[format] = folder / f"{checkpoint.name}-{format}.gguf"
                run(quantize, paths["BF16"], paths[format], format, 1)
        for before, format in product(("F16", "F32"), THROUGH):
            paths[f"{format} through {before}"] = path = folder / f"{checkpoint.name}-{before}-{format}.gguf"
            run(quantize, paths[before], path, format, 1)
    return {
        folder.name: {format: fingerprint(path) for format, path in paths.items()} for folder, paths in made.items()
    }


def quantized(quantize: Path, folder: Path) -> dict[str, list[str]]:
    """Case -> fingerprint of each file that llama-quantize writes for it (quantize_cases.py)."""
    make_sources(folder)
    result = {}
    for name, case in QUANTIZE_CASES.items():
        (folder / "out").mkdir()
        run(quantize, *case.arguments, case.source, "out/out.gguf", case.format, 1, folder=folder)
        result[name] = fingerprints(folder / "out")
        shutil.rmtree(folder / "out")
    return result


TOKENS = ["<a>", "<b>", "<c>"]
ROLES = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"]


def random_processor(random: Random) -> Any:
    """A post_processor as tokenizer.json files have, and odder ones."""

    def some(most: int) -> list[Any]:
        return [{"SpecialToken": {"id": random.choice(TOKENS), "type_id": 0}} for _ in range(random.randint(0, most))]

    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    kind = random.choice(["none", "bytes", "roberta", "template", "template", "sequence"])
    if kind == "template":
        pair = [*some(1), a, *some(2), b, *some(1)] if random.random() < 0.7 else []
        return {"type": "TemplateProcessing", "single": [*some(1), a, *some(1)], "pair": pair}
    if kind == "sequence":
        steps = [random_processor(random) for _ in range(random.randint(0, 2))]
        return {"type": "Sequence", "processors": [step for step in steps if step]}
    if kind == "roberta":
        return {"type": "RobertaProcessing", "cls": ["<a>", 0], "sep": ["<b>", 1]}
    return {"type": "ByteLevel"} if kind == "bytes" else None


def special_tokens(folder: Path) -> list[list[Any]]:
    """[tokenizer.json, tokenizer_config.json, config.json, keys] of 400 random tokenizers."""
    import gguf

    random = Random(0)
    texts = [None, "<a>", "<b>", "<missing>", {"content": "<c>"}, {"content": 3}, ""]
    result = []
    while len(result) < 400:
        tokenizer = {
            "model": {"merges": random.choice([["a b", "c d"], [["a", "b"], ["c", " d"]]])},
            "added_tokens": [{"id": i, "content": text} for i, text in enumerate(TOKENS)],
            "post_processor": random_processor(random),
        }
        config = {f"{role}_token_id": random.randint(0, 5) for role in ROLES if random.random() < 0.2}
        named = {f"{role}_token": random.choice(texts) for role in ROLES if random.random() < 0.4}
        named |= {f"add_{role}_token": random.random() < 0.5 for role in ("bos", "eos") if random.random() < 0.3}
        named |= {"chat_template": "t"} if random.random() < 0.3 else {}
        for name, value in (("tokenizer", tokenizer), ("tokenizer_config", named), ("config", config)):
            (folder / f"{name}.json").write_text(json.dumps(value))
        writer = gguf.GGUFWriter(None, "llama")
        gguf.SpecialVocab(folder, load_merges=True, n_vocab=5).add_to_gguf(writer, quiet=True)
        keys = {key: value.value for key, value in writer.kv_data[0].items() if key.startswith("tokenizer.")}
        result.append([tokenizer, named, config, keys])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("bin", type=Path)
    parser.add_argument("conversions", nargs="*", metavar="CONVERSION")
    arguments = parser.parse_args()
    quantize = arguments.bin.resolve() / "llama-quantize"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(arguments.source.resolve() / part) for part in ("", "gguf-py")])
    sys.path.insert(0, str(arguments.source.resolve() / "gguf-py"))  # before any other gguf
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.conversions:
            store("special_tokens", special_tokens(Path(folder)))
            store("kept", kept(quantize, Path(folder)))
            store("mixes", mixes(quantize, Path(folder)))
            store("quantized", quantized(quantize, Path(folder)))
        for name in arguments.conversions or ["variants", *CONVERSIONS]:
            if name == "variants":
                store(name, variants(arguments.source.resolve(), quantize, Path(folder)))
            else:
                store(f"converted/{name}", converted(arguments.source.resolve(), quantize, Path(folder), name))


if __name__ == "__main__":
    main()
