"""Mixes: which tensor of a model gets which format, the same that llama-quantize gives it.

A mix is a row of data: the number that general.file_type has for it, the format of most matrices, and exceptions by
the tensor's role. Around the mixes stand three rules that all share: what stays as it is (vectors, norms), the output
matrix (which is the embedding where they are tied), and what happens to rows that the format's blocks do not divide.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lowbit import _core
from lowbit._core import InputError, UnsupportedError
from lowbit.arch._base import layer_of


@dataclass(frozen=True)
class Network:
    """What the rules ask of a model."""

    architecture: str
    num_layers: int
    num_heads: int
    num_kv_heads: int

    @property
    def heads_per_kv(self) -> int:
        """Query heads that share a key and value head."""
        return self.num_heads // self.num_kv_heads

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Network:
        """From GGUF metadata of any architecture. Raises UnsupportedError for mixtures of experts."""
        name = str(metadata.get("general.architecture"))

        def integer(key: str, default: Any = None) -> int:
            value = metadata.get(f"{name}.{key}", default)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
                raise UnsupportedError(f"{name}.{key} is {str(value)[:40]!r}: no mix is known for such a model")
            return int(value)

        if integer("expert_count", 0):
            raise UnsupportedError(f"{name}.expert_count: no mix is known for mixtures of experts")
        num_heads = integer("attention.head_count")
        num_kv_heads = integer("attention.head_count_kv", num_heads)
        return cls(name, integer("block_count"), num_heads, max(num_kv_heads, 1))


class At(NamedTuple):
    """Where a rule is asked: the i-th of n tensors with that role."""

    i: int
    n: int
    network: Network
    has_imatrix: bool


Condition = Callable[[At], bool]


class Rule(NamedTuple):
    """Tensors of a role that get another format than the mix's default. The first rule that holds counts."""

    role: str
    when: Condition
    format: str


def always(at: At) -> bool:
    """Every layer."""
    return True


def more_bits(at: At) -> bool:
    """The first and the last eighth, and every third layer between."""
    return at.i < at.n // 8 or at.i >= 7 * at.n // 8 or (at.i - at.n // 8) % 3 == 2


def shared_values(at: At) -> bool:
    """Values that four or more query heads share: small, and much depends on them."""
    return at.network.heads_per_kv >= 4


def first(count: int) -> Condition:
    """The first `count` layers."""
    return lambda at: at.i < count


def first_part(parts: int) -> Condition:
    """The first n-th of the layers."""
    return lambda at: at.i < at.n // parts


def first_eighth_with_imatrix(at: At) -> bool:
    """The first layers go wrong even with an importance matrix, and only then do better with an offset."""
    return at.has_imatrix and at.i < at.n // 8


@dataclass(frozen=True)
class Mix:
    """One row: general.file_type, the format of most matrices, and the exceptions."""

    name: str
    file_type: int
    default: str
    rules: tuple[Rule, ...] = ()

    @property
    def is_float(self) -> bool:
        """Whether matrices stay floats."""
        return self.default in FLOAT_FORMATS


FLOAT_FORMATS = ("F32", "F16", "BF16")

_MIXES = (
    Mix("F32", 0, "F32"),
    Mix("F16", 1, "F16"),
    Mix("BF16", 32, "BF16"),
    Mix("Q4_0", 2, "Q4_0", (Rule("ffn_down", first_eighth_with_imatrix, "Q4_1"),)),
    Mix("Q4_1", 3, "Q4_1"),
    Mix("Q5_0", 8, "Q5_0", (Rule("ffn_down", first_eighth_with_imatrix, "Q5_1"),)),
    Mix("Q5_1", 9, "Q5_1"),
    Mix("Q8_0", 7, "Q8_0"),
    Mix(
        "Q2_K",
        10,
        "Q2_K",
        (
            Rule("attn_v", shared_values, "Q4_K"),
            Rule("attn_v", always, "Q3_K"),
            Rule("ffn_down", always, "Q3_K"),
            Rule("attn_output", always, "Q3_K"),
        ),
    ),
    Mix("Q3_K_S", 11, "Q3_K"),
    Mix(
        "Q3_K_M",
        12,
        "Q3_K",
        (
            Rule("attn_v", first(2), "Q5_K"),
            Rule("attn_v", always, "Q4_K"),
            Rule("ffn_down", first_part(16), "Q5_K"),
            Rule("ffn_down", always, "Q4_K"),
            Rule("attn_output", always, "Q4_K"),
        ),
    ),
    Mix(
        "Q3_K_L",
        13,
        "Q3_K",
        (
            Rule("attn_v", always, "Q5_K"),
            Rule("ffn_down", always, "Q5_K"),
            Rule("attn_output", always, "Q5_K"),
        ),
    ),
    Mix(
        "Q4_K_S",
        14,
        "Q4_K",
        (Rule("attn_v", first(4), "Q5_K"), Rule("ffn_down", first_part(8), "Q5_K")),
    ),
    Mix(
        "Q4_K_M",
        15,
        "Q4_K",
        (Rule("attn_v", more_bits, "Q6_K"), Rule("ffn_down", more_bits, "Q6_K")),
    ),
    Mix("Q5_K_S", 16, "Q5_K"),
    Mix(
        "Q5_K_M",
        17,
        "Q5_K",
        (Rule("attn_v", more_bits, "Q6_K"), Rule("ffn_down", more_bits, "Q6_K")),
    ),
    Mix("Q6_K", 18, "Q6_K"),
)
MIXES = {mix.name: mix for mix in _MIXES}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

#: Format -> the one for rows that its blocks of 256 do not divide. Where that does not fit either: F16.
FALLBACKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}

#: Part of a tensor's name -> its role, first match. Fused projections hold values, so they count as such.
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
#: Matrices whose names hold one of these stay as they are.
KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "altup", "laurel", "per_layer_model_proj", "position_embd.weight",
    "token_types.weight", "ssm_conv1d", "shortconv.conv.weight", "time_mix_first.weight", "time_mix_w0.weight",
    "time_mix_w1.weight", "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight",
    "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight", "time_mix_g2.weight",
    "time_mix_decay_w1.weight", "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight", "attn_rel_b.weight",
    ".position_embd", ".rel_pos", ".patch_embd", ".patch_merger",
)  # fmt: skip


def find_mix(name: str) -> Mix:
    """A mix by name, in any case. Raises InputError that lists the names."""
    key = ALIASES.get(name.upper(), name.upper())
    if key not in MIXES:
        raise InputError(f"unknown format {name!r}, expected one of {', '.join(MIXES)}")
    return MIXES[key]


class Stored(NamedTuple):
    """A tensor before the mix: shape in NumPy order, format it has or would have in a bf16 file."""

    name: str
    shape: tuple[int, ...]
    format: str


class Assignment(NamedTuple):
    """A tensor's format in the file; `fallback` says why it is not the one that the mix wanted."""

    name: str
    shape: tuple[int, ...]
    format: str
    fallback: str | None


def role_of(name: str) -> str:
    """The part that a tensor plays, by its GGUF name."""
    if name in ("output.weight", "token_embd.weight"):
        return name.removesuffix(".weight")
    return next((role for part, role in ROLES if part in name), "other")


def can_quantize(name: str, shape: Sequence[int]) -> bool:
    """Matrices of weights can; vectors, norms and a few small tables stay as they are."""
    num_axes = len(shape)
    while num_axes and shape[len(shape) - num_axes] == 1:  # leading axes of one row are none to ggml
        num_axes -= 1
    return num_axes >= 2 and name.endswith("weight") and not any(part in name for part in KEPT)


def file_order(names: Iterable[str]) -> list[str]:
    """The order of a quantized file: tensors outside the layers first, then layer by layer, by name."""
    return sorted(names, key=lambda name: (layer_of(name), name.encode()))


def _fit(name: str, row: int, wanted: str) -> tuple[str, str | None]:
    """A format that divides rows of that length, and a sentence if it is not the wanted one."""
    fitting = wanted
    if row % _core.get_format(fitting).block_size and fitting in FALLBACKS:
        fitting = FALLBACKS[fitting]
    if row % _core.get_format(fitting).block_size:
        fitting = "F16"
    if fitting == wanted:
        return wanted, None
    block = _core.get_format(wanted).block_size
    return fitting, f"{name}: rows of {row} weights are no multiple of {block}: {wanted} -> {fitting}"


class _Planner:
    """Counts tensors of each role in file order, as the rules want."""

    def __init__(self, mix: Mix, tensors: Sequence[Stored], network: Network, has_imatrix: bool) -> None:
        self.mix = mix
        self.network = network
        self.has_imatrix = has_imatrix
        roles = [role_of(tensor.name) for tensor in tensors]
        self.tied = "output" not in roles
        self.totals = {"attn_v": roles.count("attn_v"), "ffn_down": network.num_layers}
        self.seen = dict.fromkeys(self.totals, 0)

    def wanted(self, tensor: Stored) -> str:
        """The mix's format, before it is fitted to the rows."""
        role = role_of(tensor.name)
        if role == "output" or (role == "token_embd" and self.tied):
            return "Q8_0" if self.mix.default == "Q8_0" else "Q6_K"
        at = At(self.seen.get(role, 0), self.totals.get(role, 0), self.network, self.has_imatrix)
        if role in self.seen:
            self.seen[role] += 1
        found = next((r.format for r in self.mix.rules if r.role == role and r.when(at)), self.mix.default)
        # Llama 2 and 3 70B: eight query heads share each value head, so more bits there cost next to nothing.
        net = self.network
        is_70b = net.architecture == "llama" and net.num_layers == 80 and net.num_heads != net.num_kv_heads
        return "Q5_K" if role == "attn_v" and is_70b and found in ("Q3_K", "Q4_K") else found


def compile_overrides(tensor_types: Iterable[tuple[str, str]]) -> list[tuple[re.Pattern[str], str]]:
    """(regular expression, format) pairs, checked. Raises InputError for what is no expression or no format."""
    compiled = []
    for pattern, format in tensor_types:
        try:
            compiled.append((re.compile(pattern), _core.get_format(format).name))
        except re.error as error:
            raise InputError(f"tensor type {pattern!r}: not a regular expression ({error})") from None
    return compiled


def assign(
    mix: Mix,
    tensors: Sequence[Stored],
    network: Network,
    *,
    has_imatrix: bool = False,
    tensor_types: Iterable[tuple[str, str]] = (),
    pure: bool = False,
) -> list[Assignment]:
    """The format of every tensor, in the order given: that of the file, by which layers are counted.

    tensor_types: (regular expression, format) pairs that go before the mix; the first that is found in a name counts.
    pure: the mix's default everywhere. Raises UnsupportedError if a format is not built in.
    """
    overrides = compile_overrides(tensor_types)
    planner = _Planner(mix, tensors, network, has_imatrix)
    result = []
    for tensor in tensors:
        fallback = None
        if not can_quantize(tensor.name, tensor.shape):
            format = tensor.format
        elif mix.is_float:
            format = mix.default
        else:
            override = next((fmt for pattern, fmt in overrides if pattern.search(tensor.name)), None)
            wanted = override or (mix.default if pure else planner.wanted(tensor))
            format, fallback = _fit(tensor.name, tensor.shape[-1], wanted)
        result.append(Assignment(tensor.name, tensor.shape, format, fallback))
    return result
