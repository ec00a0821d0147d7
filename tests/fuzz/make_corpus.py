"""Writes the files that each target accepts as corpus/TARGET/valid*: python tests/fuzz/make_corpus.py

Those of text and formats are for the fuzzers in C++ alone; gguf and onnx serve both. Other files of the corpus are what
fuzzers found, and stay.
"""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
from onnx_files import network, whole_model
from targets import CORPUS, TARGETS, accepts, make_folder
from tiny_checkpoint import make_checkpoint, write_safetensors

import lowbit
import lowbit.onnx
from lowbit import gguf
from lowbit.gguf import rewriting
from lowbit.tensors import npz

CARD = b"""---
license: apache-2.0
language: [en, no]
tags:
- chat
base_model: org/Base-7B-v2
datasets: [https://huggingface.co/org/data]
---
# A model
"""
TEMPLATE = b"""{% for m in messages -%}
<|im_start|>{{ m.role | upper }}{% if loop.last %}{{ m.content[:3] }}{% endif %}
{%- endfor %}"""
#: What onnxruntime-genai renders in its own way.
GENAI_TEMPLATE = b"""{%- set ns = namespace(x=0) -%}
{% macro show(m) %}{{ m.role }}: {{ m['content'] | trim }}{% endmacro %}
{% for m in messages %}{% set last = m.role %}
{% if 'a' in m.content and loop.first %}{{ (loop.index0 - 1) // 2 }}{{ 7 / 2 }}{% endif %}
{{ show(m) }}{{ m.content[1:3] }}{{ m | tojson }}{% set ns.x = ns.x + 1 %}
{% endfor %}{{ ns.x }}{{ none }}{{ [1, 2.5, 'a'] | join(',') }}{{ {'a': 1} }}{{ '\\x41' }}
{% if tools is defined and tools %}{{ tools | length }}{% endif %}"""


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for target_name, target in TARGETS.items():
            made = make_folder(folder / target_name, target)
            entries = seeds(target_name, made)
            assert all(accepts(target, made, data) for data in entries), target_name
            write(target_name, entries)
    write("text", ["a \u00e9 \u4f60 \U0001f600".encode(), b"\x1b[31m\xff\xed\xa0\x80\xc0\x80\xf4\x90\x80\x80"])
    random = np.random.RandomState(0)
    kinds = [(i, format.block_bytes, kind) for i, format in enumerate(lowbit.formats()) for kind in (0, 1)]
    # The format, whether to decode or to encode, and two blocks or 256 floats.
    floats = random.standard_normal(256).astype(np.float32).tobytes()
    write("formats", [bytes([i, kind]) + (floats if kind else random.bytes(2 * size)) for i, size, kind in kinds])


def write(name: str, entries: list[bytes]) -> None:
    (CORPUS / name).mkdir(parents=True, exist_ok=True)
    for i, data in enumerate(entries):
        (CORPUS / name / f"valid{i}").write_bytes(data)


def seeds(name: str, folder: Path) -> list[bytes]:
    """What the target accepts."""
    match name:
        case "model_card":
            return [CARD]
        case "chat_template":
            return [TEMPLATE]
        case "genai_template":
            return [TEMPLATE, GENAI_TEMPLATE]
        case "onnx_language_model":
            path = folder / TARGETS[name].file
            found = [path.read_bytes()]
            for format, layout in (("int8", "standard"), ("Q4_K", "genai"), ("f16", "standard")):
                lowbit.export_onnx(folder, folder / format, format=format, layout=layout)
                lowbit.onnx.write(path, lowbit.onnx.open(folder / format / "model.onnx"), external_data=False)
                found.append(path.read_bytes())
            return found
        case "generation_config":
            return [b'{"temperature": 0.6, "top_k": 20, "eos_token_id": [1, 2], "bos_token_id": 1, "min_p": 0.1}']
        case "tensor_types":
            return [b"ffn_down=Q6_K\nblk\\.[0-9]+\\.attn=q8_0\n"]
        case "imatrix_legacy":
            entry = struct.pack("<i", 6) + b"blk.0x" + struct.pack("<ii3f", 2, 3, 1.0, 2.0, 0.5)
            return [struct.pack("<i", 1) + entry, struct.pack("<i", 1) + entry + struct.pack("<ii", 2, 4) + b"text"]
        case "imatrix":
            path = folder / "made.gguf"
            metadata = {"general.type": "imatrix", "imatrix.datasets": ["a"], "imatrix.chunk_count": 4}
            sums = {"x.in_sum2": np.float32([1, 2, 3]), "x.counts": np.float32([7])}
            gguf.write(path, {**metadata, "imatrix.chunk_size": 512}, sums)
            return [path.read_bytes()]
        case "undo":
            target = str(folder / "made")
            rewriting.Undo(target).save(64, 0, b"GGUF\3\0\0\0")
            return [Path(target + rewriting.Undo.SUFFIX).read_bytes()]
        case "safetensors":
            path = folder / "made.safetensors"
            types = (np.float32, np.float16, ml_dtypes.bfloat16)
            write_safetensors(path, {f"t{i}": np.ones((2, 1 + i), dtype) for i, dtype in enumerate(types)})
            return [path.read_bytes()]
        case "npz":
            path = folder / "made.npz"
            npz.save_npz(path, {"a": lowbit.quantize(np.ones((2, 32), np.float32), "Q4_0")})
            return [path.read_bytes()]
        case "onnx":
            path = folder / "made.onnx"
            made = []
            for model in (whole_model(), network(2)):
                lowbit.onnx.write(path, model)
                made.append(path.read_bytes())
            return made
        case "gguf" | "gguf_edit":
            return [small_gguf(folder, family) for family in ("qwen3", "mistral")]
        case _:
            return [(folder / TARGETS[name].file).read_bytes()]


def small_gguf(folder: Path, family: str) -> bytes:
    """A whole model of few bytes."""
    source = make_checkpoint(folder / family, family, layers=1, hidden=32, ffn=32, heads=1, kv_heads=1, head_dim=32)
    path = folder / f"{family}.gguf"
    lowbit.convert(source, path, "Q4_0", verify=False, provenance=False)
    return path.read_bytes()


if __name__ == "__main__":
    main()
