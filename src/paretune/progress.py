"""How a long piece of work tells what it is at: points in phases, or a plain count."""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, get_args

Phase = Literal["prepare", "train", "evaluate", "generate"]


PHASES: tuple[Phase, ...] = get_args(Phase)


Report = Callable[[Phase, float], None]
"""Told how much of a phase is done, from 0 to 1."""

Count = Callable[[int, int], None]
"""Told how many of how many are done."""


class Progress(Protocol):
    """Is told how a run gets on."""

    def begin(self, points: Sequence[str], finished: int, phases: Sequence[Phase] = PHASES) -> None:
        """All points of the run by name, how many are finished already, each one's phases."""

    def point(self, name: str) -> None:
        """A point begins."""

    def phase(self, phase: Phase, done: float) -> None:
        """How much of a phase of the current point is done, from 0 to 1."""

    def end(self) -> None:
        """All is done."""


class Silent:
    """Progress that nobody watches."""

    def begin(
        self, points: Sequence[str], finished: int, phases: Sequence[Phase] = PHASES
    ) -> None: ...

    def point(self, name: str) -> None: ...

    def phase(self, phase: Phase, done: float) -> None: ...

    def end(self) -> None: ...
