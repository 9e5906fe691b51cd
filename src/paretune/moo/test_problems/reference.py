"""What a test problem is, and the one-dimensional searches that give its answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.problem import Problem

Array = NDArray[np.float64]
Weights = tuple[float, ...]


def _no_front(count: int) -> Array:
    raise InputError("The Pareto front of this problem is not known in closed form.")


def _no_solution(p: Weights) -> Array:
    raise InputError("The weighted-Chebyshev solution of this problem is not known.")


@dataclass(frozen=True)
class KnownProblem:
    """A problem with its answers.

    Attributes:
        problem: the objectives and constraints.
        n_objectives: M.
        x0: a start point off the Pareto set; it need not satisfy the constraints.
        front: n -> points spread over the Pareto front, about n of them, shape (n', M).
        solution: p -> the z, of x0's shape, that minimises max_m p_m f_m(z) over the feasible
            set, for positive p. It and `front` raise InputError where they are not known.
    """

    problem: Problem
    n_objectives: int
    x0: Tensor
    front: Callable[[int], Array] = _no_front
    solution: Callable[[Weights], Array] = _no_solution

    def chebyshev(self, p: Weights) -> Array:
        """F at the minimiser of max_m p_m f_m, shape (M,), for positive p."""
        with torch.no_grad():
            return self.problem.evaluate(torch.as_tensor(self.solution(p))).numpy()


def positive(p: Weights, size: int) -> Weights:
    """p itself; InputError unless it has `size` positive weights."""
    if len(p) != size or min(p) <= 0:
        raise InputError(f"The known Chebyshev point needs {size} positive weights, got {p}.")
    return tuple(p)


def balance(curve: Callable[[float], Array], p: Weights, low: float, high: float) -> float:
    """The t in [low, high] that minimises max(p1 f1, p2 f2) on a curve t -> (f1, f2).

    Along the curve one objective must fall and the other rise: bisection for p1 f1 = p2 f2, which
    ends at the end of the interval where one objective is the larger throughout.
    """
    first, second = positive(p, 2)
    rising = 1 if curve(low)[0] < curve(high)[0] else -1
    for _ in range(200):
        middle = (low + high) / 2
        f1, f2 = curve(middle)
        if rising * (first * f1 - second * f2) > 0:
            high = middle
        else:
            low = middle
    return (low + high) / 2


def lowest(function: Callable[[Array], Array], low: float, high: float) -> float:
    """The t in [low, high] where a function of one variable, given as arrays, is smallest.

    Found among 2001 points, then by zooming in on the best of them; exact to rounding where the
    function has one valley within two grid steps of its lowest point.
    """
    for _ in range(5):  # each narrows the interval 500 times
        grid = np.linspace(low, high, 2001)
        best, step = grid[np.argmin(function(grid))], grid[1] - grid[0]
        low, high = best - 2 * step, best + 2 * step
    return float(best)
