"""bitnet: BitNet b1.58 (bitnet-b1.58-2B-4T). The layers' matrices are ternary: -1, 0 and 1, times one scale.

In GGUF, blk.N.X.weight has the ternary values, which F32, F16, BF16, TQ1_0 and TQ2_0 keep exactly. blk.N.X.scale is a
float32, by which llama.cpp's graph multiplies the product too. Checkpoints have one of two forms (transformers,
integrations/bitnet.py):

   packed    X.weight uint8 (rows / 4, columns): bits 2i, 2i+1 of a byte in row r are row i * rows / 4 + r, plus one;
             X.weight_scale (1,): the product is multiplied ("autobitlinear") or divided by it ("bitlinear")
   master    X.weight floats (rows, columns), made ternary at use ("online"): with m the mean of |w| and s = 1 / m,
             round(w s) clamped to [-1, 1], divided by s

docs/bitnet.md describes the reference tools' results for both.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from lowbit.arch.base import Architecture, refuse_wide_heads
from lowbit.arch.hf_values import decimal, rope_parameters
from lowbit.arch.keys import Keys
from lowbit.arch.table import DENSE_LAYER, Tensor
from lowbit.base.errors import FormatError, UnsupportedError
from lowbit.base.quoting import quoted
from lowbit.hf.checkpoint import Checkpoint, StoredTensor
from lowbit.hf.config import Config
from lowbit.tensors.source import FileRows, Renamed, TensorSource, row_ranges

ROWS_PER_BYTE = 4
#: quantization_config of packed checkpoints with multiplying scales.
PACKED_SETTINGS = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
#: Weights per read when the mean of a master matrix is computed: 16 MiB as float32.
CHUNK_WEIGHTS = 4 << 20
#: The smallest mean.
MIN_MEAN = np.float32(1e-5)
_BFLOAT16: np.dtype = np.dtype(ml_dtypes.bfloat16)


class PackedTensor(StoredTensor):
    """A packed matrix as bfloat16 -1, 0 and 1."""

    def __init__(self, stored: StoredTensor) -> None:
        rows, columns = stored.shape
        super().__init__(stored.file, stored.name, stored.dtype_name, (rows * ROWS_PER_BYTE, columns), stored.offset)

    @property
    def dtype(self) -> np.dtype:
        """bfloat16."""
        return _BFLOAT16

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of the first axis. Raises FormatError for an invalid code."""
        height = self.shape[0] // ROWS_PER_BYTE
        packed = FileRows(self.name, (height, self.shape[1]), np.dtype(np.uint8), self.file, self.offset)
        out = np.empty((stop - start, self.shape[1]), _BFLOAT16)
        for i in range(start // height, -(-stop // height)):
            first, last = max(start, i * height), min(stop, (i + 1) * height)
            codes = packed.rows(first - i * height, last - i * height) >> (2 * i) & 3
            if (codes == 3).any():
                row, column = np.argwhere(codes == 3)[0].tolist()
                raise self.error(
                    FormatError, f" has code 3 at row {first + row}, column {column}", expected="0, 1 or 2", found=3
                )
            out[first - start : last - start] = codes.astype(np.int8) - 1
        return out


class PackedScale(StoredTensor):
    """The scale of a packed matrix, float32 (1,)."""

    def __init__(self, stored: StoredTensor, is_divisor: bool) -> None:
        super().__init__(stored.file, stored.name, stored.dtype_name, stored.shape, stored.offset)
        self.is_divisor = is_divisor

    def rows(self, start: int, stop: int) -> np.ndarray:
        """The factor of the products. Raises FormatError unless it is finite and positive."""
        value = super().rows(0, 1).astype(np.float32)
        with np.errstate(divide="ignore", over="ignore"):
            scale: np.ndarray = 1 / value if self.is_divisor else value
        return _checked(scale, self)[start:stop]


class MasterTensor(StoredTensor):
    """A master matrix as bfloat16 -1, 0 and 1."""

    def __init__(self, stored: StoredTensor) -> None:
        super().__init__(stored.file, stored.name, stored.dtype_name, stored.shape, stored.offset)
        self.stored = stored

    @property
    def dtype(self) -> np.dtype:
        """bfloat16."""
        return _BFLOAT16

    @functools.cached_property
    def inverse_scale(self) -> np.ndarray:
        """One over the mean of |w|, float32 (1,). The first call reads the whole matrix."""
        rows, columns = self.shape
        parts = (self.stored.rows(*ends).astype(np.float32) for ends in row_ranges(0, rows, columns, CHUNK_WEIGHTS))
        total = sum(float(np.abs(part).sum(dtype=np.float64)) for part in parts)
        mean = np.array([total / max(1, rows * columns)], np.float32)
        inverse: np.ndarray = 1 / np.maximum(_checked(mean, self, allow_zero=True), MIN_MEAN)
        return inverse

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of the first axis."""
        weights: np.ndarray = self.stored.rows(start, stop).astype(np.float32)
        weights *= self.inverse_scale
        ternary: np.ndarray = np.clip(np.rint(weights), -1, 1).astype(_BFLOAT16)
        return ternary


class MasterScale(StoredTensor):
    """The mean of a master matrix, in the rounding of the ternary one: float32 (1,)."""

    def __init__(self, master: MasterTensor) -> None:
        super().__init__(master.file, f"{master.name}_scale", "F32", (1,), master.offset)
        self.master = master

    def rows(self, start: int, stop: int) -> np.ndarray:
        """The scale."""
        scale: np.ndarray = 1 / self.master.inverse_scale
        return scale[start:stop]


class Packed(Renamed):
    """A ternary matrix in the form of packed checkpoints, uint8 (rows / 4, columns): the inverse of PackedTensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the bytes."""
        return self.source.shape[0] // ROWS_PER_BYTE, self.source.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """uint8."""
        return np.dtype(np.uint8)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of the first axis. Raises UnsupportedError for a weight that is not -1, 0 or 1."""
        height, columns = self.shape
        out = np.zeros((stop - start, columns), np.uint8)
        for i in range(ROWS_PER_BYTE):
            first = i * height + start
            weights = self.source.rows(first, first + len(out)).astype(np.float32)
            is_other = (weights != 0) & (np.abs(weights) != 1)
            if is_other.any():
                row, column = np.argwhere(is_other)[0].tolist()
                raise UnsupportedError(
                    f"tensor {self.name}: {weights[row, column]} at row {first + row}, column {column}",
                    tensor=self.name,
                    expected="-1, 0 or 1",
                    found=weights[row, column],
                    rest=" in a checkpoint of BitNet",
                )
            out |= (weights + 1).astype(np.uint8) << np.uint8(2 * i)
        return out


def _checked(value: np.ndarray, stored: StoredTensor, allow_zero: bool = False) -> np.ndarray:
    """Returns the number if it is a valid scale."""
    if not np.isfinite(value[0]) or value[0] < 0 or (value[0] == 0 and not allow_zero):
        raise stored.error(FormatError, f" gives a scale of {value[0]}", expected="a positive number", found=value[0])
    return value


class BitNet(Architecture):
    """Rotates halves, as Hugging Face does. Norms before attn_output and ffn_down; activations of 8 bits."""

    name = "bitnet"
    hf_names = ("BitNetForCausalLM", "BitnetForCausalLM")
    rope_interleaved = False
    hidden_act = "relu2"
    int8_activations = True
    quant_methods = ("bitnet",)
    exact_formats = ("F32", "F16", "BF16", "TQ1_0", "TQ2_0")
    layer_tensors = (
        *(tensor for tensor in DENSE_LAYER if not tensor.gguf.endswith(".bias")),
        *(
            Tensor(tensor.gguf.replace(".weight", ".scale"), f"{tensor.hf}_scale", ("one",))
            for tensor in DENSE_LAYER
            if tensor.hf.endswith("_proj.weight")
        ),
        Tensor("attn_sub_norm.weight", "self_attn.attn_sub_norm.weight", ("hidden",)),
        Tensor("ffn_sub_norm.weight", "mlp.ffn_sub_norm.weight", ("ffn",)),
    )

    def text_config(self, config: Config) -> Config:
        """config.json with transformers' default of the rotary base for BitNet."""
        theta = config.number("rope_theta", 500000.0)
        return Config({**config.values, "rope_theta": theta}, config.path)

    def check(self, config: Config) -> list[str]:
        """Refuses settings that BitNet's graphs lack."""
        refuse_wide_heads(self.name, config, self.sizes(config))
        rope = config.rope()
        if (kind := rope.values["rope_type"]) != "default":
            raise rope.error(
                UnsupportedError, "rope_type", f"is {kind!r}", expected="default in the bitnet architecture", found=kind
            )
        if config.boolean("attention_bias", False):
            raise config.error(UnsupportedError, "attention_bias", "is set, and the bitnet architecture has no biases")
        settings = _settings(config)
        for key in ("modules_to_not_convert", "use_rms_norm"):
            if settings.values.get(key) not in (None, False, [], ["lm_head"]):
                raise settings.error(UnsupportedError, key, "is set, and the bitnet architecture has none")
        return super().check(config)

    def metadata(self, config: Config) -> dict[str, Any]:
        """The usual keys; the length of keys and values only if config.json has head_dim."""
        keys = super().metadata(config)
        if config.values.get("head_dim") is None:
            del keys["bitnet.attention.key_length"], keys["bitnet.attention.value_length"]
        return keys

    def late_metadata(self, config: Config) -> dict[str, Any]:
        """A scaling factor of 1, as in the reference, and the activation: files without its key are SiLU networks."""
        return {
            "bitnet.rope.scaling.type": "linear",
            "bitnet.rope.scaling.factor": 1.0,
            "bitnet.hidden_activation": self.hidden_act,
        }

    def activation(self, get: Keys) -> str:
        """SiLU for files without the key."""
        return get.text("hidden_activation", "silu")

    def hf_config(self, metadata: Mapping[str, Any], tensors: Mapping[str, TensorSource]) -> dict[str, Any]:
        """Settings of the packed form, as in bitnet-b1.58-2B-4T; head_dim if the file has the length of keys."""
        activation = Keys(metadata, self.name).text("hidden_activation", "silu")
        if activation != self.hidden_act:
            raise UnsupportedError(
                f"bitnet.hidden_activation is {activation!r}",
                key="bitnet.hidden_activation",
                expected=f"{self.hidden_act} in a checkpoint",
                found=activation,
            )
        config = super().hf_config(metadata, tensors)
        if "bitnet.attention.key_length" not in metadata:
            del config["head_dim"]
        return {**config, "quantization_config": PACKED_SETTINGS}

    def hf_rope(self, metadata: Mapping[str, Any], tensors: Mapping[str, TensorSource]) -> dict[str, Any]:
        """Only the base: the keys' scaling factor must be 1, or `lowbit export hf` refuses the file."""
        return rope_parameters({"rope_type": "default"}, decimal(Keys(metadata, self.name).number("rope.freq_base")))

    def hf_format(self, tensor: TensorSource, dtype: str) -> str:
        """Matrices are bytes. Scales stay float32, which represents those of master weights exactly."""
        if tensor.dtype == np.uint8:
            return "U8"
        return "F32" if tensor.name.endswith("_proj.weight_scale") else dtype

    def restore(self, tensor: TensorSource, config: Config) -> TensorSource:
        """Packs the layers' matrices; other tensors are unchanged."""
        if not tensor.name.startswith("blk.") or len(tensor.shape) != 2:
            return tensor
        if tensor.shape[0] % ROWS_PER_BYTE:
            raise UnsupportedError(
                f"tensor {tensor.name}: {tensor.shape[0]} rows",
                tensor=tensor.name,
                expected="a multiple of 4, for packing",
                found=tensor.shape[0],
            )
        return Packed(tensor.name, tensor)

    def tensors(self, checkpoint: Checkpoint, config: Config) -> list[TensorSource]:
        """Every tensor of the file; matrices are ternary, with their scales."""
        ternary = copy.copy(checkpoint)
        ternary.tensors = dict(_ternary(checkpoint.tensors, _settings(config)))
        return super().tensors(ternary, config)


def _settings(config: Config) -> Config:
    """quantization_config: the form of the matrices."""
    values = config.values.get("quantization_config")
    if not isinstance(values, dict):
        raise config.wrong("quantization_config", values, "an object with the settings of BitNet")
    return Config(values, config.path, "quantization_config")


def _ternary(tensors: Mapping[str, StoredTensor], settings: Config) -> Iterable[tuple[str, StoredTensor]]:
    """A checkpoint's tensors by name, with ternary matrices and their scales."""
    linear = _one_of(settings, "linear_class", "bitlinear", "autobitlinear")
    is_master = _one_of(settings, "quantization_mode", "offline", "online") == "online" and linear == "autobitlinear"
    for name, stored in tensors.items():
        if name.endswith("_proj.weight_scale") and not is_master:
            if stored.shape != (1,):
                raise stored.error(
                    FormatError, f" has shape {list(stored.shape)}", expected="[1]", found=list(stored.shape)
                )
            yield name, PackedScale(stored, is_divisor=linear == "bitlinear")
        elif not name.endswith("_proj.weight"):
            yield name, stored
        elif is_master:
            master = MasterTensor(stored)
            yield name, master
            yield f"{name}_scale", MasterScale(master)
        elif stored.dtype_name != "U8" or len(stored.shape) != 2:
            raise stored.error(
                FormatError,
                f" is {stored.dtype_name} {list(stored.shape)}",
                expected="a matrix of U8 with four ternary weights in each byte",
            )
        else:
            yield name, PackedTensor(stored)


def _one_of(settings: Config, key: str, default: str, other: str) -> str:
    value = settings.text(key, default)
    if value not in (default, other):
        raise settings.error(UnsupportedError, key, quoted(value, 40), expected=f"{default} or {other}", found=value)
    return value


ARCHITECTURE = BitNet()
