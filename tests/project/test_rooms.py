"""The rooms of docs/architecture.md: a package imports only from those below it, modules never in a circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import lowbit

PACKAGE = Path(lowbit.__file__).parent
#: From the lowest on. What lies in the package itself (the public names, the command's entry) is above all of them.
ROOMS = (
    "base", "chat", "tensors", "gguf", "onnx", "hf", "tokenizer", "arch", "quantization", "conversion", "export",
    "engine", "evaluate", "cli",
)  # fmt: skip
MOST_LINES = 500


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports(source: str) -> set[str]:
    """Modules of the package that a source imports: at the top, in functions, and for type checkers."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES or name == "lowbit._core" else str(node.module) for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "lowbit"} - {"lowbit._core"}


def room(module: str) -> str | None:
    return [*module.split("."), ""][1] or None


IMPORTS = {module: imports(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}


def upward(module: str, imported: set[str]) -> list[str]:
    """Imports that do not lead down: to a room above, or to the package itself."""
    own = room(module)
    if own not in ROOMS:
        return []
    rooms = {name: room(name) for name in imported}
    allowed = ROOMS[: ROOMS.index(own) + 1] + ((None,) if own == "cli" else ())
    return sorted(f"{module} -> {name}" for name, other in rooms.items() if other not in allowed)


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Modules from which a way of imports leads back to themselves."""
    reached = {module: set(imported) & graph.keys() for module, imported in graph.items()}
    changed = True
    while changed:
        before = sum(map(len, reached.values()))
        reached = {module: found.union(*(reached[name] for name in found)) for module, found in reached.items()}
        changed = sum(map(len, reached.values())) > before
    return sorted(module for module, found in reached.items() if module in found)


def test_every_package_is_a_room() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ROOMS)


def test_imports_lead_down() -> None:
    assert [arrow for module, imported in IMPORTS.items() for arrow in upward(module, imported)] == []


def test_no_circles() -> None:
    assert circles(IMPORTS) == []


def test_what_these_tests_see() -> None:
    source = "from lowbit import gguf\ndef f():\n    import lowbit.cli.app\n    from lowbit.base import threads, paths"
    found = imports(source)
    assert found == {"lowbit.gguf", "lowbit.cli.app", "lowbit.base.threads", "lowbit.base.paths"}
    assert upward("lowbit.base.files", found) == [
        "lowbit.base.files -> lowbit.cli.app",
        "lowbit.base.files -> lowbit.gguf",
    ]
    assert upward("lowbit.tensors.source", {"lowbit"}) == ["lowbit.tensors.source -> lowbit"]
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["b", "c"]


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("folder", ["python", "src", "tests", "benchmarks"])
def test_no_file_is_too_long(folder: str) -> None:
    sources = [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".pyi", ".h", ".cc")]
    lines = {path.name: path.read_text(encoding="utf-8").count("\n") for path in sources}
    assert lines
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}
