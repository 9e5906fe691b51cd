"""How long work shows how it gets on, on a terminal and elsewhere."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from paretune.cli import progress


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], io.StringIO]:
    """What is printed to standard error, which is a terminal or not."""

    def make(terminal: bool) -> io.StringIO:
        file = io.StringIO()
        console = Console(file=file, force_terminal=terminal, width=100)
        monkeypatch.setattr(progress, "console", lambda **_: console)
        return file

    return make


def run(shown: Any, phases: Any = progress.PHASES) -> None:
    shown.begin(["a", "b"], 0, phases)
    for name in ("a", "b"):
        shown.point(name)
        for phase in phases:
            for done in (0.0, 0.5, 1.0):
                shown.phase(phase, done)
    shown.end()


def test_a_line_for_each_phase_without_a_terminal(shown: Any) -> None:
    file = shown(False)
    with progress.console_progress(None) as watcher:
        run(watcher)
    lines = file.getvalue().splitlines()
    assert len(lines) == 8
    assert lines[1].startswith("[1/2] a: training, ")
    file = shown(False)
    with progress.console_progress(None) as watcher:
        run(watcher, ("train",))
    assert [line[:7] for line in file.getvalue().splitlines()] == ["[1/2] a", "[2/2] b"]


def test_bars_on_a_terminal(shown: Any) -> None:
    file = shown(True)
    with progress.console_progress(None) as watcher:
        run(watcher)
    assert "done" in file.getvalue()


@pytest.mark.parametrize(("total", "lines"), [(1, 2), (5, 6), (1000, 11)])
def test_a_count_is_a_line_every_tenth(shown: Any, total: int, lines: int) -> None:
    file = shown(False)
    with progress.console_count("questions") as count:
        for done in range(total + 1):
            count(done, total)
    printed = file.getvalue().splitlines()
    assert len(printed) == lines
    assert printed[-1] == f"{total} of {total} questions"


def test_a_count_of_nothing_says_nothing(shown: Any) -> None:
    file = shown(False)
    with progress.console_count("questions") as count:
        count(0, 0)
    assert file.getvalue() == ""
    file = shown(True)
    with progress.console_count("questions") as count:
        count(1, 2)
    assert "1 of 2 questions" in file.getvalue()


def test_steps_are_lines_without_a_terminal_only(shown: Any) -> None:
    for terminal in (False, True):
        file = shown(terminal)
        with progress.console_progress(None):
            progress.STEPS.info("step 1 of 2")
        progress.STEPS.info("later")
        assert ("    step 1 of 2\n" in file.getvalue()) is not terminal
        assert "later" not in file.getvalue()
