"""Assigns formats to the tensors of a file.

In this order: tensors that stay as they are, the user's overrides, the mix's rules, and another format if the block
size does not divide the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lowbit import _core
from lowbit.arch.table import layer_of
from lowbit.base.errors import InputError, UnsupportedError
from lowbit.quantization.options import ConvertOptions
from lowbit.quantization.recipes import At, Mix, Network

#: Format -> fallback if the row length is not a multiple of its block size. If the fallback does not fit: F16.
FALLBACKS = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
#: The fallback of the output matrix, for every format.
OUTPUT_FALLBACK = "Q8_0"
#: Formats with blocks up to this size fall back to F16 directly.
SMALL_BLOCK = 32

#: Part of a tensor's name -> its role; the first match counts. Fused projections have the role of the values that they
#: contain.
ROLES = (
    ("attn_qkv.weight", "attn_v"),
    ("attn_kv_b.weight", "attn_v"),
    ("attn_v.weight", "attn_v"),
    ("attn_k.weight", "attn_k"),
    ("attn_q.weight", "attn_q"),
    ("attn_output.weight", "attn_output"),
    ("ffn_up", "ffn_up"),
    ("ffn_gate", "ffn_gate"),
    ("ffn_down", "ffn_down"),
)
OUTPUT = "output.weight"
EMBEDDING = "token_embd.weight"
LAYER_EMBEDDING = "per_layer_token_embd.weight"
#: Roles of tensors with exactly these names.
WHOLE_NAMES = {OUTPUT: "output", EMBEDDING: "token_embd", LAYER_EMBEDDING: "token_embd"}
#: Matrices with these names are not quantized.
KEPT_NAMES = ("position_embd.weight", "token_types.weight")
#: Matrices with one of these in their names are not quantized.
KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "time_mix_first.weight",
    "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight",
    "time_mix_v2.weight", "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight",
    "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight",
    "attn_rel_b.weight", ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd",
    ".patch_merger", "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip
#: Formats that are unusable without an importance matrix in every mix, and in one mix only.
NEED_IMATRIX = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")
MIXES_NEED_IMATRIX = {"Q2_K_S": "Q2_K"}


class Stored(NamedTuple):
    """A tensor before assignment: shape in NumPy order, and the format that it has, or would have in a bf16 file."""

    name: str
    shape: tuple[int, ...]
    format: str


class Assignment(NamedTuple):
    """A tensor's format in the file. fallback: a sentence if the mix's format does not fit its rows, else None."""

    name: str
    shape: tuple[int, ...]
    before: str
    format: str
    fallback: str | None

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor's data in the file."""
        block_size, block_bytes = _core.tensor_block(self.format)
        return math.prod(self.shape) // block_size * block_bytes


def role_of(name: str) -> str:
    """A tensor's role, by its GGUF name."""
    return WHOLE_NAMES.get(name) or next((role for part, role in ROLES if part in name), "other")


def can_quantize(name: str, shape: Sequence[int]) -> bool:
    """True for matrices of weights; False for vectors, norms and a few small tables."""
    num_axes = len(shape)
    while num_axes and shape[len(shape) - num_axes] == 1:  # ggml does not count leading axes of length one
        num_axes -= 1
    kept = name in KEPT_NAMES or any(part in name for part in KEPT)
    return num_axes >= 2 and name.endswith("weight") and not kept


def num_experts(shape: Sequence[int]) -> int:
    """Number of experts whose matrices a tensor stacks; 1 for a single matrix."""
    return shape[-3] if len(shape) > 2 else 1


def needs_imatrix(mix: Mix, tensor: Assignment) -> bool:
    """Whether the tensor would be unusable if it were encoded without importances."""
    if tensor.name in WHOLE_NAMES:
        return bool(_core.Format(tensor.format).needs_imatrix)
    return tensor.format in NEED_IMATRIX or MIXES_NEED_IMATRIX.get(mix.name) == tensor.format


def file_order(names: Iterable[str]) -> list[str]:
    """The order of a quantized file: tensors outside the layers first, then by layer and name."""
    return sorted(names, key=lambda name: (layer_of(name), name.encode()))


def _fits(format: str, row: int) -> bool:
    return row % _core.tensor_block(format)[0] == 0


def _bits(format: str) -> float:
    block_size, block_bytes = _core.tensor_block(format)
    return 8 * block_bytes / block_size


def _fallback(tensor: Stored, wanted: str, fitting: str, unfit: str) -> str:
    """The sentence for a fallback: the block size of `unfit` does not divide the tensor's rows."""
    block_size = _core.tensor_block(unfit)[0]
    return (
        f"{tensor.name}: row length {tensor.shape[-1]} is not a multiple of the block size {block_size}: "
        f"{wanted} -> {fitting}, {_bits(fitting) - _bits(wanted):+g} bits per weight"
    )


def _fit(tensor: Stored, wanted: str) -> tuple[str, str | None]:
    """A format whose block size divides the tensor's rows, and a sentence if it is not the wanted format."""
    row = tensor.shape[-1]
    if _fits(wanted, row):
        return wanted, None
    block_size = _core.tensor_block(wanted)[0]
    if wanted not in FALLBACKS and block_size > SMALL_BLOCK:
        raise InputError(
            f"tensor {tensor.name}: {wanted} has no fallback:",
            tensor=tensor.name,
            expected=f"a row length that is a multiple of the block size {block_size}",
            found=row,
            rest="; choose another format for this tensor",
        )
    fitting = FALLBACKS.get(wanted, wanted)
    fitting = fitting if _fits(fitting, row) else "F16"
    return fitting, _fallback(tensor, wanted, fitting, wanted)


class _Rules:
    """Applies a mix's rules. Some rules depend on the position among the tensors of a role, counted in file order."""

    def __init__(self, mix: Mix, tensors: Sequence[Stored], network: Network, has_imatrix: bool) -> None:
        self.mix = mix
        self.network = network
        self.has_imatrix = has_imatrix
        roles = [role_of(tensor.name) for tensor in tensors]
        layers = network.num_layers
        self.totals = {"attn_v": roles.count("attn_v"), "ffn_down": layers, "ffn_gate": layers, "ffn_up": layers}
        self.seen = dict.fromkeys(self.totals, 0)

    def wanted(self, tensor: Stored) -> str:
        """The mix's format, before the fallback for the rows."""
        role = role_of(tensor.name)
        i = self._place(tensor.name, role)
        if role in self.seen:
            self.seen[role] += 1
        has_experts = num_experts(tensor.shape) > 1
        at = At(i, self.totals.get(role, 0), self.network, self.has_imatrix, has_experts)
        rules = (rule.format for rule in self.mix.rules if rule.role in (role, "*") and rule.when(at))
        return next(rules, self.mix.default)

    def _place(self, name: str, role: str) -> int:
        if not self.mix.by_name or self.network.num_experts <= 1 or not role.startswith("ffn_"):
            return self.seen.get(role, 0)
        layer = layer_of(name)
        if not 0 <= layer < self.network.num_layers:
            raise UnsupportedError(
                f"tensor {name}:", tensor=name, expected=f"a layer from 0 to {self.network.num_layers - 1}"
            )
        return layer


class _Planner:
    """Chooses formats, and records which overrides were used."""

    def __init__(
        self,
        mix: Mix,
        tensors: Sequence[Stored],
        metadata: Mapping[str, Any],
        options: ConvertOptions,
        has_imatrix: bool,
    ) -> None:
        self.mix = mix
        self.options = options
        self.patterns = options.patterns()
        self.matched = [False] * len(self.patterns)
        names = {tensor.name for tensor in tensors}
        self.is_tied = OUTPUT not in names
        if options.leave_output_tensor and self.is_tied:
            raise InputError(
                f"leave_output_tensor: the model has no {OUTPUT}; {EMBEDDING} is also the output matrix, and "
                "token_embedding_type sets its format",
                tensor=OUTPUT,
            )
        needed = {"output_tensor_type": EMBEDDING if self.is_tied else OUTPUT, "token_embedding_type": EMBEDDING}
        for option, name in needed.items():
            if getattr(options, option) and name not in names:
                raise InputError(f"{option}: the model has no {name}", tensor=name)
        plain = mix.is_float or options.pure
        self.rules = None if plain else _Rules(mix, tensors, Network.of(metadata), has_imatrix)

    def choose(self, tensor: Stored) -> tuple[str, str | None]:
        """The format of a tensor that can be quantized, and a sentence if the mix's format does not fit."""
        override = self._override(tensor)
        if override:
            if not _fits(override, tensor.shape[-1]):
                raise InputError(
                    f"tensor {tensor.name}: {override} was requested:",
                    tensor=tensor.name,
                    expected=f"a row length that is a multiple of the block size {_core.tensor_block(override)[0]}",
                    found=tensor.shape[-1],
                    rest="; choose another format for this tensor",
                )
            return override, None
        if self.rules is None:
            return (self.mix.default, None) if self.mix.is_float else _fit(tensor, self.mix.default)
        return self._output(tensor) if self._is_output(tensor) else _fit(tensor, self.rules.wanted(tensor))

    def _is_output(self, tensor: Stored) -> bool:
        return tensor.name == OUTPUT or (self.is_tied and role_of(tensor.name) == "token_embd")

    def _output(self, tensor: Stored) -> tuple[str, str | None]:
        if _fits(self.mix.default, tensor.shape[-1]):
            return _fit(tensor, self.mix.output)
        fitting = _fit(tensor, OUTPUT_FALLBACK)[0]
        if fitting == self.mix.output:
            return fitting, None
        return fitting, _fallback(tensor, self.mix.output, fitting, self.mix.default)

    def _override(self, tensor: Stored) -> str | None:
        """The override for a tensor, else None. All patterns are tried, to record which of them match."""
        named = None
        for index, (pattern, format) in enumerate(self.patterns):
            if pattern.search(tensor.name):
                self.matched[index] = True
                named = named or format
        options = self.options
        if options.token_embedding_type and role_of(tensor.name) == "token_embd":
            return named if named and tensor.name == LAYER_EMBEDDING else options.token_embedding_type
        if options.output_tensor_type and self._is_output(tensor) and (tensor.name == OUTPUT or not named):
            return options.output_tensor_type
        return named

    def check_matches(self) -> None:
        """Raises InputError for an override that matches no tensor."""
        for (pattern, format), matched in zip(self.patterns, self.matched, strict=True):
            if not matched:
                raise InputError(f"tensor_types: {pattern.pattern}={format} matches no tensor that can be quantized")


def assign(
    mix: Mix,
    tensors: Sequence[Stored],
    metadata: Mapping[str, Any],
    options: ConvertOptions | None = None,
    *,
    has_imatrix: bool = False,
) -> list[Assignment]:
    """The format of every tensor.

    tensors: in the order of the file, because rules count them. metadata: GGUF keys of the model.

    Raises InputError for an override that does not fit or matches nothing, and for a fallback if options are strict;
    UnsupportedError for an unknown model or format.
    """
    options = options or ConvertOptions()
    planner = _Planner(mix, tensors, metadata, options, has_imatrix)
    result = []
    for tensor in tensors:
        format, fallback = tensor.format, None
        left = mix.is_copy or (options.leave_output_tensor and tensor.name == OUTPUT)
        if not left and can_quantize(tensor.name, tensor.shape):
            format, fallback = planner.choose(tensor)
        result.append(Assignment(tensor.name, tensor.shape, tensor.format, format, fallback))
    planner.check_matches()
    fallbacks = [tensor.fallback for tensor in result if tensor.fallback]
    if options.strict and fallbacks:
        others = f" (and {len(fallbacks) - 1} more)" if len(fallbacks) > 1 else ""
        raise InputError(f"strict: {fallbacks[0]}{others}")
    return result
