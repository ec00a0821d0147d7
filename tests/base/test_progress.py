"""`progress`: the same in every function that takes long. Steps come in the caller's thread, and can end the work."""

from __future__ import annotations

import atexit
import functools
import inspect
import logging
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import lowbit
import lowbit.base.progress
from lowbit.base.progress import Progress, steps
from lowbit.evaluate import bench, ladder

BARD = Path(lowbit.__file__).parent / "data" / "bard"
TEXT = "Now is the winter of our discontent\nMade glorious summer by this sun of York;\n" * 8


@functools.cache
def exported() -> Path:
    """A folder with an ONNX model."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    lowbit.export_onnx(BARD, folder, format="int8")
    return folder


#: Each call, and the titles of its parts.
CALLS: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "convert": (
        lambda d, p: lowbit.convert(BARD, d / "new.gguf", "Q8_0", verify=True, progress=p),
        ["read tokenizer", "write Q8_0", "verify"],
    ),
    "quantize_file": (
        lambda d, p: lowbit.quantize_file(d / "a.gguf", d / "new.gguf", "Q4_0", progress=p),
        ["write Q4_0"],
    ),
    "split_file": (lambda d, p: lowbit.split_file(d / "a.gguf", d / "new", split_max_tensors=9, progress=p), ["split"]),
    "merge_files": (
        lambda d, p: lowbit.merge_files(min(d.glob("s-*")), d / "new.gguf", progress=p),
        ["merge"],
    ),
    "export_hf": (lambda d, p: lowbit.export_hf(d / "a.gguf", d / "new", progress=p), ["export to BF16"]),
    "export_onnx": (lambda d, p: lowbit.export_onnx(d / "a.gguf", d / "new", progress=p), ["write"]),
    "convert_onnx": (
        lambda d, p: lowbit.convert_onnx(exported(), d / "new.gguf", progress=p),
        ["read weights", "write GGUF"],
    ),
    "verify": (lambda d, p: lowbit.verify(d / "a.gguf", BARD, progress=p), ["verify", "read tokenizer"]),
    "edit": (lambda d, p: lowbit.gguf.edit(d / "a.gguf", {"new": "x" * 99999}, progress=p), ["copy"]),
    "diff": (lambda d, p: lowbit.gguf.diff(d / "a.gguf", d / "b.gguf", progress=p), ["compare"]),
    "perplexity": (
        lambda d, p: lowbit.evaluate.perplexity(lowbit.load(BARD), TEXT, context=64, progress=p),
        ["perplexity"],
    ),
    "collect": (lambda d, p: lowbit.imatrix.collect(lowbit.load(BARD), TEXT, context=64, progress=p), ["imatrix"]),
    "bench": (
        lambda d, p: bench.bench(BARD, prompt_tokens=4, new_tokens=2, repetitions=1, progress=p),
        ["read tokenizer", "load", "bench"],
    ),
    "profile": (lambda d, p: lowbit.profile(lowbit.load(BARD), repetitions=2, progress=p), ["profile"]),
    "ladder": (lambda d, p: ladder.ladder(BARD, TEXT, rungs=["Q8_0"], context=64, chunks=1, progress=p), ["ladder"]),
    "compare": (
        lambda d, p: lowbit.evaluate.compare({"": lowbit.load(BARD)}, TEXT, context=64, progress=p),
        ["perplexity"],
    ),
    "kl_divergence": (
        lambda d, p: lowbit.evaluate.kl_divergence(
            lowbit.load(BARD), lowbit.load(d / "b.gguf"), TEXT, context=64, progress=p
        ),
        ["perplexity"],
    ),
    "load": (lambda d, p: lowbit.load(BARD, progress=p), ["read tokenizer", "load"]),
    "load GGUF": (lambda d, p: lowbit.load(d / "a.gguf", progress=p), ["load"]),
    "load_tokenizer": (lambda d, p: lowbit.load_tokenizer(BARD, progress=p), ["load tokenizer"]),
    "load_tokenizer GGUF": (lambda d, p: lowbit.load_tokenizer(d / "a.gguf", progress=p), ["load tokenizer"]),
    "open_checkpoint": (lambda d, p: lowbit.open_checkpoint(BARD, progress=p), ["read tokenizer"]),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    lowbit.convert(BARD, folder / "a.gguf", "BF16", verify=False, provenance=False)
    lowbit.convert(BARD, folder / "b.gguf", "Q8_0", verify=False, provenance=False)
    lowbit.split_file(folder / "a.gguf", folder / "s", split_max_tensors=15)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("name", CALLS)
def test_steps_of_each_function(name: str, folder: Path) -> None:
    call, titles = CALLS[name]
    found: list[Progress] = []
    threads: set[int] = set()

    def progress(step: Progress) -> None:
        found.append(step)
        threads.add(threading.get_ident())

    call(folder, progress)
    assert threads == {threading.get_ident()}
    assert list(dict.fromkeys(step.title for step in found)) == titles
    for title in titles:
        part = [step for step in found if step.title == title]
        assert part[-1].done == part[-1].total
        assert [step.done for step in part] == sorted(step.done for step in part)
        assert len({step.unit for step in part}) == 1
        if title == "read tokenizer":
            assert [(step.done, step.total) for step in part] == [(1, 2), (2, 2)]


class StopError(Exception):
    pass


@pytest.mark.parametrize("stop", [StopError, KeyboardInterrupt])
@pytest.mark.parametrize("name", CALLS)
def test_an_exception_ends_the_work(name: str, stop: type[BaseException], folder: Path) -> None:
    call, titles = CALLS[name]
    last = [title for title in titles if title != "read tokenizer" or titles == [title]][-1]
    before = {path: path.read_bytes() for path in folder.iterdir()}

    def progress(step: Progress) -> None:
        if step.title == last and step.total:
            raise stop

    with pytest.raises(stop):
        call(folder, progress)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("progress", [None, False, True])
@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_printed(
    name: str, progress: bool | None, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lowbit.base.progress, "PATIENCE_SECONDS", -1.0)
    CALLS[name][0](folder, progress)
    assert capfd.readouterr() == ("", "")


def _public_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    for place in (lowbit, lowbit.gguf, lowbit.imatrix, lowbit.evaluate):
        for name in place.__all__:
            value = getattr(place, name)
            if inspect.isfunction(value):
                yield f"{place.__name__}.{name}", value


def test_functions_agree_on_the_parameter() -> None:
    found = {}
    for name, function in _public_functions():
        parameter = inspect.signature(function).parameters.get("progress")
        if parameter is not None:
            assert (parameter.annotation, parameter.default, parameter.kind) == (
                "ProgressLike",
                None,
                inspect.Parameter.KEYWORD_ONLY,
            ), name
            found[name.rpartition(".")[2]] = function
    assert {name.split()[0] for name in CALLS} == {*found}


@pytest.mark.parametrize("progress", ["yes", 2, []])
def test_other_kinds_are_refused(progress: object, folder: Path) -> None:
    with pytest.raises(lowbit.InputError, match=r"^progress: expected a bool or a function, got "):
        lowbit.quantize_file(folder / "a.gguf", folder / "new.gguf", "Q4_0", progress=progress)  # type: ignore[arg-type]
    assert not (folder / "new.gguf").exists()


def test_steps_in_between_are_left_out() -> None:
    found: list[Progress] = []
    with steps("work", "steps", found.append) as advance:
        for done in range(1000):
            advance(done, 1000)
        advance(1000, 1001)
    assert len(found) < 500
    assert (found[0], found[-1]) == (Progress("work", 0, 1000, "steps"), Progress("work", 1000, 1001, "steps"))


class _Display:
    """What IPython shows: the last form of each display."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, str]] = []

    def display(self, value: Any, display_id: bool) -> _Display:
        assert display_id
        self.shown.append(("", ""))
        self.update(value)
        return self

    def update(self, value: Any) -> None:
        self.shown[-1] = (repr(value), value._repr_html_())


def test_a_notebook_has_a_bar_that_is_updated_in_place(monkeypatch: pytest.MonkeyPatch, every_step: None) -> None:
    display, ipython, module = _Display(), ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    module.display = display.display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    with steps("write <b>", "B", True) as advance:
        advance(100, 10**7)
    assert display.shown == []  # it was over at once
    monkeypatch.setattr(lowbit.base.progress, "PATIENCE_SECONDS", -1.0)
    with steps("write <b>", "B", True) as advance:
        for done in (0, 2_500_000, 10**7):
            advance(done, 10**7)
    assert display.shown == [
        (
            "write <b>: 10.0 of 10.0 MB, 0 s",
            '<progress value="1.0000"></progress> write &lt;b&gt;: 10.0 of 10.0 MB, 0 s',
        )
    ]


def test_notes_are_logged(folder: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    report = lowbit.convert(BARD, folder / "new.gguf", "Q8_0", intermediate="F16", verify=False, provenance=False)
    assert report.notes
    assert [(record.name, record.levelno, record.getMessage()) for record in caplog.records] == [
        ("lowbit", logging.WARNING, note) for note in report.notes
    ]
    assert capfd.readouterr() == ("", "")
