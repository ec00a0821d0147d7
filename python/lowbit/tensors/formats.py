"""`formats`: the formats of packed weights."""

from __future__ import annotations

from typing import TypeAlias

from lowbit._core import Format
from lowbit._core import formats as _registered
from lowbit.base import arguments
from lowbit.base.errors import InputError
from lowbit.base.quoting import quoted
from lowbit.base.suggest import did_you_mean

#: A format or its name, in any case.
AnyFormat: TypeAlias = str | Format


def formats() -> list[Format]:
    """Every format: name, ggml_type, block_size, block_bytes, bits_per_weight, needs_imatrix."""
    return _registered()


def find_format(format: AnyFormat) -> Format:
    """The format with this name. Raises InputError with similar names or a list of all for an unknown one."""
    if isinstance(format, Format):
        return format
    name = arguments.text("format", format)
    try:
        return Format(name)
    except InputError:
        if near := did_you_mean(name, (known.name for known in formats())):
            raise InputError(f"unknown format {quoted(name)}{near}", found=name) from None
        raise
