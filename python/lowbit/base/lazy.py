"""Public names that are imported when they are first used."""

from __future__ import annotations

import importlib
import sys

TYPE_CHECKING = False  # importing `typing` takes time, as in lowbit/__init__.py
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


def names_of(
    package: str, names: Mapping[str, Iterable[str]], modules: Mapping[str, str] | None = None
) -> Callable[[str], object]:
    """The `__getattr__` of a package. names: module in the package -> its public names. modules: public name -> module
    in the package."""
    homes = {name: module for module, public in names.items() for name in public}
    modules = modules or {}

    def imported(name: str) -> object:
        if name in modules:
            value: object = importlib.import_module(f"{package}.{modules[name]}")
        elif name in homes:
            value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    return imported
