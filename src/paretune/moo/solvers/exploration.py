"""`explore`: a front, one preference at a time."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.indicators import Hypervolume, hypervolume, nondominated
from paretune.moo.numerics.kkt import as_tensor
from paretune.moo.optimize import MethodName, choose_method, minimize
from paretune.moo.preference import Preference
from paretune.moo.problem import Problem, StochasticProblem
from paretune.moo.ranking import Ranking
from paretune.moo.shift import Shift
from paretune.moo.solvers.loop import default_tolerance
from paretune.moo.solvers.normalization import Normalization, find_normalization
from paretune.moo.solvers.result import Method, Result
from paretune.moo.solvers.wc_augmented import WCAugmented

# Points closer than this part of the front's range, in each objective, count as one.
_SAME = 1e-5


class FrontWarning(UserWarning):
    """A front that does not cover what was asked for."""


@dataclass(frozen=True)
class Exploration:
    """A front as data: n points, in the order of the preferences that were asked for.

    Attributes:
        preferences: the n preferences, but for those that failed.
        results: what `minimize` returned for each of them.
        n_gradient_evaluations: over all runs, those that were not kept included.
        n_function_evaluations: likewise.
        normalization: the ideal and nadir point that the preferences were measured by; None
            without.
    """

    preferences: tuple[Preference, ...]
    results: tuple[Result, ...]
    n_gradient_evaluations: int
    n_function_evaluations: int
    normalization: Normalization | None = None

    @property
    def points(self) -> Tensor:
        """z, shape (n, *x0.shape)."""
        return torch.stack([result.x for result in self.results])

    @property
    def objectives(self) -> Tensor:
        """F, shape (n, M), float64."""
        return torch.stack([result.objectives for result in self.results])

    @property
    def residuals(self) -> Tensor:
        """kkt_residual, shape (n,), float64."""
        return torch.tensor([result.kkt_residual for result in self.results], dtype=torch.float64)

    @property
    def converged(self) -> bool:
        """Whether every point met the tolerance."""
        return all(result.converged for result in self.results)

    @property
    def nondominated(self) -> tuple[bool, ...]:
        """For each point whether no other point dominates it."""
        return tuple(map(bool, nondominated(self.objectives.numpy())))

    def hypervolume(self, reference: ArrayLike | None = None) -> Hypervolume:
        """Dominated hypervolume with the reference point used, see `indicators.hypervolume`."""
        return hypervolume(self.objectives.numpy(), reference)


def explore(
    problem: Problem | StochasticProblem,
    preferences: Sequence[Preference | Sequence[float]],
    method: MethodName | Method | None = None,
    *,
    x0: Tensor | ArrayLike,
    steps: int = 1000,
    tol: float | None = None,
    shift: Shift = None,
    warm_start: bool = True,
    restarts: Sequence[Tensor | ArrayLike] = (),
    normalise: bool = False,
) -> Exploration:
    """The front of a problem: `minimize` for each of many preferences.

    With warm starts the preferences are taken from neighbour to neighbour, each starting from the
    solution of the nearest one that has been solved (from x0 again if that does not converge). At
    the end each preference is compared with the points of all others: where one of them has a
    lower max_m p_m f_m (Σ p_m f_m for "linear") the run had ended in a local minimum, and is done
    again from there. "mgda", where p has no say, always starts from x0.

    Args:
        problem: as for `minimize`.
        preferences: such as `das_dennis(2, 20)`; the "wc" methods need all weights positive.
        method: as for `minimize`.
        x0: start point.
        steps: the most steps for each run.
        tol: as for `minimize`, by default 1e-6 (1.2e-5 in float32).
        shift: as for `minimize`; one that a method object carries counts as well.
        warm_start: False starts every preference from x0 alone.
        restarts: more start points, tried for every preference; the best solution is kept. For
            problems that are not convex, where each run may end in a local minimum.
        normalise: whether preferences are for objectives measured from the ideal point in parts of
            their range on the front (`Exploration.normalization`), for 2 M runs more, so that
            their units do not matter. For "wc_augmented" without a shift of its own.

    A preference that `minimize` refuses, such as one whose objectives are not finite at a start, is
    left out with a `FrontWarning`, which also tells of many preferences that end at one point.

    Raises:
        InputError: no preferences, or what `minimize` raises for all of them.

    >>> from paretune.moo import test_problems
    >>> known = test_problems.toy()
    >>> front = explore(known.problem, [(0.25, 0.75), (0.75, 0.25)], x0=known.x0)
    >>> front.points.shape, front.converged
    (torch.Size([2, 2]), True)
    """
    asked = tuple(Preference.of(preference) for preference in preferences)
    if not asked or len({len(preference) for preference in asked}) > 1:
        raise InputError("explore needs at least one preference, all with as many weights.")
    start, others = as_tensor(x0), [as_tensor(other) for other in restarts]
    chosen = choose_method(problem, method, shift=shift)
    tol = default_tolerance(start.dtype, 1e-6) if tol is None else tol

    def solve(preference: Preference, x: Tensor) -> Result:
        return minimize(problem, preference, chosen, x0=x, steps=steps, tol=tol)

    scale, aims = None, asked
    if normalise:
        if not isinstance(chosen, WCAugmented) or chosen.shift is not None:
            raise InputError("normalise=True needs method 'wc_augmented', without a shift.")
        plain = chosen

        def raised(preference: Preference, shift: Sequence[float], x: Tensor) -> Result:
            method = replace(plain, shift=tuple(shift))
            return minimize(problem, preference, method, x0=x, steps=steps, tol=tol)

        scale = find_normalization(raised, asked[0].names, start)
        chosen = replace(chosen, shift=tuple(scale.shift))
        aims = tuple(map(scale.scaled, asked))
    ranking = Ranking(chosen)
    search = _Search(aims, solve, ranking)
    search.runs.extend(scale.runs if scale is not None else ())
    warm = warm_start and ranking.by_preference
    for n, neighbour in _tour(asked):
        near = search.kept.get(neighbour) if warm and neighbour is not None else None
        if near is not None and near.converged:
            search.run(n, near.x)
        if n not in search.kept or not search.kept[n].converged:
            search.run(n, start)
        for other in others:
            search.run(n, other)
    if not search.kept:
        raise search.failed[0]
    if warm:
        search.share()
    search.warn()
    found = sorted(search.kept)
    return Exploration(
        tuple(asked[n] for n in found),
        tuple(search.kept[n] for n in found),
        sum(found.n_gradient_evaluations for found in search.runs),
        sum(found.n_function_evaluations for found in search.runs),
        scale,
    )


class _Search:
    """The best result so far for each preference, and all runs there were."""

    def __init__(
        self,
        preferences: Sequence[Preference],
        solve: Callable[[Preference, Tensor], Result],
        ranking: Ranking,
    ) -> None:
        self.preferences, self.solve, self.ranking = preferences, solve, ranking
        self.kept: dict[int, Result] = {}
        self.runs: list[Result] = []
        self.failed: dict[int, InputError] = {}

    def run(self, n: int, x: Tensor) -> None:
        """Solve for preference n from x, and keep the better result."""
        preference = self.preferences[n]
        try:
            found = self.solve(preference, x)
        except InputError as error:
            self.failed[n] = error
            return
        self.runs.append(found)
        if n not in self.kept or self.ranking.better(preference, found, self.kept[n]):
            self.kept[n] = found

    def share(self) -> None:
        """Run again from other preferences' points, where one is better than a preference's own."""
        tried: set[tuple[int, int]] = set()
        while pairs := [pair for pair in self.improvable() if pair not in tried]:
            for n, k in pairs:
                self.run(n, self.kept[k].x)
            tried.update(pairs)

    def warn(self) -> None:
        """Tell of preferences that failed, and of many that ended at one point."""
        missing = {n: error for n, error in self.failed.items() if n not in self.kept}
        if missing:
            n, error = next(iter(missing.items()))
            warnings.warn(
                f"{len(missing)} of {len(self.preferences)} preferences are left out, such as "
                f"{self.preferences[n].weights}: {error}",
                FrontWarning,
                stacklevel=3,
            )
        points = torch.stack([found.objectives for found in self.kept.values()])
        spread = (points.amax(0) - points.amin(0)).clamp(min=torch.finfo(points.dtype).tiny)
        near = ((points[:, None] - points[None]).abs() <= _SAME * spread).all(-1)
        most = int(near.sum(1).max())
        if self.ranking.by_preference and most >= max(4, len(points) // 4):
            where = points[int(near.sum(1).argmax())].tolist()
            warnings.warn(
                f"{most} of {len(points)} preferences end at the same point, F = "
                f"({', '.join(f'{value:.4g}' for value in where)}). The front may have a gap or an "
                "end there, or runs may have stopped at a stationary point that is no minimum: try "
                "restarts, or a shift that measures from the ideal point.",
                FrontWarning,
                stacklevel=3,
            )

    def improvable(self) -> list[tuple[int, int]]:
        """The (n, k) where the point of preference k, the best there is for n, beats n's own."""
        numbers, runs = list(self.kept), list(self.kept.values())
        best = self.ranking.lowest([self.preferences[n] for n in numbers], runs)
        return [(n, numbers[k]) for n, k in zip(numbers, best, strict=True) if numbers[k] != n]


def _tour(preferences: Sequence[Preference]) -> list[tuple[int, int | None]]:
    """An order, with the nearest earlier one for each; the most even preference comes first."""
    weights = np.array([preference.weights for preference in preferences])
    first = int(((weights - 1 / weights.shape[1]) ** 2).sum(1).argmin())
    order: list[tuple[int, int | None]] = [(first, None)]
    nearest = np.full(len(weights), first)
    gaps = ((weights - weights[first]) ** 2).sum(1)
    gaps[first] = math.inf
    for _ in range(len(weights) - 1):
        n = int(gaps.argmin())
        order.append((n, int(nearest[n])))
        distances = ((weights - weights[n]) ** 2).sum(1)
        closer = (distances < gaps) & np.isfinite(gaps)
        gaps[closer], nearest[closer] = distances[closer], n
        gaps[n] = math.inf
    return order
