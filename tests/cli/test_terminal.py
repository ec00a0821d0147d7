"""What a terminal of 80 columns shows: tables, and one bar at a time."""

import io
import re
import sys

import pytest
from rich.cells import cell_len

import lowbit.base.progress
from lowbit.base.progress import steps
from lowbit.cli import console
from lowbit.cli.tables import print_table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.getvalue()).splitlines()]


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
    print_table(["key", "what", "value", "more", ">number"], [[name, "value " * 9, "x " * 60, "y " * 60, "1"]])
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
        with steps("inner", "chunks", True) as advance:
            advance(1, 2)
            inner = lowbit.base.progress._shown[-1]
            assert (outer.live.is_started, inner.live.is_started) == (False, True)
            advance(2, 2)
            assert (outer.live.is_started, inner.live.is_started) == (True, False)
    assert not outer.live.is_started
    assert lowbit.base.progress._shown == []


def test_no_bar_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with steps("outer", "files", True) as begin, steps("inner", "chunks", True) as advance:
        begin(0, None)
        advance(1, 2)
    assert capsys.readouterr() == ("", "")


NAMES = ["blk.10.attn_output.weight", "token_embd.weight", "名前" * 12, "general.quantization_version" * 2]
ROWS = [[name, "format and weights", "x " * 60, "12345.678 ± 0.001", "1.234e-05"] for name in NAMES]


def printed(capsys: pytest.CaptureFixture[str], *arguments: object, **options: object) -> list[str]:
    print_table(*arguments, **options)  # type: ignore[arg-type]
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("columns", [30, 60, 80, 100, 200, None])
def test_tables_fit_and_nothing_is_cut(
    columns: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """None: a pipe without COLUMNS."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", str(columns))
    for rows in (ROWS[:2], ROWS[:3], ROWS):
        lines = printed(capsys, ["tensor", "differs in", "value", ">figure", ">largest"], rows, "A title " * 20)
        assert max(map(cell_len, lines)) <= (columns or 100)
        text, words = "".join("".join(lines).split()), {word for line in lines for word in line.split()}
        assert text.count("x") == 60 * len(rows)
        assert {"12345.678", "0.001", "1.234e-05"} <= words
        whole = [name for name, *_ in rows if cell_len(name) <= (columns or 100) - 12]
        assert set(whole) <= words


def test_a_wide_table_of_short_names_stays_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = printed(capsys, ["tensor", "differs in", "A", "B", ">blocks", ">relative RMSE", ">largest"], [
        [NAMES[0], "format", "128 x 256 Q8_0", "Q4_K", "123 of 12345", "0.01234", "1.234e-05"] for _ in range(3)
    ])  # fmt: skip
    assert sum(NAMES[0] in line and "1.234e-05" in line for line in lines) == 3


def test_a_table_without_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, ["a", ">b"], [])[1].split() == ["a", "b"]


def test_names_of_columns_are_folded_before_cells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = ["format", ">file", ">bits per weight", ">perplexity", ">KL divergence", ">same top token", ">tokens/s"]
    row = ["Q4_K_M", "2.41 MB", "5.07", "51.12 ± 16", "0.00471 ± 0.0006", "96.8%", "494"]
    monkeypatch.setenv("COLUMNS", "80")
    assert any("2.41 MB" in line and "0.00471 ± 0.0006" in line for line in printed(capsys, columns, [row]))


def test_a_number_among_text_stays_whole(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [["qwen3.attention.layer_norm_rms_epsilon", "9.999999974752427e-07"], ["long", "text " * 40]]
    for columns in (30, 60, 66, 80):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert any("9.999999974752427e-07" in line for line in printed(capsys, ["key", "value"], rows))
