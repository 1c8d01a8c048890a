"""Progress: a log is never silent for long, a terminal has a bar, and results stay apart from both."""

from __future__ import annotations

import io
import sys
import time

import pytest

from vtc.commands import console, progress
from vtc.errors import nearest


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def stderr(monkeypatch):
    def put(out):
        monkeypatch.setattr(sys, "stderr", out)
        return out

    return put


def test_a_step_that_takes_long_is_no_silence(stderr, monkeypatch):
    """Nothing advances, as while a model is loaded, and lines come all the same."""
    monkeypatch.setattr(progress, "EVERY", 0.5)
    log = stderr(io.StringIO())
    with console.progress() as bar:
        bar.add_task("loading m", total=4)
        time.sleep(3.5)
    lines = log.getvalue().splitlines()
    assert lines[0] == "loading m 0 of 4, 0:00" and len(lines) >= 3
    assert all(line.startswith("loading m 0 of 4, 0:0") for line in lines)


def test_before_there_is_a_task_nothing_is_said(stderr):
    log = stderr(io.StringIO())
    with console.progress() as bar:
        time.sleep(1.5)
        bar.add_task("loading m")
    assert log.getvalue().splitlines()[0].startswith("loading m, 0:0")


def test_quick_steps_are_one_line_and_what_is_left_is_told(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    log = io.StringIO()
    bar = progress._InALog(log)
    task = bar.add_task("asking", total=200)
    for _ in range(100):
        bar.advance(task)
    assert log.getvalue() == "asking 0 of 200, 0:00\n"
    now[0] += 60
    bar.advance(task)
    assert log.getvalue().splitlines()[-1] == "asking 101 of 200, 1:00, about 0:58 left"
    now[0] += 6
    bar.update(task, description="painting", completed=200)
    assert log.getvalue().splitlines()[-1] == "painting 200 of 200, 1:06"
    assert progress.clock(3725) == "1:02:05"


def test_results_go_to_stdout(stderr, capsys):
    log = stderr(Terminal())
    with console.progress() as bar:
        task = bar.add_task("asking", total=2)
        bar.print("a row")
        bar.advance(task)
        assert capsys.readouterr().out == "a row\n"
    assert "asking" in log.getvalue() and "a row" not in log.getvalue()


def test_on_one_terminal_rows_go_through_the_bar(stderr, monkeypatch):
    screen = stderr(Terminal())
    monkeypatch.setattr(sys, "stdout", Terminal())
    with console.progress() as bar:
        bar.add_task("asking", total=2)
        bar.print("a row")
    assert "a row" in screen.getvalue() and sys.stdout.getvalue() == ""


def test_disabled_progress_says_nothing(stderr):
    log = stderr(io.StringIO())
    with console.progress(disable=True) as bar:
        bar.update(bar.add_task("asking", total=2), advance=1)
    assert log.getvalue() == ""


@pytest.mark.parametrize(
    "given, found",
    [
        ("keep", "retention"),
        ("ratio", "retention"),
        ("keep_ratio", "retention"),
        ("num_tokens", "tokens"),
        ("budget", "tokens"),
        ("n-tokens", "tokens"),
        ("token", "tokens"),
        ("retenton", "retention"),
        ("prune_ratio", "retention"),
        ("zzz", None),
    ],
)
def test_words_of_other_projects_are_understood(given, found):
    said = nearest(given, ["eps", "retention", "score", "tokens"])
    assert said.startswith(f"; did you mean {found!r}") if found else said == ""
    assert ("the share that stays" in said) == (given == "prune_ratio")
    assert nearest(given, ["other"]) == "", "only what is there is named"
