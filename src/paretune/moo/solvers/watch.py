"""Who looks on while a solver runs: a callback, limits of time and evaluations."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from paretune.errors import InputError


class Progress(NamedTuple):
    """Where a run is.

    Attributes:
        steps: taken so far in this run.
        x: the point, detached; not to be changed.
        objectives: F(x), shape (M,), without any shift.
        residual: what is compared with the tolerance.
        n_function_evaluations: times F and h were computed, in all runs of the call.
        seconds: since the call.
    """

    steps: int
    x: Tensor
    objectives: Tensor
    residual: float
    n_function_evaluations: int
    seconds: float


Callback = Callable[[Progress], object]


class Watch:
    """Asked after every step whether to go on; one for all runs of a call.

    Args:
        callback: called with a `Progress`; a run ends where it returns True.
        max_evaluations: of F and h, over all runs.
        max_seconds: since the watch was made.

    Raises InputError for limits that are not above 0.
    """

    def __init__(
        self,
        callback: Callback | None = None,
        max_evaluations: int | None = None,
        max_seconds: float | None = None,
    ) -> None:
        for name, limit in (("max_evaluations", max_evaluations), ("max_seconds", max_seconds)):
            if limit is not None and not limit > 0:
                raise InputError(f"{name} must be above 0, got {limit}.")
        self._callback = callback
        self._most = math.inf if max_evaluations is None else max_evaluations
        self._began = time.monotonic()
        self._seconds = math.inf if max_seconds is None else max_seconds
        self.spent = 0
        self._why = ""

    @property
    def stopped(self) -> str:
        """Why all runs end at their next step; "" while they go on."""
        return self._why

    def over(self) -> bool:
        """Whether there is such a reason."""
        return bool(self._why)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to watch for."""
        return self._callback is None and math.isinf(min(self._most, self._seconds))

    def stop(self, why: str) -> None:
        """End all runs at their next step."""
        self._why = why

    def add(self, evaluations: int) -> None:
        """Count those of a run that is over."""
        self.spent += evaluations

    def why_stop(
        self, steps: int, x: Tensor, objectives: Tensor, residual: float, evaluations: int
    ) -> str:
        """Why the run has to end, as the end of a sentence; "" to go on."""
        if self._why:
            return self._why
        count, seconds = self.spent + evaluations, time.monotonic() - self._began
        now = Progress(steps, x, objectives, residual, count, seconds)
        if self._callback is not None and self._callback(now) is True:
            self._why = "the callback ended it."
        elif count >= self._most:
            self._why = f"{count} evaluations, max_evaluations is {self._most:g}."
        elif seconds >= self._seconds:
            self._why = f"{seconds:.3g} seconds, max_seconds is {self._seconds:g}."
        return self._why
