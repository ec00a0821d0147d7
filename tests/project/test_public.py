"""The public names of `lowbit`: each is there, loaded when it is used, and known to type checkers."""

import ast
import dataclasses
import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lowbit
from lowbit.cli.app import root_command
from lowbit.evaluate.ladder import RUNGS


def test_import_loads_nothing_else() -> None:
    code = "import sys; before = {*sys.modules}; import lowbit; print(*sorted({*sys.modules} - before))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    base = ["lowbit.base", "lowbit.base.lazy", "lowbit.base.version"]
    assert [name for name in loaded if name.startswith("lowbit")] == ["lowbit", *base]
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
    with pytest.raises(lowbit.InputError, match="strict and options exclude each other"):
        lowbit.convert(bard, tmp_path / "a.gguf", "Q4_0", options=options, strict=True)
    for wrong in ({"pure": True}, lowbit.QuantizeOptions()):
        with pytest.raises(lowbit.InputError, match="options: expected a ConvertOptions"):
            lowbit.convert(bard, tmp_path / "a.gguf", "Q4_0", options=wrong)  # type: ignore[arg-type]


#: Each command, and the functions whose parameters its options set: those of the first that has them.
COMMANDS: dict[str, tuple[Callable[..., object], ...]] = {
    "demo": (lowbit.load,),
    "convert": (lowbit.convert, lowbit.convert_onnx),
    "quantize": (lowbit.quantize_file,),
    "run": (lowbit.Model.stream, lowbit.load),
    "chat": (lowbit.Model.stream_chat, lowbit.load),
    "tokenize": (lowbit.Tokenizer.encode,),
    "detokenize": (lowbit.Tokenizer.decode,),
    "verify": (lowbit.verify,),
    "perplexity": (lowbit.evaluate.perplexity, lowbit.evaluate.kl_divergence, lowbit.load),
    "ladder": (lowbit.ladder,),
    "bench": (lowbit.bench, lowbit.profile, lowbit.machine_limits),
    "imatrix": (lowbit.imatrix.collect, lowbit.load),
    "inspect": (lowbit.inspect,),
    "diff": (lowbit.gguf.diff,),
    "metadata": (lowbit.gguf.edit,),
    "formats": (lowbit.formats,),
    "split": (lowbit.split_file,),
    "merge": (lowbit.merge_files,),
    "export hf": (lowbit.export_hf,),
    "export onnx": (lowbit.export_onnx,),
    "onnx quantize": (lowbit.onnx.quantize,),
    "onnx optimize": (lowbit.onnx.optimize,),
    "onnx sensitivity": (lowbit.onnx.sensitivity, lowbit.onnx.OnnxOptions),
}
#: Options with another name than the parameter's, and why.
OTHER_NAMES = {
    "--tensor-type": ("tensor_types", "one pair an option, as in llama-quantize; lowbit.provenance has the plural"),
    "--target": ("provider", "in functions, target is what is written"),
    "--temp": ("temperature", "beside --temperature, as in llama.cpp"),
}
#: Options without a parameter, and why.
WITHOUT_PARAMETER = {
    "--node-bits": "the entries of bits, if it is a mapping",
    "--json": "how the result is printed",
    "demo --keep": "the folder of its files",
    "convert --revision": "a part of the path: org/name@REVISION",
    "bench --limits": "lowbit.machine_limits",
    "bench --plot": "draws the result",
    "bench --profile": "lowbit.profile",
    "chat --system": "the first of the messages",
    "tokenize --file": "where the text is",
    "tokenize --ids": "how the result is printed",
    "ladder --plot": "draws the result",
    "imatrix --in-file": "lowbit.imatrix.read and merge",
    "imatrix --out": "the result's save",
    "inspect --metadata": "what is printed",
    "inspect --tensors": "what is printed",
    "metadata --from-file": "where VALUE is",
    "metadata --token": "what VALUE is",
    "metadata --type": "what VALUE is",
}
#: Defaults that mean the same. Numbers and names that take long to import are the function's.
SAME = ((None, ()), (-1, None), (None, 1.0), ("0", 0), (None, RUNGS), (None, lowbit.gguf.RESERVED_BYTES))


def _commands() -> dict[str, Any]:
    """Each command of the application, those of groups by both names."""
    found = {}
    for name, command in root_command().commands.items():
        nested = getattr(command, "commands", {})
        found |= {f"{name} {other}": inner for other, inner in nested.items()} if nested else {name: command}
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_options_have_the_names_of_parameters(name: str) -> None:
    command, functions = _commands()[name], COMMANDS[name]
    known = {parameter for function in functions for parameter in inspect.signature(function).parameters}
    wrong = []
    for option in command.params:
        for flag in (flag for flag in option.opts if flag.startswith("--")):
            parameter = OTHER_NAMES.get(flag, (flag[2:].replace("-", "_"),))[0]
            if not {flag, f"{name} {flag}"} & WITHOUT_PARAMETER.keys():
                wrong += [] if parameter in known else [f"{flag}: no parameter {parameter}"]
            wrong += [f"{flag}: the command's own name is {option.name}"] * (
                flag == option.opts[0] != _flag(option.name)
            )
        wrong += [flag for flag in option.secondary_opts if flag != f"--no-{option.opts[0][2:]}"]
    assert wrong == []


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def test_every_command_and_exception_is_known() -> None:
    commands = _commands()
    assert commands.keys() == COMMANDS.keys()
    flags = {flag for command in commands.values() for option in command.params for flag in option.opts}
    assert OTHER_NAMES.keys() | {name.split()[-1] for name in WITHOUT_PARAMETER} <= flags


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
    command = inspect.signature(_commands()[name].callback.__wrapped__).parameters
    others = {_name(flag): parameter for flag, (parameter, _) in OTHER_NAMES.items()}
    for key, option in command.items():
        name_there = others.get(key, key)
        signatures = map(inspect.signature, COMMANDS[name])
        found = [s.parameters[name_there].default for s in signatures if name_there in s.parameters]
        if found and option.empty not in (option.default, found[0]) and key != "text":
            assert option.default == found[0] or (option.default, found[0]) in SAME, key


def _name(flag: str) -> str:
    return flag[2:].replace("-", "_")


#: Functions that take three arguments by position: files with a format or tensors, the arrays of a step.
THREE = {
    "convert", "quantize_file", "gguf.write", "gguf.edit", "evaluate.kl_divergence", "gguf.Writer", "Model.forward",
}  # fmt: skip


def _signatures() -> Iterator[tuple[str, inspect.Signature]]:
    """Every public function, method and constructor, except those of results (dataclasses, tuples) and exceptions."""
    places = {"": lowbit, **{f"{name}.": getattr(lowbit, name) for name in lowbit._MODULES}}
    for prefix, place in places.items():
        names = getattr(place, "__all__", [name for name in vars(place) if not name.startswith("_")])
        for name in names:
            value = getattr(place, name)
            if inspect.isfunction(value):
                yield f"{prefix}{name}", inspect.signature(value)
            if (
                not inspect.isclass(value)
                or issubclass(value, BaseException)
                or not value.__module__.startswith("lowbit.")
            ):
                continue
            if not dataclasses.is_dataclass(value) and not issubclass(value, tuple):
                yield f"{prefix}{name}", inspect.signature(value)
            for method, function in vars(value).items():
                if inspect.isfunction(function) and not method.startswith("_"):
                    yield f"{prefix}{name}.{method}", inspect.signature(function)


def test_few_parameters_are_positional() -> None:
    found = dict(_signatures())
    assert {*THREE} <= found.keys()
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    wrong = []
    for name, signature in found.items():
        parameters = [p.name for p in signature.parameters.values() if p.kind in by_position and p.name != "self"]
        if len(parameters) > 2 + (name in THREE):
            wrong.append(f"{name}: {', '.join(parameters)}")
    assert wrong == []
