"""Options of `convert` and `quantize_file`: `ConvertOptions` and `QuantizeOptions`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from lowbit import _core, gguf
from lowbit.base import arguments
from lowbit.base.errors import FormatError, InputError
from lowbit.base.files import read_text
from lowbit.base.paths import AnyPath, checked
from lowbit.base.quoting import quoted, reason, shown
from lowbit.base.suggest import did_you_mean
from lowbit.gguf.splits import SplitLimits
from lowbit.gguf.values import kind_name
from lowbit.quantization.recipes import Mix

#: Formats of activations, which are not used in files.
ACTIVATION_FORMATS = ("Q8_1", "Q8_K")
#: The largest file of tensor types.
MAX_TENSOR_TYPE_BYTES = 16 << 20
#: The longest pattern for tensor names, which have at most 63 bytes.
MAX_PATTERN = 1000
_MOST_LAYERS = (1 << 31) - 1


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Options of `lowbit.convert`. An option that cannot be applied raises InputError; none is ignored.

    tensor_types: (regular expression, format) pairs with precedence over the mix. The first pattern that is found in a
        tensor's name counts; case is ignored.
    tensor_type_file: a file with more of them: REGEX=FORMAT, separated by blanks or line feeds.
    pure: use the mix's main format for every matrix.
    leave_output_tensor: keep output.weight as it is.
    output_tensor_type: format of output.weight, or of token_embd.weight if the model has no output.weight.
    token_embedding_type: format of token_embd.weight. Both have precedence over tensor_types.
    include_weights: use only entries of the importance matrix whose names contain one of these texts.
    exclude_weights: ignore entries of the importance matrix whose names contain one of these texts.
    prune_layers: layers to remove, counted from 0.
    override_kv: metadata to write: key -> bool, int, float or str. The value of an existing key must have its type.
    split_max_size: write several files OUT-00001-of-0000N.gguf with at most this many bytes of tensors each (an int,
        or text such as "2G"). A larger tensor gets its own file; a single file keeps its name. 0: no limit.
    split_max_tensors: write several files with at most this many tensors each. 0: no limit.
    no_tensor_first_split: write only metadata to the first of several files.
    strict: raise InputError if a format does not fit a tensor's rows, instead of using another format.
    """

    tensor_types: Iterable[tuple[str, str]] = ()
    tensor_type_file: AnyPath | None = None
    pure: bool = False
    leave_output_tensor: bool = False
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    include_weights: Sequence[str] = ()
    exclude_weights: Sequence[str] = ()
    prune_layers: Sequence[int] = ()
    override_kv: Mapping[str, Any] | None = None
    split_max_size: int | str = 0
    split_max_tensors: int = 0
    no_tensor_first_split: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        """Raises InputError for formats that do not exist and options that exclude each other."""
        for option in fields(self):
            if isinstance(option.default, bool):
                self._set(option.name, arguments.flag(option.name, getattr(self, option.name)))
        pairs = [*_pairs(self.tensor_types), *_read_tensor_types(self.tensor_type_file)]
        self._set("tensor_types", [(pattern, _checked_format(format)) for pattern, format in pairs])
        for name in ("include_weights", "exclude_weights"):
            self._set(name, tuple(arguments.text(name, part) for part in arguments.items(name, getattr(self, name))))
        layers = arguments.items("prune_layers", self.prune_layers)
        self._set("prune_layers", tuple(arguments.integer("prune_layers", layer, 0, _MOST_LAYERS) for layer in layers))
        if self.override_kv is not None:
            for key in arguments.mapping("override_kv", self.override_kv):
                arguments.text("override_kv", key)
        for name in ("output_tensor_type", "token_embedding_type"):
            if getattr(self, name) is not None:
                self._set(name, _checked_format(getattr(self, name)))
        if self.leave_output_tensor and self.output_tensor_type:
            raise InputError("leave_output_tensor and output_tensor_type exclude each other")
        if self.include_weights and self.exclude_weights:
            raise InputError("include_weights and exclude_weights exclude each other")
        _ = self.split_limits

    @property
    def split_limits(self) -> SplitLimits:
        """The limits of split_max_size and split_max_tensors; false without a limit."""
        return SplitLimits.parsed(self.split_max_size, self.split_max_tensors, self.no_tensor_first_split)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def check(self, mix: Mix, has_imatrix: bool) -> None:
        """Raises InputError for options without effect: with this mix, or without an importance matrix."""
        if mix.is_copy:
            of_formats = ("tensor_types", "pure", "leave_output_tensor", "output_tensor_type", "token_embedding_type")
            if given := [name for name in of_formats if getattr(self, name)] + ["imatrix"] * has_imatrix:
                raise InputError(f"{given[0]}: not possible with COPY, which changes no tensor")
        if not has_imatrix and (self.include_weights or self.exclude_weights):
            name = "include_weights" if self.include_weights else "exclude_weights"
            raise InputError(f"{name}:", expected="an importance matrix (imatrix)")

    def patterns(self) -> list[tuple[re.Pattern[str], str]]:
        """tensor_types with compiled patterns. Raises InputError for an invalid or too long pattern."""
        compiled = []
        for pattern, format in self.tensor_types:
            if len(pattern) > MAX_PATTERN:
                raise InputError(
                    f"tensor_types: {quoted(pattern)}:",
                    expected=f"at most {MAX_PATTERN} characters",
                    found=len(pattern),
                )
            try:
                compiled.append((re.compile(pattern, re.IGNORECASE), format))
            except (re.error, OverflowError, RecursionError) as error:
                raise InputError(
                    f"tensor_types: {quoted(pattern)}: not a regular expression ({reason(error)})"
                ) from None
        return compiled


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions(ConvertOptions):
    """Options of `lowbit.quantize_file`: those of ConvertOptions, and two more.

    allow_requantize: decode and quantize tensors that are already quantized. The losses of both formats add up.
    keep_split: write one file NAME-00001-of-0000N.gguf for each file of a split model, with tensors in its order.
    """

    allow_requantize: bool = False
    keep_split: bool = False

    def __post_init__(self) -> None:
        """Raises InputError as ConvertOptions does, and for keep_split together with limits."""
        super().__post_init__()
        if self.keep_split and self.split_limits:
            raise InputError("keep_split and split_max_size or split_max_tensors exclude each other")


Options = TypeVar("Options", bound=ConvertOptions)


def chosen_options(kind: type[Options], options: Options | None, given: Mapping[str, Any]) -> Options:
    """`options`, or the options among `given`, the arguments of a call. Raises InputError if both are set."""
    names = [option.name for option in fields(kind)]
    single = kind(**{name: given[name] for name in names})
    if options is None:
        return single
    if type(options) is not kind:
        raise arguments.wrong("options", f"a {kind.__name__}", options)
    usual = kind()
    for name in names:
        if getattr(single, name) != getattr(usual, name):
            raise InputError(f"{name} and options exclude each other; use dataclasses.replace(options, {name}=...)")
    return options


def _checked_format(format: str) -> str:
    known = [known.name for known in _core.formats()]
    if arguments.text("format", format).upper() not in known and (near := did_you_mean(format, known)):
        raise InputError(f"unknown format {quoted(format)}{near}", found=format)
    name = str(_core.Format(format).name)
    if name in ACTIVATION_FORMATS:
        raise InputError(f"format {name}: for activations only, not for tensors in a file")
    return name


def parse_tensor_type(text: str) -> tuple[str, str]:
    """The two parts of REGEX=FORMAT. The regular expression may contain `=`. Raises InputError."""
    pattern, separator, format = text.rpartition("=")
    if not separator or not pattern or not format:
        raise InputError(f"{quoted(text)}:", expected="REGEX=FORMAT")
    return pattern, format


def _pairs(value: Any) -> list[tuple[str, str]]:
    pairs = arguments.items("tensor_types", value)
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise arguments.wrong("tensor_types", "pairs of a regular expression and a format", pair)
    return pairs


def _read_tensor_types(path: AnyPath | None) -> list[tuple[str, str]]:
    if path is None:
        return []
    where = checked(path)
    try:
        return [parse_tensor_type(item) for item in read_text(where, MAX_TENSOR_TYPE_BYTES).split()]
    except InputError as error:
        raise error.turned(FormatError, path=where) from None


def parse_override(text: str) -> tuple[str, bool | int | float | str]:
    """Key and value of KEY=TYPE:VALUE for override_kv. Raises InputError."""
    key, _, typed = text.partition("=")
    kind, separator, value = typed.partition(":")
    if not key or not separator or kind not in ("int", "float", "bool", "str"):
        raise InputError(f"{quoted(text)}:", expected="KEY=TYPE:VALUE with TYPE int, float, bool or str")
    if kind == "str":
        return key, value
    try:
        return key, {"true": True, "false": False}[value] if kind == "bool" else {"int": int, "float": float}[kind](
            value
        )
    except (KeyError, ValueError):
        raise InputError(f"{quoted(text)}:", key=key, expected=f"a value of type {kind}", found=quoted(value)) from None


def override(metadata: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`metadata` with `changes` at its end. Raises InputError for keys of split files and values of another type."""
    for key, value in changes.items():
        if key in gguf.SPLIT_KEYS:
            raise InputError(f"override_kv: {shown(key)} cannot be set: it depends on how the file is split", key=key)
        if kind_name(value) not in ("a bool", "an int", "a float", "a str"):
            raise InputError(
                f"override_kv: {shown(key)}:", key=key, expected="bool, int, float or str", found=kind_name(value)
            )
        if key in metadata and kind_name(metadata[key]) != kind_name(value):
            raise InputError(
                f"override_kv: {shown(key)}:",
                key=key,
                expected=f"{kind_name(metadata[key])}, as in the file",
                found=kind_name(value),
            )
    return moved_last(metadata, changes)


def moved_last(metadata: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`metadata` with `changes` set and moved to its end, which is the order of the reference."""
    return {key: value for key, value in metadata.items() if key not in changes} | dict(changes)
