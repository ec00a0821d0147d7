"""Notebooks are executed in CI; this checks what they need, what they name, and the outputs that are stored in them."""

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def requirements(extra: str) -> set[str]:
    """Modules of the packages that the extra installs, with those of the extras that it names."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (listed,) = re.findall(rf"^{extra} = (\[.*?\])$", text, re.MULTILINE | re.DOTALL)
    found = set()
    for requirement in ast.literal_eval(listed):
        name, inner = re.fullmatch(r"([\w-]+)(?:\[([\w,]+)\])?.*", requirement).groups()
        found |= {name.replace("-", "_")} if inner is None else set().union(*map(requirements, inner.split(",")))
    return found


def cells(notebook: Path, kind: str) -> list[dict[str, Any]]:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_the_extra_installs_what_is_imported(notebook: Path) -> None:
    known = {"lowbit", *requirements("dependencies"), *requirements("notebook"), *sys.stdlib_module_names}
    for cell in cells(notebook, "code"):
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= known


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_what_it_names_exists_and_it_is_in_the_readme(notebook: Path) -> None:
    text = "\n".join("".join(cell["source"]) for cell in cells(notebook, "markdown"))
    for name in re.findall(r"`((?:python|src|docs|tests|benchmarks|notebooks)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name
    assert f"notebooks/{notebook.name}" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_stored_outputs_are_those_of_one_run_without_errors(notebook: Path) -> None:
    code = cells(notebook, "code")
    counts = [cell["execution_count"] for cell in code]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert counts == ([*range(1, len(code) + 1)] if outputs else [None] * len(code))
    assert all(output["output_type"] != "error" for output in outputs)
    assert all(output.get("name") != "stderr" for output in outputs)
