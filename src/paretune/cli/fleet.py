"""How several workers get on, shown as one: what each writes is read here, wherever it runs.

What a worker is at it writes to its standard output, as JSON behind a mark; what else it prints
there is printed once, of the worker that ended best.
"""

import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.progress import Progress as Bars

from paretune.cli.output import console, echo
from paretune.cli.progress import WORDS, bars, remaining_text, share_before
from paretune.progress import PHASES, Phase

VARIABLE = "PARETUNE_WORKER"
"""Set in a worker, whose progress is `Events`."""
_MARK = "\x1e"  # the record separator
_OFTEN = 0.2  # seconds between two reports of one phase


class Events:
    """Progress as lines for the process that started this one."""

    def __init__(self) -> None:
        self._last: tuple[Phase, float] = ("prepare", -1.0)

    def begin(self, points: Sequence[str], finished: int, phases: Sequence[Phase] = PHASES) -> None:
        self._tell(begin=len(points), finished=finished, phases=list(phases))

    def point(self, name: str) -> None:
        self._tell(point=name)

    def phase(self, phase: Phase, done: float) -> None:
        now = time.monotonic()
        if phase != self._last[0] or now - self._last[1] >= _OFTEN:
            self._last = phase, now
            self._tell(phase=phase, done=done)

    def finished(self, points: int) -> None:
        self._tell(finished=points)

    def end(self) -> None:
        self._tell(end=True)

    def _tell(self, **event: Any) -> None:
        try:
            print(_MARK + json.dumps(event), flush=True)  # noqa: T201
        except BrokenPipeError:  # who started this process is gone
            raise KeyboardInterrupt from None


class Fleet:
    """How all workers get on: a bar for all points and one each, or lines.

    A notice is printed once there is work to begin.
    """

    def __init__(self, workers: int, shown: Bars | None, notice: str | None = None) -> None:
        self._bars, self._notice = shown, notice
        self._names, self._phases = ["starting"] * workers, [PHASES] * workers
        self._total, self._finished, self._first, self._start = 0, 0, 0, time.monotonic()
        self._said: set[str] = set()
        self._printed: list[list[str]] = [[] for _ in range(workers)]
        self._lock = threading.Lock()
        if shown is not None:
            self._all = shown.add_task("", total=None)
            self._each = [shown.add_task(f"worker {n + 1}", total=1.0) for n in range(workers)]

    def hear(self, worker: int, line: str) -> None:
        """A line of a worker's standard output."""
        if line.startswith(_MARK):
            self.tell(worker, json.loads(line[1:]))
        else:
            self._printed[worker].append(line)

    def complain(self, line: str) -> None:
        """A line of a worker's standard error; all say the same of the same recipe."""
        text = line.rstrip("\n")
        with self._lock:
            known = text in self._said
            self._said.add(text)
        if text and not known:
            self.say(text)

    def say(self, text: str) -> None:
        console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)

    def killed(self, worker: int, code: int) -> None:
        """A worker was ended by a signal."""
        name = signal.Signals(-code).name
        self.say(f"worker {worker + 1} was ended by {name}; others take over its work")

    def restarted(self, worker: int, host: str) -> None:
        """A worker was lost, and begins again."""
        self._printed[worker].clear()
        self.say(f"worker {worker + 1} was lost and begins again on {host}")

    def end(self, codes: Mapping[int, int]) -> None:
        """Print what the worker printed that ended best, and end as it ended.

        Args:
            codes: Exit codes of workers; below zero, of one that was killed.

        Raises:
            typer.Exit: with the exit code, if it is not 0.
        """
        best = min(codes, key=lambda n: (codes[n] != 0, codes[n] < 0))
        echo("".join(self._printed[best]).rstrip("\n"))
        if codes[best]:
            raise typer.Exit(codes[best] if codes[best] > 0 else 1)

    def tell(self, worker: int, event: Mapping[str, Any]) -> None:
        with self._lock:
            if "begin" in event:
                self._phases[worker] = tuple(event["phases"])
                if not self._total:
                    self._total, self._first = event["begin"], event["finished"]
                    self._start = time.monotonic()
                    if self._notice is not None and self._first < self._total:
                        self.say(self._notice)
            if "finished" in event:
                self._finished = max(self._finished, event["finished"])
            self._names[worker] = event.get("point", self._names[worker])
            if "phase" in event:
                self._show(worker, event["phase"], event["done"])
            elif self._bars is not None:
                if "end" in event:
                    self._bars.update(self._each[worker], description=f"worker {worker + 1}: done")
                self._bars.update(
                    self._all,
                    description=self._of_all(),
                    completed=self._finished,
                    total=self._total,
                )

    def _show(self, worker: int, phase: Phase, done: float) -> None:
        doing = f"worker {worker + 1}: {self._names[worker]}: {WORDS[phase]}"
        if self._bars is not None:
            inside = share_before(phase, done, self._phases[worker])
            self._bars.update(self._each[worker], description=doing, completed=inside)
        elif done == 0:
            line = f"[{self._finished}/{self._total}] {doing}, {self._left()}"
            console(stderr=True).print(line, highlight=False, soft_wrap=True)

    def _of_all(self) -> str:
        return f"{self._finished} of {self._total} points, {self._left()}"

    def _left(self) -> str:
        fresh = self._finished - self._first
        elapsed = time.monotonic() - self._start
        left = self._total - self._finished
        return remaining_text(elapsed / fresh * left if fresh > 0 else None)


@contextmanager
def fleet_bars() -> Iterator[Bars | None]:
    """Bars for a fleet, on a terminal."""
    terminal = console(stderr=True)
    if not terminal.is_terminal:
        yield None
        return
    with bars(terminal) as shown:
        yield shown
