"""Mixes: the format of each tensor of a model, as llama-quantize assigns it.

A mix is a row of data: its number in general.file_type, the format of most matrices, that of the output matrix, and
exceptions by a tensor's role and position. assignment.py applies a mix to the tensors of a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lowbit.base import arguments
from lowbit.base.dtypes import FLOATS
from lowbit.base.errors import FormatError, InputError, UnsupportedError
from lowbit.base.quoting import quoted
from lowbit.base.suggest import did_you_mean

#: Architectures for which llama-quantize has separate rules, which are not implemented.
UNKNOWN_ARCHITECTURES = ("falcon", "glm5-next", "bailingmoe3")
#: (architecture, layers) of models with 70 billion weights.
SEVENTY_BILLION = (("llama", 80), ("qwen2", 80), ("deci", 80), ("olmo", 80), ("jais2", 68))


@dataclass(frozen=True)
class Network:
    """Facts about a model on which rules depend."""

    architecture: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    num_experts: int = 0

    @property
    def heads_per_kv(self) -> int:
        """Query heads per key and value head; 0 without attention."""
        return self.num_heads // self.num_kv_heads if self.num_kv_heads else 0

    @property
    def is_70b(self) -> bool:
        """True for Llama 2 and 3 70B, and for others that llama-quantize treats in the same way."""
        if self.architecture == "llama" and self.num_heads == self.num_kv_heads:
            return False
        return (self.architecture, self.num_layers) in SEVENTY_BILLION

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Network:
        """Reads metadata. Raises FormatError without an architecture, UnsupportedError if its mixes are unknown."""
        name = metadata.get("general.architecture")
        if not isinstance(name, str):
            raise FormatError("metadata has no general.architecture, which a mix needs", key="general.architecture")
        if name in UNKNOWN_ARCHITECTURES:
            raise UnsupportedError(f"architecture {name}: its mixes are unknown; use pure (--pure)")

        def integer(key: str, default: int | None = None) -> int:
            value = metadata.get(f"{name}.{key}", default)
            if isinstance(value, np.ndarray) and value.ndim == 1 and value.size:
                value = value[0]  # one per layer: the reference uses the first
            if value is None:
                raise UnsupportedError(
                    f"metadata has no {name}.{key}, which a mix needs; use pure (--pure)",
                    key=f"{name}.{key}",
                )
            if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < 0:
                raise UnsupportedError(
                    f"{name}.{key}:",
                    key=f"{name}.{key}",
                    expected="a non-negative integer",
                    found=quoted(value, 40),
                )
            return int(value)

        num_heads = integer("attention.head_count", 0)
        num_kv_heads = integer("attention.head_count_kv", num_heads)
        return cls(name, integer("block_count"), num_heads, num_kv_heads, integer("expert_count", 0))


class At(NamedTuple):
    """The position of a tensor for a rule: the i-th of n tensors with its role."""

    i: int
    n: int
    network: Network
    has_imatrix: bool
    has_experts: bool  # the tensor stacks experts' matrices


Condition = Callable[[At], bool]


class Rule(NamedTuple):
    """Gives tensors of a role another format than the mix's default. The first rule that applies counts."""

    role: str
    when: Condition
    format: str


def always(at: At) -> bool:
    """Every layer."""
    return True


def more_bits(at: At) -> bool:
    """The first and the last eighth of the layers, and every third layer between."""
    return at.i < at.n // 8 or at.i >= 7 * at.n // 8 or (at.i - at.n // 8) % 3 == 2


def between_eighths(at: At) -> bool:
    """Neither the first nor the last eighth."""
    return at.n // 8 <= at.i < 7 * at.n // 8


def shared_values(at: At) -> bool:
    """Each value head is shared by four or more query heads, so the tensor is small and important."""
    return at.network.heads_per_kv >= 4


def few_values(at: At) -> bool:
    """Values are a small part of the model: shared by query heads, or beside four or more experts."""
    return shared_values(at) or at.network.num_experts >= 4


def is_70b(at: At) -> bool:
    """Eight query heads share each value head, so more bits for values cost almost nothing."""
    return at.network.is_70b


def eight_experts(at: At) -> bool:
    """Mixtral: attention is a small part of the model."""
    return at.network.num_experts == 8


def not_experts(at: At) -> bool:
    """All except the stacked matrices of experts."""
    return not at.has_experts


def with_imatrix(at: At) -> bool:
    """There is an importance matrix."""
    return at.has_imatrix


def without_imatrix(at: At) -> bool:
    """There is no importance matrix."""
    return not at.has_imatrix


def first(count: int) -> Condition:
    """The first `count` layers."""
    return lambda at: at.i < count


def first_part(parts: int) -> Condition:
    """The first n-th of the layers."""
    return lambda at: at.i < at.n // parts


def both(one: Condition, other: Condition) -> Condition:
    """Both conditions apply."""
    return lambda at: one(at) and other(at)


@dataclass(frozen=True)
class Mix:
    """One mix: general.file_type, the default format of matrices, the format of the output matrix, and exceptions.

    With tied embeddings, the output matrix is the embedding. by_name: in mixtures of experts, layer numbers come from
    the tensors' names instead of a count.
    """

    name: str
    file_type: int
    default: str
    rules: tuple[Rule, ...] = ()
    output: str = "Q6_K"
    by_name: bool = True

    @property
    def is_float(self) -> bool:
        """Whether matrices remain floats."""
        return self.default in FLOATS

    @property
    def is_copy(self) -> bool:
        """Whether every tensor keeps its format."""
        return self.name == "COPY"


def _mix(name: str, file_type: int, default: str, *rules: Rule, output: str = "Q6_K") -> Mix:
    """A mix with the usual exceptions for Mixtral and for models of 70 billion weights."""
    shared = [Rule("attn_v", eight_experts, "Q8_0"), Rule("attn_k", eight_experts, "Q8_0")]
    for rule in (*rules, Rule("attn_v", always, default)):
        if rule.role == "attn_v" and rule.format in ("Q3_K", "Q4_K"):
            shared.append(Rule("attn_v", both(rule.when, is_70b), "Q5_K"))
        shared.append(rule)
    return Mix(name, file_type, default, tuple(shared), output)


def _tiny_mix(name: str, file_type: int, default: str, embedding: str, better: str, *rules: Rule) -> Mix:
    """A mix of about two bits or less. Values and the first layers' down projections get the format `better`."""
    shared = (
        Rule("token_embd", always, embedding),
        Rule("attn_v", few_values, "Q4_K"),
        Rule("attn_v", always, better),
        Rule("attn_k", eight_experts, "Q4_K"),
        Rule("ffn_down", first_part(8), better),
        Rule("attn_output", eight_experts, "Q5_K"),
    )
    return Mix(name, file_type, default, (*shared, *rules), "Q5_K", by_name=False)


_MIXTRAL_OUTPUT = Rule("attn_output", eight_experts, "Q5_K")
_EMBEDDING_4 = Rule("token_embd", always, "Q4_K")
#: The first layers lose most. Formats with an offset help them only if there is an importance matrix.
_FIRST_WITH_IMATRIX = both(first_part(8), with_imatrix)
_FIRST_WITHOUT_IMATRIX = both(first_part(8), without_imatrix)

_MIXES = (
    Mix("F32", 0, "F32"),
    Mix("F16", 1, "F16"),
    Mix("BF16", 32, "BF16"),
    Mix("COPY", 0, "F32"),
    _mix("Q4_0", 2, "Q4_0", Rule("ffn_down", _FIRST_WITH_IMATRIX, "Q4_1")),
    _mix("Q4_1", 3, "Q4_1"),
    _mix("Q5_0", 8, "Q5_0", Rule("ffn_down", _FIRST_WITH_IMATRIX, "Q5_1")),
    _mix("Q5_1", 9, "Q5_1"),
    _mix("Q8_0", 7, "Q8_0", output="Q8_0"),
    _mix(
        "Q2_K",
        10,
        "Q2_K",
        Rule("attn_v", shared_values, "Q4_K"),
        Rule("attn_v", always, "Q3_K"),
        Rule("ffn_down", always, "Q3_K"),
        _MIXTRAL_OUTPUT,
        Rule("attn_output", always, "Q3_K"),
    ),
    _mix(
        "Q2_K_S",
        21,
        "Q2_K",
        Rule("attn_v", shared_values, "Q4_K"),
        Rule("ffn_down", first_part(8), "Q4_K"),
    ),
    _mix("Q3_K_S", 11, "Q3_K", _MIXTRAL_OUTPUT),
    _mix(
        "Q3_K_M",
        12,
        "Q3_K",
        Rule("attn_v", first(2), "Q5_K"),
        Rule("attn_v", always, "Q4_K"),
        Rule("ffn_down", first_part(16), "Q5_K"),
        Rule("ffn_down", always, "Q4_K"),
        _MIXTRAL_OUTPUT,
        Rule("attn_output", always, "Q4_K"),
    ),
    _mix(
        "Q3_K_L",
        13,
        "Q3_K",
        Rule("attn_v", always, "Q5_K"),
        Rule("ffn_down", always, "Q5_K"),
        Rule("attn_output", eight_experts, "Q3_K"),
        Rule("attn_output", always, "Q5_K"),
    ),
    _mix(
        "Q4_K_S",
        14,
        "Q4_K",
        Rule("attn_v", first(4), "Q5_K"),
        Rule("ffn_down", first_part(8), "Q5_K"),
        _MIXTRAL_OUTPUT,
    ),
    _mix(
        "Q4_K_M",
        15,
        "Q4_K",
        Rule("attn_v", more_bits, "Q6_K"),
        Rule("ffn_down", more_bits, "Q6_K"),
        _MIXTRAL_OUTPUT,
    ),
    _mix("Q5_K_S", 16, "Q5_K"),
    _mix(
        "Q5_K_M",
        17,
        "Q5_K",
        Rule("attn_v", more_bits, "Q6_K"),
        Rule("ffn_down", more_bits, "Q6_K"),
    ),
    _mix("Q6_K", 18, "Q6_K"),
    _tiny_mix("IQ1_S", 24, "IQ1_S", "Q2_K", "Q2_K", Rule("attn_output", always, "IQ2_XXS")),
    _tiny_mix("IQ1_M", 31, "IQ1_M", "Q2_K", "Q2_K", Rule("attn_output", always, "IQ2_XXS")),
    _tiny_mix("IQ2_XXS", 19, "IQ2_XXS", "Q2_K", "Q2_K"),
    _tiny_mix("IQ2_XS", 20, "IQ2_XS", "Q2_K", "Q2_K"),
    _tiny_mix("IQ2_S", 28, "IQ2_XS", "IQ3_S", "IQ3_S", Rule("attn_output", always, "IQ3_S")),
    _tiny_mix("IQ2_M", 29, "IQ2_S", "IQ3_S", "IQ3_S", Rule("attn_output", always, "IQ3_S")),
    _mix(
        "IQ3_XXS",
        23,
        "IQ3_XXS",
        Rule("token_embd", always, "IQ3_S"),
        Rule("attn_v", shared_values, "Q4_K"),
        Rule("attn_v", without_imatrix, "IQ3_S"),
        Rule("attn_k", always, "IQ2_S"),
        Rule("attn_q", always, "IQ2_S"),
        Rule("ffn_down", _FIRST_WITHOUT_IMATRIX, "Q4_K"),
        Rule("ffn_down", without_imatrix, "Q3_K"),
        _MIXTRAL_OUTPUT,
        Rule("attn_output", always, "IQ3_S"),
        output="Q5_K",
    ),
    _mix(
        "IQ3_XS",
        22,
        "IQ3_S",
        Rule("attn_v", shared_values, "Q4_K"),
        Rule("attn_k", always, "IQ3_XXS"),
        Rule("attn_q", always, "IQ3_XXS"),
        _MIXTRAL_OUTPUT,
        Rule("ffn_gate", between_eighths, "IQ3_XXS"),
        Rule("ffn_up", between_eighths, "IQ3_XXS"),
    ),
    _mix("IQ3_S", 26, "IQ3_S", Rule("attn_v", shared_values, "Q4_K"), _MIXTRAL_OUTPUT),
    _mix(
        "IQ3_M",
        27,
        "IQ3_S",
        Rule("attn_v", always, "Q4_K"),
        Rule("ffn_down", first_part(8), "Q4_K"),
        Rule("ffn_down", both(eight_experts, more_bits), "Q4_K"),
        _MIXTRAL_OUTPUT,
        Rule("attn_output", always, "Q4_K"),
    ),
    *(
        _mix(
            name,
            file_type,
            name,
            Rule("attn_v", shared_values, "Q5_K"),
            Rule("ffn_down", _FIRST_WITHOUT_IMATRIX, "Q5_K"),
            _MIXTRAL_OUTPUT,
        )
        for name, file_type in (("IQ4_NL", 25), ("IQ4_XS", 30))
    ),
    _mix("TQ1_0", 36, "TQ1_0", _EMBEDDING_4),
    _mix("TQ2_0", 37, "TQ2_0", _EMBEDDING_4),
    Mix("MXFP4_MOE", 38, "MXFP4", (Rule("*", not_experts, "Q8_0"),), "Q8_0"),
    _mix("Q1_0", 40, "Q1_0"),
    _mix("Q2_0", 41, "Q2_0", _EMBEDDING_4),
)
MIXES = {mix.name: mix for mix in _MIXES}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}


def find_mix(name: str) -> Mix:
    """A mix by name (in any case) or number (general.file_type). Raises InputError, with suggestions, if unknown."""
    key = ALIASES.get(arguments.text("format", name).upper(), name.upper())
    found = MIXES.get(key) or next((mix for mix in _MIXES if str(mix.file_type) == key), None)
    if found is None:
        near = did_you_mean(name, [*MIXES, *ALIASES])
        raise InputError(
            f"unknown format {quoted(name)}{near}", expected=None if near else f"one of {', '.join(MIXES)}", found=name
        )
    return found
