"""The public names of `lowbit`: each is there, loaded when it is used, and known to type checkers."""

import ast
import dataclasses
import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import lowbit
from lowbit.cli.app import root_command
from lowbit.evaluate.bench import bench
from lowbit.evaluate.ladder import RUNGS, ladder


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
    for name in ("convert", "imatrix", "load", "quantize", "compare", "evaluate", "bench", "inspect", "ladder"):
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


@pytest.mark.parametrize(
    ("function", "options"), [(lowbit.convert, lowbit.ConvertOptions), (lowbit.quantize_file, lowbit.QuantizeOptions)]
)
def test_options_are_spelled_out(function: Callable[..., object], options: type) -> None:
    """Completion and stubs know each option, with the type and default that the class of options has."""
    parameters = inspect.signature(function).parameters
    fields = {field.name: (field.type, field.default) for field in dataclasses.fields(options)}
    found = {name: (p.annotation, p.default) for name, p in parameters.items() if name in fields}
    assert found == fields
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in fields)
    assert parameters["options"].annotation == f"{options.__name__} | None"


def test_options_in_one_value(tmp_path: Path) -> None:
    bard = Path(lowbit.__file__).parent / "data" / "bard"
    options = lowbit.ConvertOptions(pure=True, output_tensor_type="Q8_0")
    report = lowbit.convert(bard, tmp_path / "a.gguf", "Q4_0", options=options, dry_run=True)
    single = lowbit.convert(bard, tmp_path / "a.gguf", "Q4_0", pure=True, output_tensor_type="Q8_0", dry_run=True)
    assert report == single
    with pytest.raises(lowbit.InputError, match="strict is given beside options"):
        lowbit.convert(bard, tmp_path / "a.gguf", "Q4_0", options=options, strict=True)
    for wrong in ({"pure": True}, lowbit.QuantizeOptions()):
        with pytest.raises(lowbit.InputError, match="options: expected a ConvertOptions"):
            lowbit.convert(bard, tmp_path / "a.gguf", "Q4_0", options=wrong)  # type: ignore[arg-type]


#: Each command, its function, and parameters that have another name there.
COMMANDS: dict[str, tuple[Callable[..., object], dict[str, str]]] = {
    "convert": (lowbit.convert, {"tensor_type": "tensor_types"}),
    "quantize": (lowbit.quantize_file, {"tensor_type": "tensor_types"}),
    "split": (lowbit.split_file, {}),
    "merge": (lowbit.merge_files, {}),
    "verify": (lowbit.verify, {}),
    "diff": (lowbit.gguf.diff, {}),
    "perplexity": (lowbit.evaluate.perplexity, {"windows": "max_windows"}),
    "imatrix": (lowbit.imatrix.collect, {}),
    "bench": (bench, {"repeat": "runs"}),
    "ladder": (ladder, {"windows": "max_windows"}),
    "run": (lowbit.Model.stream, {}),
    "chat": (lowbit.Model.stream_chat, {}),
}
#: Defaults that mean the same. The rungs of the command are those of the function.
SAME = ((None, ()), (-1, None), (None, 1.0), ("0", 0), (None, RUNGS))


def test_all_methods_that_make_text_have_the_same_options() -> None:
    model = lowbit.Model
    tokens, *others = (
        inspect.signature(method).parameters
        for method in (model.tokens, model.stream, model.generate, model.stream_chat, model.chat)
    )
    for other in others:
        assert {*other} - {"messages", "stop"} == {*tokens} - ({"prompt"} - {*other})
    defaults = [[parameter.default for parameter in other.values()] for other in others]
    assert defaults[0] == defaults[1]
    assert defaults[2] == defaults[3]


@pytest.mark.parametrize("name", COMMANDS)
def test_command_and_function_have_the_same_defaults(name: str) -> None:
    function, names = COMMANDS[name]
    command = inspect.signature(root_command().commands[name].callback.__wrapped__).parameters  # type: ignore[attr-defined]
    parameters = inspect.signature(function).parameters
    compared = []
    for key, option in command.items():
        parameter = parameters.get(names.get(key, key))
        if parameter is None or option.empty in (option.default, parameter.default) or key == "text":
            continue
        compared.append(key)
        assert option.default == parameter.default or (option.default, parameter.default) in SAME, key
    assert compared
