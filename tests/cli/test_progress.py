"""How long work shows how it gets on, on a terminal and elsewhere."""

import io
import os
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from paretune.cli import progress
from paretune.machine import Machine


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


def machine(monkeypatch: pytest.MonkeyPatch, load: float, cores: int, threads: str = "") -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 9.0, 9.0), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    ("load", "cores", "threads", "told"),
    [
        (0.4, 2, "", None),
        (1.2, 2, "1", None),
        (4.4, 8, "4,2", None),
        (0.0, 2, "8", None),  # as the user wants it
        (3.4, 2, "", "load of 3.4 * on 2 cores, * adds 2 threads. * OMP_NUM_THREADS=1 ("),
        (1.6, 4, "", "load of 1.6 * on 4 cores, * adds 4 threads. * OMP_NUM_THREADS=2 ("),
        (3.4, 2, "1", "load of 3.4 * on 2 cores, * adds 1 thread. * sleep (*=PASSIVE)."),
    ],
)
def test_a_busy_machine_is_told_of_once(
    shown: Any,
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
    load: float,
    cores: int,
    threads: str,
    told: str | None,
) -> None:
    machine(monkeypatch, load, cores, threads)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    file = shown(terminal)
    with progress.console_progress(None) as watcher:
        run(watcher)
        run(watcher)
    lines = [line for line in file.getvalue().splitlines() if "The machine is busy" in line]
    assert len(lines) == (told is not None)
    if told is not None:
        pieces = ("The machine is busy: a " + told).split("*")
        place = [lines[0].find(piece.strip()) for piece in pieces]
        assert place == sorted(place)
        assert place[0] >= 0
        assert ("OMP_NUM_THREADS" in lines[0]) == ("OMP_NUM_THREADS" in told)


def test_of_a_busy_machine_nothing_is_said_when_all_is_done(
    shown: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 5.0, 2)
    file = shown(False)
    with progress.console_progress(None) as watcher:
        watcher.begin(["a", "b"], 2)
        watcher.end()
    assert file.getvalue() == ""


def test_waiting_actively_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    text = progress.busy(Machine(2.0, 2, 1))
    assert text is not None
    assert text.endswith("with OMP_WAIT_POLICY=ACTIVE more so than with PASSIVE.")
