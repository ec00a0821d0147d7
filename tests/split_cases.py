"""Calls of llama-gguf-split and convert_hf_to_gguf.py that split: data/split.json.xz has what comes out."""

from typing import Any

#: Name -> (format of the embedded model, arguments, options of split_file): llama-gguf-split's.
SPLITS: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "tensors": ("BF16", ["--split-max-tensors", "7"], {"split_max_tensors": 7}),
    "bytes": ("BF16", ["--split-max-size", "2M"], {"split_max_size": "2M"}),
    "bytes, first file empty": ("BF16", ["--split-max-size", "2M", "--no-tensor-first-split"],
                                {"split_max_size": 2000000, "no_tensor_first_split": True}),
    "tensors, first file empty": ("Q4_K_M", ["--split-max-tensors", "20", "--no-tensor-first-split"],
                                  {"split_max_tensors": 20, "no_tensor_first_split": True}),
    "blocks": ("Q4_K_M", ["--split-max-size", "1M"], {"split_max_size": "1M"}),
    "all in one": ("Q4_K_M", ["--split-max-size", "1G"], {"split_max_size": "1G"}),
}  # fmt: skip

#: Name -> (format, arguments, options of convert): convert_hf_to_gguf.py's.
CONVERSIONS: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "tensors": ("BF16", ["--split-max-tensors", "7"], {"split_max_tensors": 7}),
    "bytes": ("F16", ["--split-max-size", "700K"], {"split_max_size": "700K"}),
    "bytes, first file empty": ("F32", ["--split-max-size", "2M", "--no-tensor-first-split"],
                                {"split_max_size": "2M", "no_tensor_first_split": True}),
    "all in one": ("BF16", ["--split-max-size", "1G"], {"split_max_size": "1G"}),
}  # fmt: skip
