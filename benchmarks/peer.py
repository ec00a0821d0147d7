"""The peer: a folder with llama.cpp's sources in src/ and its programs and shared libraries in BUILD/bin/."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_POINTER = ctypes.c_void_p
#: Formats of activations, which ggml_quantize_chunk does not write, and what does.
_ACTIVATIONS = {9: "quantize_row_q8_1_ref", 15: "quantize_row_q8_K_ref"}
_TO_FLOAT = ctypes.CFUNCTYPE(None, _POINTER, _POINTER, ctypes.c_int64)


class _TypeTraits(ctypes.Structure):
    """The start of ggml_type_traits, as far as it is needed."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block_size", ctypes.c_int64),
        ("block_size_interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", _TO_FLOAT),
    )


class Peer:
    """Where things are in such a folder. Without `build`, the first by name that has llama-bench."""

    def __init__(self, folder: Path, build: str | None = None) -> None:
        builds = sorted(path.parent.parent for path in folder.glob("*/bin/llama-bench"))
        found = [path for path in builds if build in (None, path.name)]
        if not found:
            raise SystemExit(f"{folder}: no {build or '*'}/bin/llama-bench; builds: {[b.name for b in builds]}")
        self.build = found[0].name
        self.bin = found[0] / "bin"
        self.source = folder / "src"
        #: What its programs need in the environment. PYTHONPATH is for the converter.
        self.env = {"LD_LIBRARY_PATH": str(self.bin), "PYTHONPATH": str(self.source / "gguf-py")}

    def program(self, name: str) -> str:
        return str(self.bin / name)

    def facts(self) -> dict[str, Any]:
        """Version and compiler as the programs tell them, and which build it is."""
        return facts_of(self.program("llama-bench"), self.build, self.env)


def facts_of(program: str, build: str, env: Mapping[str, str]) -> dict[str, Any]:
    """Version and compiler as a program of llama.cpp tells them."""
    done = subprocess.run([program, "--version"], env={**os.environ, **env}, capture_output=True, text=True, check=True)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return {"name": "llama.cpp", "build": build, "version": "; ".join(lines).removeprefix("version: ")}


class Ggml:
    """Encoding and decoding with the peer's libggml-base, the library that its llama-quantize calls."""

    def __init__(self, peer: Peer) -> None:
        suffix = "dylib" if sys.platform == "darwin" else "so"
        self._library = ctypes.CDLL(str(peer.bin / f"libggml-base.{suffix}"))
        self._traits = self._library.ggml_get_type_traits
        self._traits.argtypes, self._traits.restype = [ctypes.c_int], ctypes.POINTER(_TypeTraits)
        self._encode = self._library.ggml_quantize_chunk
        self._encode.argtypes = [ctypes.c_int, _POINTER, _POINTER, *[ctypes.c_int64] * 3, _POINTER]
        self._encode.restype = ctypes.c_size_t
        self._encode_activations = {kind: self._library[name] for kind, name in _ACTIVATIONS.items()}
        for function in self._encode_activations.values():
            function.argtypes, function.restype = [_POINTER, _POINTER, ctypes.c_int64], None

    def encode(self, ggml_type: int, weights: np.ndarray, importance: np.ndarray | None, out: np.ndarray) -> None:
        """weights: float32 (rows, K); out: uint8 (rows, row bytes); both contiguous."""
        if ggml_type in self._encode_activations:
            self._encode_activations[ggml_type](weights.ctypes.data, out.ctypes.data, weights.size)
            return
        rows, K = weights.shape
        values = None if importance is None else importance.ctypes.data
        self._encode(ggml_type, weights.ctypes.data, out.ctypes.data, 0, rows, K, values)

    def can_decode(self, ggml_type: int) -> bool:
        """False for F32, Q8_1 and Q8_K, which ggml has no entry for."""
        return bool(self._traits(ggml_type).contents.to_float)

    def decode(self, ggml_type: int, data: np.ndarray, out: np.ndarray) -> None:
        """data: uint8 (rows, row bytes); out: float32 (rows, K); both contiguous."""
        self._traits(ggml_type).contents.to_float(data.ctypes.data, out.ctypes.data, out.size)
