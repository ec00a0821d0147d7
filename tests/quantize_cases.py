"""Calls of llama-quantize with options, and the same of quantize_file: data/quantized.json.xz has what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tiny_checkpoint import make_checkpoint, write_imatrix

import lowbit


class Case(NamedTuple):
    """source: a file of `make_sources`. arguments: for llama-quantize. options: for quantize_file."""

    source: str
    format: str
    arguments: tuple[str, ...] = ()
    options: dict[str, Any] = {}  # noqa: RUF012


TYPES = [("ffn_down", "q6_k"), (r"blk\.[12]\.attn_(q|k)", "Q8_0"), ("attn", "q5_1")]
TYPE_ARGUMENTS = tuple(part for pattern, format in TYPES for part in ("--tensor-type", f"{pattern}={format}"))
#: Formats that no mix has in main, on a tensor each.
OTHERS = [("blk.0.attn_q", "NVFP4"), ("blk.1.attn_q", "MXFP4"), ("blk.2.attn_q", "TQ1_0"), ("blk.3.attn_q", "Q2_0"),
          ("blk.0.attn_k", "Q1_0"), ("blk.1.attn_k", "IQ4_NL"), ("blk.2.attn_k", "IQ4_XS"), ("ffn_up", "F16"),
          ("ffn_gate", "F32"), ("attn_v", "BF16")]  # fmt: skip
OTHER_ARGUMENTS = tuple(part for pattern, format in OTHERS for part in ("--tensor-type", f"{pattern}={format}"))
IMATRIX = ("--imatrix", "imatrix.gguf")
OVERRIDES = {
    "general.name": "Another name",
    "llama.context_length": 99,
    "tokenizer.ggml.add_bos_token": False,
    "llama.attention.layer_norm_rms_epsilon": 0.25,
    "new.int": 7,
    "new.text": "",
}
OVERRIDE_ARGUMENTS = (
    "--override-kv", "general.name=str:Another name", "--override-kv", "llama.context_length=int:99",
    "--override-kv", "tokenizer.ggml.add_bos_token=bool:false",
    "--override-kv", "llama.attention.layer_norm_rms_epsilon=float:0.25",
    "--override-kv", "new.int=int:7", "--override-kv", "new.text=str:",
)  # fmt: skip

CASES = {
    "tensor types": Case("llama.gguf", "Q4_K_M", TYPE_ARGUMENTS, {"tensor_types": TYPES}),
    "tensor types, tied": Case("qwen3.gguf", "Q3_K_S", ("--tensor-type", "token_embd=q5_k"),
                               {"tensor_types": [("token_embd", "Q5_K")]}),
    "tensor type file": Case("llama.gguf", "Q3_K_M", ("--tensor-type-file", "types.txt"),
                             {"tensor_type_file": "types.txt"}),
    "both, in order": Case("llama.gguf", "Q3_K_M",
                           ("--tensor-type", "ffn_down=q4_1", "--tensor-type-file", "types.txt"),
                           {"tensor_types": [("ffn_down", "Q4_1")], "tensor_type_file": "types.txt"}),
    "every other format": Case("llama.gguf", "Q8_0", OTHER_ARGUMENTS, {"tensor_types": OTHERS}),
    "pure": Case("llama.gguf", "Q4_K_M", ("--pure",), {"pure": True}),
    "pure, tied": Case("qwen3.gguf", "Q2_K", ("--pure",), {"pure": True}),
    "pure with tensor types": Case("llama.gguf", "Q4_0", ("--pure", *TYPE_ARGUMENTS),
                                   {"pure": True, "tensor_types": TYPES}),
    "pure, narrow": Case("narrow.gguf", "Q5_K_S", ("--pure",), {"pure": True}),
    "leave output": Case("llama.gguf", "Q4_K_M", ("--leave-output-tensor",), {"leave_output_tensor": True}),
    "output and embedding": Case("llama.gguf", "Q4_K_M",
                                 ("--output-tensor-type", "q5_1", "--token-embedding-type", "q3_K", *TYPE_ARGUMENTS),
                                 {"output_tensor_type": "Q5_1", "token_embedding_type": "Q3_K", "tensor_types": TYPES}),
    "output, tied": Case("qwen3.gguf", "Q4_K_S", ("--output-tensor-type", "bf16"), {"output_tensor_type": "BF16"}),
    "output and embedding, tied": Case("qwen3.gguf", "Q4_K_S",
                                       ("--output-tensor-type", "q8_0", "--token-embedding-type", "q4_0"),
                                       {"output_tensor_type": "Q8_0", "token_embedding_type": "Q4_0"}),
    "embedding in a file of floats": Case("llama.gguf", "F16",
                                          ("--token-embedding-type", "q8_0", "--output-tensor-type", "q6_k"),
                                          {"token_embedding_type": "Q8_0", "output_tensor_type": "Q6_K"}),
    "imatrix": Case("llama.gguf", "Q4_0", IMATRIX, {"imatrix": "imatrix.gguf"}),
    "include": Case("llama.gguf", "Q4_K_S", (*IMATRIX, "--include-weights", "attn", "--include-weights", "blk.1."),
                    {"imatrix": "imatrix.gguf", "include_weights": ["attn", "blk.1."]}),
    "exclude": Case("llama.gguf", "Q2_K", (*IMATRIX, "--exclude-weights", "ffn_down", "--exclude-weights", "attn_v"),
                    {"imatrix": "imatrix.gguf", "exclude_weights": ["ffn_down", "attn_v"]}),
    "exclude all": Case("llama.gguf", "Q4_0", (*IMATRIX, "--exclude-weights", "blk"),
                        {"imatrix": "imatrix.gguf", "exclude_weights": ["blk"]}),
    "requantize": Case("q8.gguf", "Q4_K_S", ("--allow-requantize",), {"allow_requantize": True}),
    "requantize, output left": Case("q8.gguf", "Q4_0", ("--allow-requantize", "--leave-output-tensor"),
                                    {"allow_requantize": True, "leave_output_tensor": True}),
    "requantize with another imatrix": Case("q4-imatrix.gguf", "Q3_K_M", (*IMATRIX, "--allow-requantize"),
                                            {"imatrix": "imatrix.gguf", "allow_requantize": True}),
    "dequantize": Case("q8.gguf", "F32", ("--allow-requantize",), {"allow_requantize": True}),
    "same again": Case("q8.gguf", "Q8_0"),
    "from float16": Case("f16.gguf", "Q5_K_M"),
    "from float32": Case("f32.gguf", "Q3_K_L"),
    "from float32 to bfloat16": Case("f32.gguf", "BF16"),
    "copy": Case("llama.gguf", "COPY"),
    "copy of blocks": Case("q8.gguf", "COPY"),
    "by number": Case("llama.gguf", "15"),
    "split, made whole": Case("split-00001-of-00003.gguf", "Q4_K_M"),
    "split, kept": Case("split-00001-of-00003.gguf", "Q4_K_M", ("--keep-split",), {"keep_split": True}),
    "split, kept, first file without tensors": Case("empty-00001-of-00003.gguf", "Q3_K_M", ("--keep-split",),
                                                    {"keep_split": True}),
    "split, copied": Case("split-00001-of-00003.gguf", "COPY", ("--keep-split",), {"keep_split": True}),
    "split, pruned": Case("split-00001-of-00003.gguf", "Q6_K", ("--keep-split", "--prune-layers", "1"),
                          {"keep_split": True, "prune_layers": [1]}),
    "whole, kept": Case("llama.gguf", "Q4_K_M", ("--keep-split",), {"keep_split": True}),
    "prune": Case("llama.gguf", "Q4_K_M", ("--prune-layers", "3,0,3"), {"prune_layers": [3, 0, 3]}),
    "prune with imatrix": Case("llama.gguf", "Q4_0", (*IMATRIX, "--prune-layers", "1,2", *TYPE_ARGUMENTS),
                               {"imatrix": "imatrix.gguf", "prune_layers": [1, 2], "tensor_types": TYPES}),
    "overrides": Case("llama.gguf", "Q4_K_M", OVERRIDE_ARGUMENTS, {"override_kv": OVERRIDES}),
    "overrides, pruned, imatrix": Case("llama.gguf", "Q4_0", (*OVERRIDE_ARGUMENTS, *IMATRIX, "--prune-layers", "0"),
                                       {"override_kv": OVERRIDES, "imatrix": "imatrix.gguf", "prune_layers": [0]}),
    "override that changes the mix": Case("llama.gguf", "Q2_K",
                                          ("--override-kv", "llama.attention.head_count=int:8"),
                                          {"override_kv": {"llama.attention.head_count": 8}}),
    "copy with overrides": Case("q8.gguf", "COPY", OVERRIDE_ARGUMENTS, {"override_kv": OVERRIDES}),
}  # fmt: skip


def make_sources(folder: Path) -> None:
    """Writes the files that the cases read into `folder`."""
    llama = make_checkpoint(folder / "llama", "llama", layers=4, seed=11, ffn=256, vocab=280)
    qwen3 = make_checkpoint(folder / "qwen3", "qwen3", layers=2, seed=12, ffn=256)
    narrow = make_checkpoint(folder / "narrow", "llama", layers=1, hidden=96, ffn=176, head_dim=24, seed=13)
    write_imatrix(folder / "imatrix.gguf", llama)
    (folder / "types.txt").write_text("ffn_down=q6_k\nblk\\.0\\..*attn_q=q4_1 \tattn=Q8_0\n")
    for source, target, format in (
        (llama, "llama", "BF16"), (qwen3, "qwen3", "BF16"), (narrow, "narrow", "BF16"), (llama, "f16", "F16"),
        (llama, "f32", "F32"), (llama, "q8", "Q8_0"),
    ):  # fmt: skip
        lowbit.convert(source, folder / f"{target}.gguf", format, verify=False, provenance=False)
    with lowbit.gguf.open(folder / "imatrix.gguf") as file:
        other = {name.removesuffix(".in_sum2"): file.tensors[name] for name in file.infos if name.endswith("in_sum2")}
    lowbit.convert(llama, folder / "q4-imatrix.gguf", "Q4_0", imatrix=other, verify=False, provenance=False)
    split(folder / "llama.gguf", folder / "split", [17, 9, 14])
    split(folder / "llama.gguf", folder / "empty", [0, 30, 10])


def split(source: Path, prefix: Path, counts: list[int]) -> None:
    """Writes a model as several files with so many tensors each, in an order of their own."""
    with lowbit.gguf.open(source) as file:
        names = sorted(file.infos, key=lambda name: name[::-1])
        assert sum(counts) == len(names)
        for i, count in enumerate(counts):
            here, names = names[:count], names[count:]
            metadata = {key: file.typed(key) for key in file.metadata} if i == 0 else {}
            metadata |= {"split.no": np.uint16(i), "split.count": np.uint16(len(counts))}
            metadata["split.tensors.count"] = np.int32(sum(counts))
            path = f"{prefix}-{i + 1:05d}-of-{len(counts):05d}.gguf"
            lowbit.gguf.write(path, metadata, {name: file.tensors[name] for name in here})
