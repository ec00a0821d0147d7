"""What a terminal of 80 columns shows: tables, and one bar at a time."""

import io
import re
import sys
from collections.abc import Iterator

import pytest

import lowbit.base.progress
from lowbit.base.progress import steps
from lowbit.cli import console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.getvalue()).splitlines()]


@pytest.fixture(autouse=True)
def _new_console() -> Iterator[None]:
    console.console.cache_clear()
    yield
    console.console.cache_clear()


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Called in the test itself: between a fixture and its test pytest sets the streams anew."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(lowbit.base.progress, "PATIENCE_SECONDS", -1.0)
    monkeypatch.setattr(lowbit.base.progress, "INTERVAL_SECONDS", 0.0)
    return stream


def test_names_stay_whole_in_a_narrow_table(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    name = "qwen3.attention.layer_norm_rms_epsilon"
    console.print_table(["key", "what", "value", "more", ">number"], [[name, "value " * 9, "x " * 60, "y " * 60, "1"]])
    assert any(name in line for line in terminal.lines)
    assert all(len(line) <= 80 for line in terminal.lines)


def test_blanks_are_counted() -> None:
    assert console.value_text(" " * 17931) == "17931 blanks"


def test_a_full_bar_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with steps("Q4_K_M", "B", True) as advance:
        advance(50, 100)
        assert terminal.getvalue()
        advance(100, 100)
        assert lowbit.base.progress._shown == []
        advance(30, 100)
        assert len(lowbit.base.progress._shown) == 1
    assert lowbit.base.progress._shown == []


def test_one_bar_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    on_terminal(monkeypatch)
    with steps("outer", "files", True) as begin:
        begin(0, None)
        (outer,) = lowbit.base.progress._shown
        with steps("inner", "windows", True) as advance:
            advance(1, 2)
            inner = lowbit.base.progress._shown[-1]
            assert (outer.live.is_started, inner.live.is_started) == (False, True)
            advance(2, 2)
            assert (outer.live.is_started, inner.live.is_started) == (True, False)
    assert not outer.live.is_started
    assert lowbit.base.progress._shown == []


def test_no_bar_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with steps("outer", "files", True) as begin, steps("inner", "windows", True) as advance:
        begin(0, None)
        advance(1, 2)
    assert capsys.readouterr() == ("", "")
