"""Ideal and nadir point of a front, so that the units of the objectives do not decide its shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.preference import Preference
from paretune.moo.solvers.result import Result

Array = NDArray[np.float64]
Solve = Callable[[Preference, Sequence[float], Tensor], Result]

# The weight of the leading objective where the nadir point is looked for.
_LEADING = 0.999
# Objectives are measured from this part of the range below the ideal point.
_MARGIN = 1e-3


@dataclass(frozen=True)
class Normalization:
    """Objectives as (f − z*) / (n − z*) plus a margin, by way of preferences and a shift.

    max_s λ_s (f_s + c_s) / r_s is max_s λ'_s (f_s + c_s) with λ' = λ / r, up to a factor.

    Attributes:
        ideal: z*, shape (M,): the least value of each objective.
        nadir: n, shape (M,): its largest near the corners of the front.
        runs: the runs that found them.
    """

    ideal: Array
    nadir: Array
    runs: tuple[Result, ...]

    @property
    def ranges(self) -> Array:
        """n − z*, 1 where it is 0."""
        ranges = self.nadir - self.ideal
        return np.where(ranges > 1e-12 * np.maximum(1.0, np.abs(self.ideal)), ranges, 1.0)

    @property
    def shift(self) -> list[float]:
        """c: −z* plus the margin."""
        return [float(c) for c in _MARGIN * self.ranges - self.ideal]

    def scaled(self, preference: Preference) -> Preference:
        """λ / r, summing to 1."""
        weights = preference.array() / self.ranges
        return Preference(preference.names, tuple(float(w) for w in weights / weights.sum()))


def find_normalization(solve: Solve, names: tuple[str, ...], start: Tensor) -> Normalization:
    """Ideal point by one run for each objective alone, nadir by one near each corner.

    `solve` takes a preference, a shift and a start point.

    Raises InputError where a run does not end at finite values.
    """
    size = len(names)
    alone = [
        solve(Preference(names, tuple(float(s == k) for k in range(size))), [0.0] * size, start)
        for s in range(size)
    ]
    payoff = np.stack([found.objectives.numpy() for found in alone])
    if not np.isfinite(payoff).all():
        raise InputError("The ideal point is not finite, so the front cannot be normalised.")
    first = Normalization(payoff.min(0), payoff.max(0), tuple(alone))
    if size == 1:
        return first
    rest = (1 - _LEADING) / (size - 1)
    corners = [
        solve(
            first.scaled(
                Preference(names, tuple(_LEADING if s == k else rest for k in range(size)))
            ),
            first.shift,
            alone[s].x,
        )
        for s in range(size)
    ]
    values = np.stack([found.objectives.numpy() for found in corners])
    ideal = np.minimum(first.ideal, values.min(0))
    return Normalization(ideal, values.max(0), (*alone, *corners))
