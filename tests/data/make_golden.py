"""Writes golden.npz anew: what ggml's quantizers make of its two inputs, `input` and `imatrix`.

    python make_golden.py LIBGGML_BASE

LIBGGML_BASE is the shared library ggml-base of llama.cpp (0.25.3 made the file), built for a CPU without fused
multiply-add (x86-64 without -march), which rounds sums differently and so some codes. Keys: `Q4_K` encoded without
importances, `Q4_K.imatrix` with them, `Q4_K.dequant` the first of the two that exists, decoded (`.imatrix.dequant`
where importances are required). Of Q8_1 and Q8_K, which ggml turns activations into, there is only the first:
ggml_quantize_chunk does not write them, and nothing decodes Q8_1.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import gguf
import numpy as np

GOLDEN = Path(__file__).parent / "golden.npz"
#: Types of activations, with the functions that write them.
ACTIVATIONS = {9: "quantize_row_q8_1_ref", 15: "quantize_row_q8_K_ref"}


class Traits(ctypes.Structure):
    """The first fields of ggml_type_traits (ggml.h)."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block_size", ctypes.c_int64),
        ("block_size_interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


def load(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    library.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = (
        [ctypes.c_int] + 2 * [ctypes.c_void_p] + 3 * [ctypes.c_int64] + [ctypes.c_void_p]
    )
    library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    return library


def encode(library: ctypes.CDLL, kind: int, x: np.ndarray, imatrix: np.ndarray | None) -> np.ndarray:
    traits = library.ggml_get_type_traits(kind).contents
    out = np.zeros((x.shape[0], x.shape[1] // traits.block_size * traits.block_bytes), np.uint8)
    if kind in ACTIVATIONS:
        function = library[ACTIVATIONS[kind]]
        function.restype, function.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        function(x.ctypes.data, out.ctypes.data, x.size)
        return out
    columns = None if imatrix is None else imatrix.ctypes.data
    library.ggml_quantize_chunk(kind, x.ctypes.data, out.ctypes.data, 0, *x.shape, columns)
    return out


def can_decode(library: ctypes.CDLL, kind: int) -> bool:
    return bool(library.ggml_get_type_traits(kind).contents.to_float)


def decode(library: ctypes.CDLL, kind: int, blocks: np.ndarray, like: np.ndarray) -> np.ndarray:
    out = np.empty_like(like)
    library.ggml_get_type_traits(kind).contents.to_float(blocks.ctypes.data, out.ctypes.data, out.size)
    return out


def main() -> None:
    library = load(sys.argv[1])
    with np.load(GOLDEN) as file:
        old = dict(file)
    x, imatrix = old["input"], old["imatrix"]
    new = {"input": x, "imatrix": imatrix}
    for name in sorted({key.split(".")[0] for key in old} - set(new)):
        kind = gguf.GGMLQuantizationType[name].value if name in gguf.GGMLQuantizationType.__members__ else None
        if kind is None:
            print(f"{name}: kept, the installed gguf package does not know its id")
            new |= {key: value for key, value in old.items() if key.split(".")[0] == name}
            continue
        blocks = []
        if kind in ACTIVATIONS:
            new[name] = encode(library, kind, x, None)
            continue
        if not library.ggml_quantize_requires_imatrix(kind):
            new[name] = encode(library, kind, x, None)
            blocks.append(name)
        if name not in ("F16", "BF16"):
            new[f"{name}.imatrix"] = encode(library, kind, x, imatrix)
            blocks.append(f"{name}.imatrix")
        key = f"{name}.dequant" if blocks[0] == name else f"{name}.imatrix.dequant"
        new[key] = decode(library, kind, new[blocks[0]], x)
    for key in sorted(new.keys() | old.keys()):
        if (
            key not in old
            or key not in new
            or not np.array_equal(old[key], new[key], equal_nan=key.endswith("dequant"))
        ):
            print(f"{key}: changed")
    np.savez_compressed(GOLDEN, **new)


if __name__ == "__main__":
    main()
