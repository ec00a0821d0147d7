"""The public names of `lowbit`: each is there, loaded when it is used, and known to type checkers."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import lowbit


def test_import_loads_nothing_else() -> None:
    code = "import sys; before = {*sys.modules}; import lowbit; print(*sorted({*sys.modules} - before))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert [name for name in loaded if name.startswith("lowbit")] == ["lowbit", "lowbit.base", "lowbit.base.version"]
    assert not {"numpy", "ml_dtypes", "tokenizers", "logging", "dataclasses"} & {*loaded}


@pytest.mark.parametrize("name", lowbit.__all__)
def test_each_public_name_is_there_and_described(name: str) -> None:
    value = getattr(lowbit, name)
    assert getattr(lowbit, name) is value
    assert name == "__version__" or value.__doc__


def test_each_public_name_is_loaded_alone() -> None:
    """In any order: a module of the same name must not take the place of a function."""
    for name in ("convert", "imatrix", "load", "quantize", "simd", "compare", "evaluate"):
        code = f"import lowbit; value = lowbit.{name}; from lowbit import *; assert value is lowbit.{name} is {name}"
        subprocess.run([sys.executable, "-c", code], check=True)


def test_lists_of_public_names_agree() -> None:
    assert dir(lowbit) == sorted(lowbit.__all__) == sorted({*lowbit.__all__})
    tree = ast.parse(Path(lowbit.__file__).read_text(encoding="utf-8"))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    known: dict[str, object] = {}
    for node in ast.walk(checked):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            known |= {alias.name: getattr(module, alias.name) for alias in node.names}
    assert known.keys() | {"__version__"} == {*lowbit.__all__}
    assert all(getattr(lowbit, name) is value for name, value in known.items())


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lowbit.nothing  # type: ignore[attr-defined]
