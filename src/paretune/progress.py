"""How a long piece of work tells what it is at: points in phases, or a plain count."""

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, get_args

Phase = Literal["prepare", "train", "evaluate", "generate"]


PHASES: tuple[Phase, ...] = get_args(Phase)


Report = Callable[[Phase, float], None]
"""Told how much of a phase is done, from 0 to 1."""

Count = Callable[[int, int], None]
"""Told how many of how many are done."""


STEPS = logging.getLogger("paretune.steps")
"""Is told of the steps of a training, every tenth of it."""


class Progress(Protocol):
    """Is told how a run gets on."""

    def begin(self, points: Sequence[str], finished: int, phases: Sequence[Phase] = PHASES) -> None:
        """All points of the run by name, how many are finished already, each one's phases."""

    def point(self, name: str) -> None:
        """A point begins."""

    def phase(self, phase: Phase, done: float) -> None:
        """How much of a phase of the current point is done, from 0 to 1."""

    def finished(self, points: int) -> None:
        """So many of all points are finished, by whichever process."""

    def end(self) -> None:
        """All is done."""


class Silent:
    """Progress that nobody watches."""

    def begin(
        self, points: Sequence[str], finished: int, phases: Sequence[Phase] = PHASES
    ) -> None: ...

    def point(self, name: str) -> None: ...

    def phase(self, phase: Phase, done: float) -> None: ...

    def finished(self, points: int) -> None: ...

    def end(self) -> None: ...


class Bar(Silent):
    """One bar over all points, as text on standard error."""

    def begin(self, points: Sequence[str], finished: int, phases: Sequence[Phase] = PHASES) -> None:
        from tqdm import tqdm

        self._phases, self._finished = tuple(phases), finished
        form = "{percentage:3.0f}%|{bar:30}| {desc} [{elapsed}, {remaining} left]"
        self._bar: Any = tqdm(total=float(len(points)), initial=finished, bar_format=form)

    def point(self, name: str) -> None:
        self._finished += 1
        self._name = name

    def phase(self, phase: Phase, done: float) -> None:
        inside = (self._phases.index(phase) + done) / len(self._phases)
        self._bar.set_description_str(f"{self._name}: {phase}", refresh=False)
        self._bar.update(max(self._finished - 1 + inside - self._bar.n, 0.0))

    def end(self) -> None:
        self._bar.set_description_str("done", refresh=False)
        self._bar.update(self._bar.total - self._bar.n)
        self._bar.close()


def default_progress() -> Progress:
    """A bar in a notebook, and nothing elsewhere."""
    shell = sys.modules.get("IPython")
    running = shell.get_ipython() if shell is not None else None
    return Bar() if type(running).__name__ == "ZMQInteractiveShell" else Silent()
