"""Ideal and nadir point of a front, so that the units of the objectives do not decide its shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.preference import Preference
from paretune.moo.problem import Problem
from paretune.moo.solvers.result import Result

Array = NDArray[np.float64]
Solve = Callable[[Preference, Sequence[float], Tensor | Result], Result]

# Objectives are measured from this part of the range below the ideal point.
MARGIN = 1e-2
# At a corner the others may be larger by this part of their range, if the largest one falls by
# more than that part of its own.
_TRADE, _TIED = 1e-3, 0.2


@dataclass(frozen=True)
class Normalization:
    """Objectives as (f − z*) / (n − z*) plus a margin, by way of preferences and a shift.

    max_s λ_s (f_s + c_s) / r_s is max_s λ'_s (f_s + c_s) with λ' = λ / r, up to a factor.

    Attributes:
        ideal: z*, shape (M,): the least value of each objective.
        nadir: n, shape (M,): its largest at the corners of the front.
        runs: the runs that found them: each objective alone, then the corners.
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
        return [float(c) for c in MARGIN * self.ranges - self.ideal]

    def scaled(self, preference: Preference) -> Preference:
        """λ / r, summing to 1."""
        weights = preference.array() / self.ranges
        return Preference(preference.names, tuple(float(w) for w in weights / weights.sum()))

    def place(self, objectives: Array) -> Array:
        """(f − z*) / (n − z*), shape (n, M): where points are on the front."""
        placed: Array = (objectives - self.ideal) / self.ranges
        return placed


def find_normalization(
    solve: Solve, names: tuple[str, ...], starts: Sequence[Tensor]
) -> Normalization:
    """Ideal point by each objective alone, from all the starts, nadir by two runs for each corner.

    A corner is where one objective is at its largest and the others are as low as they can be
    together, but for a thousandth of their range. `solve` takes a preference, a shift and a start
    point.

    Raises InputError where a run does not end at finite values.
    """
    size, alone, spent = len(names), list[Result](), list[Result]()
    for s in range(size):
        only = Preference(names, tuple(float(s == k) for k in range(size)))
        found = [solve(only, [0.0] * size, start) for start in starts]
        good = [run for run in found if run.converged] or found[:1]
        alone.append(min(good, key=lambda run: float(run.objectives[s])))
        spent.extend(found)
    payoff = np.stack([found.objectives.numpy() for found in alone])
    if not np.isfinite(payoff).all():
        raise InputError("The ideal point is not finite, so the front cannot be normalised.")
    first = Normalization(payoff.min(0), payoff.max(0), tuple(spent))
    if size == 1:
        return first
    aims = [first.scaled(aimed(names, unit)) for unit in np.eye(size).tolist()]
    found = [solve(aims[s], first.shift, alone[(s + 1) % size].x) for s in range(size)]
    limits = [run.objectives[s] - _TIED * _height(first, run, s) for s, run in enumerate(found)]
    scale, corners, lower = first, found, found
    for _ in range(2):  # again by the ranges that came of it
        lower = [_lowest(solve, scale, names, found[s], lower[s], s) for s in range(size)]
        spent.extend(lower)
        corners = [
            low if low.converged and low.objectives[s] < limit else run
            for s, (run, low, limit) in enumerate(zip(found, lower, limits, strict=True))
        ]
        values = np.stack([run.objectives.numpy() for run in corners])
        ideal = np.minimum(first.ideal, values.min(0))
        scale = Normalization(ideal, values.max(0), (*spent, *corners))
        if all(run is corner for run, corner in zip(found, corners, strict=True)):
            break
    return scale


def _lowest(
    solve: Solve,
    scale: Normalization,
    names: tuple[str, ...],
    corner: Result,
    start: Result,
    s: int,
) -> Result:
    """Of all points with the other objectives as at a corner, or nearly, the one of least f_s."""
    here, ranges = corner.objectives.numpy().copy(), scale.ranges
    ranges[s], here[s] = _height(scale, corner, s), scale.ideal[s]
    weights = 1 / (_TRADE * ranges)
    weights[s] *= _TRADE
    return solve(Preference(names, _shares(weights)), [float(-value) for value in here], start)


def _height(scale: Normalization, corner: Result, s: int) -> float:
    """f_s above its least value; 1 where it is none."""
    height = float(corner.objectives[s] - scale.ideal[s])
    return height if height > 0 else 1.0


def scattered(problem: Problem, start: Tensor, count: int) -> list[Tensor]:
    """`count` points within the bounds, always the same; none where a bound is missing."""
    if problem.bounds is None:
        return []
    lower, upper = (
        torch.as_tensor(bound, dtype=start.dtype, device=start.device).expand(start.shape)
        for bound in problem.bounds
    )
    if not bool((lower.isfinite() & upper.isfinite()).all()):
        return []
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(count, *start.shape, generator=generator, dtype=torch.float64)
    return [lower + draw.to(start) * (upper - lower) for draw in draws]


def aimed(names: tuple[str, ...], ray: Sequence[float]) -> Preference:
    """The preference whose point of a normalised front lies on the ray from z* through `ray`."""
    inverse = 1 / (np.maximum(np.asarray(ray, dtype=np.float64), 0) + MARGIN)
    return Preference(names, _shares(inverse))


def _shares(weights: ArrayLike) -> tuple[float, ...]:
    values = np.asarray(weights, dtype=np.float64)
    return tuple(float(w) for w in values / values.sum())
