"""`formats`: the formats of packed weights."""

from __future__ import annotations

from typing import TypeAlias

from lowbit._core import Format
from lowbit._core import formats as _registered
from lowbit.base import arguments

#: A format or its name, in any case.
AnyFormat: TypeAlias = str | Format


def formats() -> list[Format]:
    """Every format: name, ggml_type, block_size, block_bytes, bits_per_weight, needs_imatrix."""
    return _registered()


def find_format(format: AnyFormat) -> Format:
    """The format with this name. Raises InputError with a list of all names for an unknown one."""
    return format if isinstance(format, Format) else Format(arguments.text("format", format))
