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
from paretune.moo.descent import Descent
from paretune.moo.indicators import Hypervolume, hypervolume, nondominated
from paretune.moo.kkt import as_tensor
from paretune.moo.linear_scalarization import LinearScalarization
from paretune.moo.optimize import MethodName, minimize
from paretune.moo.preference import Preference
from paretune.moo.problem import Problem, StochasticProblem
from paretune.moo.result import Method, Result
from paretune.moo.wc_augmented import WCAugmented
from paretune.moo.wc_checks import Shift, read_shift
from paretune.moo.wc_penalty import WCPenalty
from paretune.moo.weightings import MGDA, Linear

# A point found for another preference must be this much better, relatively, to start again from it.
_MARGIN = 1e-6


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
        warm_start: False starts every preference from x0.

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
    start = as_tensor(x0)
    runs: list[Result] = []

    def run(n: int, x: Tensor) -> Result:
        found = minimize(problem, asked[n], method, x0=x, steps=steps, tol=tol, shift=shift)
        runs.append(found)
        return found

    score = _score(method, shift, len(asked[0]))
    results: dict[int, Result] = {}
    for n, neighbour in _tour(asked):
        warm = warm_start and score is not None and neighbour is not None
        if warm and neighbour is not None and results[neighbour].converged:
            results[n] = run(n, results[neighbour].x)
            if results[n].converged:
                continue
        cold = run(n, start)
        if n not in results or cold.converged:
            results[n] = cold
    if warm_start and score is not None:
        _leave_local_minima(asked, results, score, run)
    return Exploration(
        asked,
        tuple(results[n] for n in range(len(asked))),
        sum(found.n_gradient_evaluations for found in runs),
        sum(found.n_function_evaluations for found in runs),
    )


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


Score = Callable[[Preference, Tensor], float]


def _score(method: MethodName | Method | None, shift: Shift, size: int) -> Score | None:
    """(p, F) -> what the method minimises; None where the preference has no say."""
    weighting = method.weighting if isinstance(method, Descent) else None
    if method == "mgda" or isinstance(weighting, MGDA):
        return None
    if (
        method == "linear"
        or isinstance(weighting, Linear)
        or isinstance(method, LinearScalarization)
    ):
        return lambda p, values: float(torch.tensor(p.weights, dtype=torch.float64) @ values)
    if isinstance(method, WCPenalty | WCAugmented):
        shift = method.shift
    raised = torch.tensor(read_shift(shift, size), dtype=torch.float64)

    def chebyshev(p: Preference, values: Tensor) -> float:
        weights = torch.tensor(p.weights, dtype=torch.float64)
        return float((weights * (values + raised))[weights > 0].max())

    return chebyshev


def _leave_local_minima(
    preferences: Sequence[Preference],
    results: dict[int, Result],
    score: Score,
    run: Callable[[int, Tensor], Result],
) -> None:
    """Run again, from the better point, where another preference's point is better."""
    for _ in range(len(preferences)):
        improved = False
        for n, p in enumerate(preferences):
            values = {k: score(p, found.objectives) for k, found in results.items()}
            usable = [k for k, found in results.items() if found.converged]
            best = min(usable, key=lambda k: values[k], default=n)
            if values[best] < values[n] - _MARGIN * abs(values[n]):
                again = run(n, results[best].x)
                if again.converged and score(p, again.objectives) < values[n]:
                    results[n], improved = again, True
        if not improved:
            return
