"""The known architectures: those in `families`, and those that users register."""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import os
import pkgutil
import re
import sys
from pathlib import Path

from lowbit.arch import families
from lowbit.arch.base import Architecture
from lowbit.base import arguments
from lowbit.base.errors import FormatError, InputError
from lowbit.base.files import read_bytes
from lowbit.base.paths import AnyPath, checked
from lowbit.base.quoting import quoted
from lowbit.base.suggest import did_you_mean

#: The largest size of a Python file.
MAX_SOURCE_BYTES = 16 << 20


@functools.cache
def _registered() -> dict[str, Architecture]:
    found = {}
    for module in pkgutil.iter_modules(families.__path__, f"{families.__name__}."):
        arch = importlib.import_module(module.name).ARCHITECTURE
        found[arch.name] = arch
    return found


def architectures() -> dict[str, Architecture]:
    """Every architecture by its GGUF name."""
    return dict(_registered())


def hf_classes() -> dict[str, Architecture]:
    """Every architecture by its classes in config.json."""
    return {hf_name: arch for arch in _registered().values() for hf_name in arch.hf_names}


def of_class(name: str) -> Architecture:
    """The architecture of a class in config.json. Raises InputError for an unknown class."""
    known = hf_classes()
    if arguments.text("like", name) not in known:
        expected, near = f"one of {', '.join(known)}", did_you_mean(name, reversed(known))
        raise InputError(f"like: unknown class {quoted(name)}", expected=expected, rest=near)
    return known[name]


def register(architecture: Architecture | AnyPath, *, replace: bool = False) -> Architecture:
    """Adds an architecture, for this process, and returns it.

    architecture: an instance of a class derived from lowbit.arch.Architecture, or the path of a Python file that ends
    with ARCHITECTURE = YourClass(). The file is executed. lowbit never executes code from a checkpoint.

    Raises InputError if it is not an architecture, or if another one has its names and `replace` is not set; FileError
    and FormatError for files that cannot be read or run.
    """
    arch = architecture if isinstance(architecture, Architecture) else _of_file(architecture)
    for attribute, kind in (("name", str), ("hf_names", tuple), ("rope_interleaved", bool)):
        if not isinstance(getattr(arch, attribute, None), kind):
            raise InputError(
                f"{type(arch).__name__}.{attribute}:",
                expected=f"a {kind.__name__}",
                found=type(getattr(arch, attribute, None)).__name__,
            )
    if not re.fullmatch(r"[\w-]+", arch.name, re.ASCII):
        raise InputError(
            f"{type(arch).__name__}.name is {quoted(arch.name, 40)}",
            expected="letters, digits, - and _",
            found=arch.name,
        )
    known = _registered()
    if not replace:
        taken = {known[arch.name].name} if arch.name in known else set()
        if taken := taken | (hf_classes().keys() & set(arch.hf_names)):
            raise InputError(
                f"{', '.join(sorted(taken))}: another architecture has this name; replace=True replaces it"
            )
    known.pop(arch.name, None)
    known[arch.name] = arch  # last: its classes override those of others
    return arch


def _of_file(path: object) -> Architecture:
    """The ARCHITECTURE of a Python file."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise InputError(
            "architecture:", expected="an Architecture or the path of a Python file", found=type(path).__name__
        )
    where = checked(path)
    source = read_bytes(where, MAX_SOURCE_BYTES)
    name = f"lowbit_arch_{Path(where).stem}"
    loader = importlib.machinery.SourceFileLoader(name, where)
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses need their module there
    try:
        exec(loader.source_to_code(source, where), module.__dict__)
    except Exception as error:
        raise FormatError(f"{type(error).__name__}: {error}", path=where) from error
    arch = getattr(module, "ARCHITECTURE", None)
    if not isinstance(arch, Architecture):
        raise InputError(
            f"ARCHITECTURE is {type(arch).__name__}",
            path=where,
            expected="a lowbit.arch.Architecture",
            found=type(arch).__name__,
        )
    return arch
