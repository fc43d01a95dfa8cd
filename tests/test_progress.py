"""What long work tells on standard error, on a terminal and in a file."""

import io
from itertools import pairwise

import pytest

from var_toolkit import progress
from var_toolkit.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is moved: a list of one number of seconds."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_file_gets_a_line_after_some_seconds_and_then_at_growing_intervals(clock, capsys):
    with Progress(1000, "images", what="drawing", done=100) as bar:
        at = []
        for _ in range(800):
            clock[0] += 1
            bar.update()
            if error := capsys.readouterr().err:
                at.append((clock[0] - 100, error))
    gaps = [now - before for (before, _), (now, _) in pairwise(at)]
    assert at[0] == (5, "drawing: 105 of 1,000 images, 1 a second, 14:55 left\n")
    assert gaps == sorted(gaps)
    assert 5 < len(at) < 13


def test_a_remark_stands_behind_the_counts(clock, capsys):
    bar = Progress(30, "steps")
    bar.remark("loss 0.5")
    clock[0] += 20
    bar.update(10)
    assert capsys.readouterr().err == "10 of 30 steps, 0.5 a second, 00:40 left, loss 0.5\n"


def test_short_work_and_other_processes_tell_nothing(clock, capsys):
    for active, seconds in ((True, 4), (False, 900)):
        with Progress(3, "images", active=active) as bar:
            clock[0] += seconds
            bar.update()
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with Progress(4, "images", what="drawing") as bar:
        bar.update(4)
    assert "drawing: 100%" in screen.getvalue()
    assert "4/4" in screen.getvalue()
