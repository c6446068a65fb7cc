"""Progress for people: what is drawn, and what stays of it."""

import io
import re

import pytest

from paramdelta import Delta, Recipe, mix, progress
from paramdelta.cli.show.terminal import say
from paramdelta.engine.job import Progress
from paramdelta.progress import Bar, Lines, Reporter, progress_bar
from tests.cli.test_terminal import _Terminal


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves by hand."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


def screen(text, columns):
    """What a terminal of some columns shows after it was sent a text; wraps as terminals do."""
    rows, column = [""], 0
    for character in text:
        if character == "\n":
            rows.append("")
            column = 0
        elif character == "\r":
            column = 0
        else:
            if column == columns:
                rows.append("")
                column = 0
            row = rows[-1].ljust(column)
            rows[-1] = row[:column] + character + row[column + 1 :]
            column += 1
    return [row.rstrip() for row in rows]


@pytest.mark.parametrize("columns", [20, 80, 120])
def test_lines_printed_beside_a_bar(clock, monkeypatch, columns):
    """Lines stay whole, whatever their length, and nothing of the bar stays."""
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal = _Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    long = "x" * 2 * columns
    with progress_bar("sweeping", terminal) as bar:
        for number in range(5):
            clock.now += 1
            bar(Progress(number * 10**9, 5 * 10**9, 0, number * 10**9))
            assert screen(terminal.getvalue(), columns)[-1].startswith("sweeping")
            say(f"line {number}", long)
    found = screen(terminal.getvalue(), columns)
    expected = [part for number in range(5) for part in (f"line {number}", "x" * columns)]
    assert [row for row in found if row != "x" * columns] == [f"line {n}" for n in range(5)] + [""]
    assert len(found) == len(expected) + 5 + 1


def test_what_a_bar_says(clock, monkeypatch):
    """Share, bytes, a rate that says what it counts, and the time left once it is known."""
    monkeypatch.setenv("COLUMNS", "120")
    terminal = _Terminal()
    with Bar("mixing", terminal) as bar:
        clock.now += 1
        bar(Progress(0, 8 * 10**9, 0, 0, "compiling kernels"))
        assert "  0 %  compiling kernels" in screen(terminal.getvalue(), 120)[-1]
        for done in (1, 2):
            clock.now += 2
            bar(Progress(done * 10**9, 8 * 10**9, 0, 2 * done * 10**9))
        shown = screen(terminal.getvalue(), 120)[-1]
    assert re.search(r" 25 %  2\.0 GB of 8\.0 GB, 800 MB/s read and written, 12\.0 s left", shown)
    assert screen(terminal.getvalue(), 120) == [""]


def test_time_before_the_first_task_does_not_count(clock):
    """A minute of compilation does not make hours of the time left; what was resumed neither."""
    bar = Reporter("mixing")
    lefts = []
    bar.update = lambda now, left: lefts.append(left)
    clock.now += 60
    for done in (50, 51, 52):
        bar(Progress(done, 100, 50, 0))
        clock.now += 1
    assert lefts == [None, None, pytest.approx(48)]


def test_a_terminal_without_blocks(clock):
    """An encoding that lacks the characters of the bar gets others."""

    class Narrow(_Terminal):
        encoding = "cp874"

    terminal = Narrow()
    with Bar("mixing", terminal) as bar:
        clock.now += 1
        bar(50, 100)
    assert "############............  50 %" in terminal.getvalue()


def test_elsewhere_a_line_now_and_then(clock, monkeypatch):
    """In a file, a line every five seconds; on a dumb terminal too; never a carriage return."""
    monkeypatch.setenv("TERM", "dumb")
    stream = _Terminal()
    with progress_bar("mixing", stream) as bar:
        assert isinstance(bar, Lines)
        for done in range(100):
            clock.now += 0.2
            bar(done, 100)
    assert stream.getvalue().count("\n") == 4
    assert "\r" not in stream.getvalue()
    assert isinstance(progress_bar("mixing", io.StringIO()), Lines)


def test_names_from_files_cannot_move_the_cursor(clock):
    """A stage is drawn as one safe line."""
    terminal = _Terminal()
    with Bar("mixing", terminal) as bar:
        clock.now += 1
        bar(Progress(0, 1, 0, 0, "\x1b[2J\n"))
    assert "\x1b" not in terminal.getvalue()


def test_a_bar_for_a_mix(lineage, tmp_path):
    """It is what `mix` takes as progress."""
    terminal = _Terminal()
    recipe = Recipe(lineage.new, [Delta(lineage.post, lineage.base)])
    with progress_bar(stream=terminal) as bar:
        mix(recipe, tmp_path / "out", progress=bar)
    assert "mixing" in terminal.getvalue()
