"""`explore`: a front, one preference at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
from paretune.moo.solvers.result import Method, Result


@dataclass(frozen=True)
class Exploration:
    """A front as data: n points, in the order of the preferences that were asked for.

    Attributes:
        preferences: the n preferences.
        results: what `minimize` returned for each of them.
        n_gradient_evaluations: over all runs, those that were not kept included.
        n_function_evaluations: likewise.
    """

    preferences: tuple[Preference, ...]
    results: tuple[Result, ...]
    n_gradient_evaluations: int
    n_function_evaluations: int

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
    tol: float = 1e-6,
    shift: Shift = None,
    warm_start: bool = True,
    restarts: Sequence[Tensor | ArrayLike] = (),
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
        tol: on `kkt_residual`.
        shift: as for `minimize`; one that a method object carries counts as well.
        warm_start: False starts every preference from x0 alone.
        restarts: more start points, tried for every preference; the best solution is kept. For
            problems that are not convex, where each run may end in a local minimum.

    Raises:
        InputError: no preferences, or what `minimize` raises.

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

    def solve(preference: Preference, x: Tensor) -> Result:
        return minimize(problem, preference, chosen, x0=x, steps=steps, tol=tol)

    ranking = Ranking(chosen)
    search = _Search(asked, solve, ranking)
    warm = warm_start and ranking.by_preference
    for n, neighbour in _tour(asked):
        if warm and neighbour is not None and search.kept[neighbour].converged:
            search.run(n, search.kept[neighbour].x)
        if n not in search.kept or not search.kept[n].converged:
            search.run(n, start)
        for other in others:
            search.run(n, other)
    if warm:
        search.share()
    return Exploration(
        asked,
        tuple(search.kept[n] for n in range(len(asked))),
        sum(found.n_gradient_evaluations for found in search.runs),
        sum(found.n_function_evaluations for found in search.runs),
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

    def run(self, n: int, x: Tensor) -> None:
        """Solve for preference n from x, and keep the better result."""
        preference = self.preferences[n]
        found = self.solve(preference, x)
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

    def improvable(self) -> list[tuple[int, int]]:
        """The (n, k) where the point of preference k, the best there is for n, beats n's own."""
        pairs = []
        for n, own in self.kept.items():
            better = own
            for other in self.kept.values():
                if other.converged and self.ranking.below(self.preferences[n], other, better):
                    better = other
            pairs += [(n, k) for k, other in self.kept.items() if other is better is not own]
        return pairs


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
