"""How a run gets on, on a terminal as a bar, elsewhere as lines, with the time that remains."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from paretune.cli.output import console
from paretune.files import main_process, user_path
from paretune.machine import Machine, this_machine
from paretune.models import BUILT_IN
from paretune.progress import PHASES, STEPS, Count, Phase, Progress, Silent

# Guesses of how a point's time divides, used until phases have been measured.
_SHARES: dict[Phase, float] = {"prepare": 0.1, "train": 0.6, "evaluate": 0.1, "generate": 0.2}
_TELLING = 3  # points whose mean says what another takes
WORDS: dict[Phase, str] = {
    "prepare": "loading and preparing",
    "train": "training",
    "evaluate": "evaluating",
    "generate": "answering prompts",
}


class Estimate:
    """Seconds that remain, from the phases measured so far; takes the time as an argument."""

    def __init__(self, points: int, phases: Sequence[Phase] = PHASES) -> None:
        self._left, self._phases = points, tuple(phases)
        self._spent: dict[Phase, list[float]] = {phase: [] for phase in self._phases}
        self._phase: Phase | None = None
        self._since = 0.0
        self._done = 0.0
        self._began: list[float] = []

    def left(self, points: int) -> None:
        """So many points are still to be begun."""
        self._left = points

    def point(self, now: float) -> None:
        """A point begins."""
        self._began.append(now)

    def phase(self, phase: Phase, done: float, now: float) -> None:
        """The current point is in this phase, of which this share is done."""
        if phase != self._phase:
            self._close(now)
            if phase == self._phases[0]:
                self._left -= 1
            self._phase, self._since = phase, now
        self._done = done

    def remaining(self, now: float) -> float | None:
        """Seconds until all is done; None while there is nothing to go by."""
        # The shortest: a run's first preparation computes what later ones find done.
        measured = {phase: min(spent) for phase, spent in self._spent.items() if spent}
        current = self._phase
        elapsed = now - self._since
        if current is not None and current not in measured and self._done > 0:
            measured[current] = elapsed / self._done
        telling = [phase for phase in measured if phase != "prepare"]
        if not telling or current is None:
            return None
        unit = sum(measured[p] for p in telling) / sum(_SHARES[p] for p in telling)
        expected = {phase: measured.get(phase, unit * _SHARES[phase]) for phase in self._phases}
        if self._done > 0:
            rest = elapsed / self._done * (1 - self._done)
        else:
            rest = max(expected[current] - elapsed, 0.0)
        later = self._phases[self._phases.index(current) + 1 :]
        return rest + sum(expected[p] for p in later) + self._left * self._a_point(expected)

    def _a_point(self, expected: Mapping[Phase, float]) -> float:
        """What a point takes: all phases, or the mean of those so far, which may leave some out."""
        whole, done = sum(expected.values()), len(self._began) - 1
        if done < _TELLING:
            return whole
        return min(whole, (self._began[-1] - self._began[0]) / done)

    def _close(self, now: float) -> None:
        if self._phase is not None:
            self._spent[self._phase].append(now - self._since)


class _Display:
    """How a run gets on: two bars on a terminal, elsewhere a line at the start of each phase.

    A notice is printed once there is work to begin.
    """

    def __init__(self, console: Console, bars: Bars | None, notice: str | None = None) -> None:
        self._console, self._bars, self._notice = console, bars, notice
        self._tasks: tuple[TaskID, TaskID] | None = None
        self._at: tuple[int, Phase] | None = None
        self._number = self._total = 0
        self._name = ""

    def begin(self, points: Sequence[str], finished: int, phases: Sequence[Phase] = PHASES) -> None:
        self._number, self._total, self._phases = finished, len(points), tuple(phases)
        self._estimate = Estimate(len(points) - finished, phases)
        if self._notice is not None and finished < len(points):
            self._console.print(self._notice, highlight=False, soft_wrap=True)
            self._notice = None
        if self._bars is not None:
            of_all = self._bars.add_task(f"{finished} of {len(points)} points", total=len(points))
            self._tasks = of_all, self._bars.add_task("", total=1.0)

    def point(self, name: str) -> None:
        self._number += 1
        self._name = name
        self._estimate.point(time.monotonic())

    def phase(self, phase: Phase, done: float) -> None:
        now = time.monotonic()
        self._estimate.phase(phase, done, now)
        left = remaining_text(self._estimate.remaining(now))
        doing = f"{self._name}: {WORDS[phase]}"
        if self._bars is not None and self._tasks is not None:
            inside = share_before(phase, done, self._phases)
            run, point = self._tasks
            text = f"point {self._number} of {self._total}, {left}"
            self._bars.update(run, description=text, completed=self._number - 1 + inside)
            self._bars.update(point, description=doing, completed=inside)
        elif self._at != (self._number, phase) and done < 1:  # not what ends as it begins
            self._at = self._number, phase
            line = f"[{self._number}/{self._total}] {doing}, {left}"
            self._console.print(line, highlight=False, soft_wrap=True)

    def finished(self, points: int) -> None:
        self._number = points
        self._estimate.left(self._total - points)
        if self._bars is not None and self._tasks is not None:
            text = f"{points} of {self._total} points"
            self._bars.update(self._tasks[0], description=text, completed=points)

    def end(self) -> None:
        if self._bars is not None and self._tasks is not None:
            self._bars.update(self._tasks[0], description="done", completed=self._total)


def share_before(phase: Phase, done: float, phases: Sequence[Phase]) -> float:
    """The share of a point's time that lies before this moment of it, guessed."""
    shares = {each: _SHARES[each] for each in phases}
    before = sum(shares[each] for each in phases[: list(phases).index(phase)])
    return (before + shares[phase] * done) / sum(shares.values())


def remaining_text(seconds: float | None) -> str:
    """``"about 3 min left"``, rounded as coarsely as an estimate deserves."""
    if seconds is None:
        return "time left unknown yet"
    if seconds < 90:
        return f"about {max(5, 5 * round(seconds / 5))} s left"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min left"
    return f"about {seconds / 3600:.1f} h left"


def busy(machine: Machine, workers: int = 1) -> str | None:
    """What a run on a busy machine is told; None where there is room for its threads."""
    if not machine.busy:
        return None
    policy = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
    threads = "1 thread" if machine.threads == 1 else f"{machine.threads} threads"
    text = (
        f"The machine is busy: a load of {machine.load:.1f} in the last minute on {machine.cores} "
        f"cores, to which this run adds {threads}. It takes longer than alone; "
    )
    if policy.upper() == "PASSIVE":
        text += "threads that wait for each other sleep (OMP_WAIT_POLICY=PASSIVE)."
    else:
        text += f"with OMP_WAIT_POLICY={policy} more so than with PASSIVE."
    room = max(1, machine.cores - round(machine.load))
    if room < machine.threads and workers > 1:
        text += f" There is room for {room}: give fewer --workers."
    elif room < machine.threads:
        text += f" There is room for {room}: OMP_NUM_THREADS={room} (last bits depend on it)."
    return text


def quiet_libraries(model: str) -> None:
    """Silence what the libraries would print; call it before they are imported.

    Args:
        model: Of the recipe; download bars are left on for one that is not on this machine.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    if model in BUILT_IN or user_path(model).is_dir():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@contextmanager
def console_progress(model: str | None) -> Iterator[Progress]:
    """Progress on standard error; of several processes, the first one shows it.

    Enter it before the libraries are imported, which it also silences (`quiet_libraries`).

    Args:
        model: Of the recipe, if the run has one.
    """
    notice = busy(this_machine())  # before the libraries' import adds to the load
    if model is not None:
        quiet_libraries(model)
    terminal = console(stderr=True)
    if not main_process():
        yield Silent()
    elif os.environ.get("PARETUNE_WORKER"):
        from paretune.cli.fleet import Events

        yield Events()
    elif not terminal.is_terminal:
        with _steps_told(terminal):
            yield _Display(terminal, None, notice)
    else:
        with bars(terminal) as shown:
            yield _Display(terminal, shown, notice)


@contextmanager
def _steps_told(terminal: Console) -> Iterator[None]:
    """The lines of `STEPS` on a console."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            terminal.print(f"    {record.getMessage()}", highlight=False, soft_wrap=True)

    handler, level = Lines(), STEPS.level
    STEPS.addHandler(handler)
    STEPS.setLevel(logging.INFO)
    try:
        yield
    finally:
        STEPS.removeHandler(handler)
        STEPS.setLevel(level)


@contextmanager
def console_count(words: str) -> Iterator[Count]:
    """A count on standard error, from its first call on: a bar, or a line every tenth.

    Args:
        words: What is counted, such as ``"questions"``.
    """
    terminal = console(stderr=True)
    shown = bars(terminal)
    task: TaskID | None = None
    tenth = -1

    def count(done: int, total: int) -> None:
        nonlocal task, tenth
        text = f"{done} of {total} {words}"
        if not terminal.is_terminal:
            if total and done * 10 // total > tenth:
                tenth = done * 10 // total
                terminal.print(text, highlight=False)
            return
        if task is None:
            shown.start()
            task = shown.add_task(text, total=total)
        shown.update(task, description=text, completed=done)

    try:
        yield count
    finally:
        if task is not None:
            shown.stop()


def bars(terminal: Console) -> Bars:
    """Bars with the time that has passed."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn())
    redirect = sys.stdout.isatty()
    return Bars(*columns, TimeElapsedColumn(), console=terminal, redirect_stdout=redirect)
