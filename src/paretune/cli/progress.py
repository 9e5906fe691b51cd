"""How a run gets on, on a terminal as a bar, elsewhere as lines, with the time that remains."""

import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed

from paretune.cli.output import console
from paretune.files import main_process, user_path
from paretune.models import EMBEDDED
from paretune.progress import PHASES, Phase, Silent
from paretune.progress import Progress as SweepProgress

# Guesses of how a point's time divides, used until phases have been measured.
_SHARES: dict[Phase, float] = {"prepare": 0.1, "train": 0.6, "evaluate": 0.1, "generate": 0.2}
_WORDS: dict[Phase, str] = {
    "prepare": "loading and preparing",
    "train": "training",
    "evaluate": "evaluating",
    "generate": "answering prompts",
}


class Estimate:
    """Seconds that remain, from the phases measured so far; takes the time as an argument."""

    def __init__(self, points: int) -> None:
        self._left = points
        self._spent: dict[Phase, list[float]] = {phase: [] for phase in PHASES}
        self._phase: Phase | None = None
        self._since = 0.0
        self._done = 0.0

    def phase(self, phase: Phase, done: float, now: float) -> None:
        """The current point is in this phase, of which this share is done."""
        if phase != self._phase:
            self._close(now)
            if phase == PHASES[0]:
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
        expected = {phase: measured.get(phase, unit * _SHARES[phase]) for phase in PHASES}
        if self._done > 0:
            rest = elapsed / self._done * (1 - self._done)
        else:
            rest = max(expected[current] - elapsed, 0.0)
        later = PHASES[PHASES.index(current) + 1 :]
        return rest + sum(expected[p] for p in later) + self._left * sum(expected.values())

    def _close(self, now: float) -> None:
        if self._phase is not None:
            self._spent[self._phase].append(now - self._since)


class _Bar:
    """One bar for the run and one for the point at work."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._run: TaskID | None = None
        self._point: TaskID | None = None
        self._number = self._total = 0

    def begin(self, points: Sequence[str], finished: int) -> None:
        self._number, self._total = finished, len(points)
        self._estimate = Estimate(len(points) - finished)
        self._run = self._bars.add_task(f"{finished} of {len(points)} points", total=len(points))
        self._point = self._bars.add_task("", total=1.0)

    def point(self, name: str) -> None:
        self._number += 1
        self._name = name

    def phase(self, phase: Phase, done: float) -> None:
        assert self._run is not None
        assert self._point is not None
        now = time.monotonic()
        self._estimate.phase(phase, done, now)
        before = sum(_SHARES[p] for p in PHASES[: PHASES.index(phase)])
        inside = before + _SHARES[phase] * done
        left = remaining_text(self._estimate.remaining(now))
        text = f"point {self._number} of {self._total}, {left}"
        self._bars.update(self._run, description=text, completed=self._number - 1 + inside)
        self._bars.update(
            self._point, description=f"{self._name}: {_WORDS[phase]}", completed=inside
        )

    def end(self) -> None:
        assert self._run is not None
        self._bars.update(self._run, description="done", completed=self._total)


class _Lines:
    """A line at the start of each phase, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phase: Phase | None = None

    def begin(self, points: Sequence[str], finished: int) -> None:
        self._number, self._total = finished, len(points)
        self._estimate = Estimate(len(points) - finished)

    def point(self, name: str) -> None:
        self._number += 1
        self._name = name

    def phase(self, phase: Phase, done: float) -> None:
        now = time.monotonic()
        self._estimate.phase(phase, done, now)
        if phase != self._phase:
            self._phase = phase
            left = remaining_text(self._estimate.remaining(now))
            self._console.print(
                f"[{self._number}/{self._total}] {self._name}: {_WORDS[phase]}, {left}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    def end(self) -> None: ...


def remaining_text(seconds: float | None) -> str:
    """``"about 3 min left"``, rounded as coarsely as an estimate deserves."""
    if seconds is None:
        return "time left unknown yet"
    if seconds < 90:
        return f"about {max(5, 5 * round(seconds / 5))} s left"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min left"
    return f"about {seconds / 3600:.1f} h left"


def quiet_libraries(model: str) -> None:
    """Silence what the libraries would print; call it before they are imported.

    Args:
        model: Of the recipe; download bars are left on for one that is not on this machine.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    if model == EMBEDDED or user_path(model).is_dir():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@contextmanager
def console_progress(model: str) -> Iterator[SweepProgress]:
    """Progress on standard error; of several processes, the first one shows it.

    Enter it before the libraries are imported, which it also silences (`quiet_libraries`).
    """
    quiet_libraries(model)
    terminal = console(stderr=True)
    if not main_process():
        yield Silent()
    elif not terminal.is_terminal:
        yield _Lines(terminal)
    else:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            Elapsed(),
        )
        with Progress(*columns, console=terminal, redirect_stdout=sys.stdout.isatty()) as bars:
            yield _Bar(bars)
