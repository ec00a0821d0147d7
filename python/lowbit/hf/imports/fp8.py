"""Quantized checkpoints: 8-bit floats are converted to float32 while they are read; other kinds are refused.

Two forms are in use. The tensor names distinguish them:

   X.weight F8_E4M3 (N, K)     X.weight_scale_inv (N / 128, K / 128)         quant_method fp8: DeepSeek, Qwen3-FP8
   X.weight F8_E4M3 (N, K)     X.weight_scale (), (1,), (N,) or (N, 1)       compressed-tensors, fbgemm_fp8, modelopt

Both names have one meaning: the factor of the stored values, for the whole tensor, a row, or a block of
`weight_block_size` (the last blocks may be partial). The product is computed in float32, as in the reference converter.
Scales of activations are not used: lowbit does not round activations to 8-bit floats.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lowbit.base.dtypes import FLOATS
from lowbit.base.errors import FormatError, UnsupportedError
from lowbit.base.quoting import shown
from lowbit.hf.checkpoint import Checkpoint, StoredTensor
from lowbit.hf.config import Config
from lowbit.tensors.source import FileRows, num_elements

FLOAT8_DTYPES: dict[str, Any] = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
SCALE_SUFFIXES = ("_scale_inv", "_scale")
#: Tensors that are only used to round activations, keys or values to 8 bits.
ACTIVATION_SUFFIXES = (
    ".input_scale", ".activation_scale", "_activation_scale", ".output_scale", ".input_scale_ub", ".q_scale",
    ".k_scale", ".v_scale",
)  # fmt: skip
#: quant_method -> the values of "format" or "quant_algo" with 8-bit float weights; None: the key is not needed.
FLOAT8_METHODS: dict[str, tuple[str | None, ...]] = {
    "fp8": (None,),
    "fbgemm_fp8": (None,),
    "compressed-tensors": ("float-quantized", "naive-quantized"),
    "modelopt": ("FP8", None),
}
#: quant_method -> advice on where to find float weights.
WAYS_OUT = {
    "mxfp4": "AutoModelForCausalLM.from_pretrained(d, quantization_config=Mxfp4Config(dequantize=True))"
    ".save_pretrained(e) writes them",
    "bitsandbytes": "AutoModelForCausalLM.from_pretrained(d).dequantize().save_pretrained(e) writes them",
}
ORIGINAL = "use the original checkpoint (base_model in its README.md)"


@functools.cache
def _pairs(dtype_name: str) -> np.ndarray:
    """The values of every pair of bytes, two float32 in a uint64 each (512 KiB): faster than single bytes."""
    pairs: np.ndarray = np.arange(1 << 16, dtype="<u2").view(FLOAT8_DTYPES[dtype_name]).astype(np.float32)
    return pairs.view(np.uint64)


class Float8Tensor(StoredTensor):
    """A matrix of 8-bit floats and its scales, as float32. Cost: a look-up per pair and a product per weight.

    scales: float32, one for each `block` of rows and columns; without blocks (N, 1) for rows, or () for the whole
    matrix.
    """

    def __init__(self, stored: StoredTensor, scales: np.ndarray, block: tuple[int, ...]) -> None:
        super().__init__(stored.file, stored.name, stored.dtype_name, stored.shape, stored.offset)
        self.scales = scales
        self.block = block

    @property
    def dtype(self) -> np.dtype:
        """float32."""
        return np.dtype(np.float32)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of the first axis, read and scaled at each call."""
        packed = FileRows(self.name, self.shape, np.dtype(np.uint8), self.file, self.offset).rows(start, stop)
        floats = np.empty(packed.shape, np.float32)
        flat, out = packed.reshape(-1), floats.reshape(-1)
        if flat.size % 2 == 0:
            out.view(np.uint64)[:] = _pairs(self.dtype_name)[flat.view("<u2")]
        else:
            out[:] = flat.view(FLOAT8_DTYPES[self.dtype_name])
        if not self.block:
            floats *= self.scales[start:stop] if self.scales.ndim else self.scales
            return floats
        height, width = self.block
        for block_row in range(start // height, -(-stop // height)):
            part = floats[max(0, block_row * height - start) : (block_row + 1) * height - start]
            part *= np.repeat(self.scales[block_row], width)[: self.shape[1]]
        return floats


def dequantize(checkpoint: Checkpoint, own_methods: Collection[str]) -> list[str]:
    """Converts the checkpoint's tensors to floats. Returns notes on omitted tensors.

    own_methods: values of quant_method that the architecture reads itself; their tensors are unchanged. Raises
    UnsupportedError for other kinds of quantization, FormatError for missing, misshapen or non-finite scales.
    """
    path = checkpoint.folder / "config.json"
    settings = checkpoint.config.get("quantization_config")
    if settings is not None and not isinstance(settings, dict):
        raise Config(checkpoint.config, str(path)).wrong("quantization_config", settings, "an object")
    if settings:
        if settings.get("quant_method") in own_methods:
            return []
        _check_method(settings, path)
    packed = [tensor for tensor in checkpoint.tensors.values() if tensor.dtype_name in FLOAT8_DTYPES]
    if not packed:
        return []
    block = _block(settings or {}, path)
    for stored in packed:
        names = [name for suffix in SCALE_SUFFIXES if (name := stored.name + suffix) in checkpoint.tensors]
        if len(names) > 1 or (not names and settings):
            found = " and ".join(names) or "no scale"
            raise stored.error(FormatError, f" is {stored.dtype_name} with {found}", expected="one scale")
        scales = _read_scales(checkpoint.tensors.pop(names[0])) if names else np.ones((), np.float32)
        checkpoint.tensors[stored.name] = _scaled(stored, scales, block)
    activation = [name for name in checkpoint.tensors if name.endswith(ACTIVATION_SUFFIXES)]
    for name in activation:
        del checkpoint.tensors[name]
    return [f"{len(activation)} scales of 8-bit activations are left out"] if activation else []


def _check_method(settings: dict[str, Any], path: Path) -> None:
    """Raises UnsupportedError unless the quantization is of 8-bit floats."""
    method = settings.get("quant_method")
    if method is None and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        method = "bitsandbytes"
    name = shown(method, 40)
    kind = settings.get("format", settings.get("quant_algo"))
    if kind not in FLOAT8_METHODS.get(name, ()):
        described = name if kind is None else f"{name}, {shown(kind, 40)}"
        raise UnsupportedError(
            f"the checkpoint is quantized ({described}), and lowbit reads only floats, 8-bit ones included: "
            f"{WAYS_OUT.get(name, ORIGINAL)}",
            path=path,
            key="quantization_config",
        )
    sparsity = settings.get("sparsity_config") or {}
    if isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense":
        raise UnsupportedError(
            f"the checkpoint is sparse ({shown(sparsity['format'], 40)}): {ORIGINAL}",
            path=path,
            key="quantization_config",
        )


def _block(settings: dict[str, Any], path: Path) -> tuple[int, ...]:
    """Rows and columns of a block with one scale; empty if scales are not per block."""
    found = [settings.get("weight_block_size")]
    groups = settings.get("config_groups") or {}
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        found.append(weights.get("block_structure") if isinstance(weights, dict) else None)
    sizes = [size for size in found if size is not None]
    for size in sizes:
        if not isinstance(size, list) or len(size) != 2 or not all(type(n) is int and 0 < n < 1 << 31 for n in size):
            raise FormatError(
                f"block size {shown(size, 40)}",
                path=path,
                key="quantization_config",
                expected="[rows, columns]",
                found=size,
            )
        if size != sizes[0]:
            raise UnsupportedError(
                f"blocks of {sizes[0]} and of {size} in one checkpoint, which lowbit does not support",
                path=path,
                key="quantization_config",
            )
    return tuple(sizes[0]) if sizes else ()


def _read_scales(scales: StoredTensor) -> np.ndarray:
    """A whole tensor of scales, which may have no axes, as float32."""
    if scales.dtype_name not in FLOATS:
        raise scales.error(
            UnsupportedError,
            f" has type {scales.dtype_name}",
            expected=f"scales in one of {', '.join(FLOATS)}",
            found=scales.dtype_name,
        )
    count = num_elements(scales.shape)
    flat = FileRows(scales.name, (count,), scales.dtype, scales.file, scales.offset).rows(0, count)
    return flat.astype(np.float32).reshape(scales.shape)


def _scaled(stored: StoredTensor, scales: np.ndarray, block: tuple[int, ...]) -> Float8Tensor:
    finite = np.isfinite(scales)
    if not finite.all():
        place = [int(i) for i in np.argwhere(~finite)[0]]
        raise stored.error(FormatError, f": its scale at {place} is {scales[tuple(place)]}", expected="a finite number")
    if scales.size == 1:
        return Float8Tensor(stored, scales.reshape(()), ())
    if len(stored.shape) != 2:
        raise stored.error(
            UnsupportedError, f": scales {list(scales.shape)} for shape {list(stored.shape)}", expected="a matrix"
        )
    num_rows, num_columns = stored.shape
    if scales.shape in ((num_rows,), (num_rows, 1)) and not block:
        return Float8Tensor(stored, scales.reshape(num_rows, 1), ())
    expected = [-(-num_rows // block[0]), -(-num_columns // block[1])] if block else [num_rows, 1]
    if list(scales.shape) != expected:
        of_blocks = f" in blocks of {list(block)}" if block else ""
        text = f": scales {list(scales.shape)} for shape {list(stored.shape)}{of_blocks}"
        raise stored.error(FormatError, text, expected=expected, found=list(scales.shape))
    return Float8Tensor(stored, scales, block)
