"""What `lowbit.export_onnx` can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbit.base import arguments
from lowbit.base.dtypes import FLOATS
from lowbit.base.errors import InputError
from lowbit.base.quoting import quoted
from lowbit.base.suggest import did_you_mean
from lowbit.base.threads import num_threads
from lowbit.export.building import OPSETS
from lowbit.export.targets import TARGETS, Target, find_target
from lowbit.onnx.blocks import BlockFormat
from lowbit.quantization.recipes import ALIASES, MIXES, find_mix

#: The tokens of a run and before it, for targets that need to know.
STATIC_CONTEXT = 1024
LAYOUTS = ("genai", "standard")
#: Formats that are encoded in blocks by these options, and their bits.
INTEGERS = {"INT4": 4, "INT8": 8}
#: The opset of both layouts: the first with RMSNormalization, RotaryEmbedding and Attention.
USUAL_OPSET = 23


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `lowbit.export_onnx`, checked. Each is obeyed, or refused with an InputError that says why."""

    format: str | None = None
    layout: str = "genai"
    opset: int = USUAL_OPSET
    activations: str = "float32"
    block_size: int = 32
    symmetric: bool = True
    method: str = "search"
    accuracy_level: int = 4
    intermediate: str | None = None
    allow_requantize: bool = False
    exact: bool = False
    target: Target | None = None
    tokens: int | None = None
    past: int | None = None
    threads: int | None = None

    @classmethod
    def of(cls, provider: str | None, **given: Any) -> ExportOptions:
        """The options for a provider; None: for any. given: options; those that are None get the provider's defaults.

        Raises InputError for an unknown provider, and for options that it does not take.
        """
        given = {name: value for name, value in given.items() if value is not None}
        if provider is None:
            return cls(**given)
        target = find_target(provider)
        defaults = {name: choices[0] for name, choices in target.choices.items()} | {"format": target.format}
        return cls(**defaults | given, target=target)

    def __post_init__(self) -> None:
        """Raises InputError for values that do not exist, and for options without effect."""
        if self.format is not None:
            self._set("format", _checked_format(self.format))
        for name, choices in (
            ("layout", LAYOUTS),
            ("opset", OPSETS),
            ("activations", ("float32", "float16")),
            ("block_size", (16, 32, 64, 128, 256)),
            ("method", ("search", "round", "hqq")),
            ("accuracy_level", (0, 4)),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (str, int, np.integer)) or value not in choices:
                raise arguments.wrong(name, f"one of {', '.join(map(str, choices))}", value)
        for name in ("symmetric", "allow_requantize", "exact"):
            self._set(name, arguments.flag(name, getattr(self, name)))
        self._set("threads", num_threads(self.threads))
        self._check_target()
        if self.method == "hqq" and self.symmetric:
            raise InputError("method hqq fits zero points: it needs symmetric=False (--no-symmetric)")
        if self.layout == "genai" and self.opset < USUAL_OPSET:
            raise InputError("opset: layout genai:", expected=f"{USUAL_OPSET} or more", found=self.opset)
        if self.layout == "standard" and self.accuracy_level != 4:
            raise InputError(
                "accuracy_level is an attribute of MatMulNBits, which layout standard does not have: set the session "
                "entry session.qdq_matmulnbits_accuracy_level instead"
            )

    def _check_target(self) -> None:
        target = self.target
        if target is not None:
            for name, values in target.choices.items():
                if (found := getattr(self, name)) not in values:
                    expected = f"{'' if len(values) == 1 else 'one of '}{', '.join(map(str, values))}"
                    raise InputError(f"{name}: target {target.name}:", expected=expected, found=found)
        for name, least in (("tokens", 1), ("past", 0)):
            value = getattr(self, name)
            if value is not None:
                self._set(name, arguments.integer(name, value, least))
                if target is None or not target.is_static:
                    static = ", ".join(each.name for each in TARGETS.values() if each.is_static)
                    raise InputError(f"{name} fixes shapes, which only this target needs: {static}")

    def static_shapes(self, context: int) -> tuple[int, int] | None:
        """The numbers of new and of past tokens, if the target needs them. context: the most tokens of the network.

        Raises InputError for more than that.
        """
        if self.target is None or not self.target.is_static:
            return None
        tokens = 1 if self.tokens is None else self.tokens
        past = max(0, min(context, STATIC_CONTEXT) - tokens) if self.past is None else self.past
        if tokens + past > context:
            raise InputError(
                "tokens and past:", expected=f"at most {context}, the network's context", found=tokens + past
            )
        return tokens, past

    def check_format(self, format: str, has_importances: bool) -> None:
        """Raises InputError for options that a format does not obey."""
        usual = ExportOptions()
        if format not in INTEGERS:
            for name in ("block_size", "symmetric", "method"):
                if getattr(self, name) != getattr(usual, name):
                    raise InputError(f"{name} is an option of the formats int4 and int8, not of {format.lower()}")
        if self.intermediate is not None and (format in INTEGERS or format in FLOATS):
            raise InputError(f"intermediate is an option of mixes of GGUF, not of {format.lower()}")
        if has_importances and (format in FLOATS or format == "COPY" or self.method != "search"):
            what = f"format {format.lower()}" if self.method == "search" else f"method {self.method}"
            raise InputError(f"imatrix: {what} does not use importances")

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of activations and caches."""
        return np.dtype(self.activations)

    def block_format(self, bits: int) -> BlockFormat:
        """The blocks of int4 and int8."""
        return BlockFormat(bits, self.block_size, self.symmetric, self.method, "rows")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


def _checked_format(format: str) -> str:
    """The name of a format or mix. Raises InputError for an unknown one."""
    name = arguments.text("format", format).upper()
    if name in INTEGERS:
        return name
    known = [each for each in (*INTEGERS, *MIXES, *ALIASES) if each != "COPY"]
    if name not in known:
        near = did_you_mean(format, known)
        expected = None if near else f"one of {', '.join(known)}"
        raise InputError(f"unknown format {quoted(format)}{near}", expected=expected, found=format)
    return find_mix(name).name
