"""Re-solving the lower level at a final x, so that infeasibility cannot pass for progress."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.bilevel.oracle import Oracle
from paretune.moo.bilevel.problem import AnyBilevel, StochasticBilevelProblem
from paretune.moo.numerics.lbfgs import LBFGS

_HALVINGS = 20


@dataclass(frozen=True)
class Polished:
    """The lower level after re-solving it.

    Attributes:
        y: where the descent on g(x, ·) ended.
        objectives: F(x, y), shape (S,), float64 on the CPU.
        lower_gradient_norm_before: ‖∇_y g‖ at the y that was given.
        lower_gradient_norm_after: ‖∇_y g‖ at the end.
        converged: whether the latter is at most `tol`.
        n_gradients: gradients of g that it took.
    """

    y: Tensor
    objectives: Tensor
    lower_gradient_norm_before: float
    lower_gradient_norm_after: float
    converged: bool
    n_gradients: int


def polish_lower(
    problem: AnyBilevel, x: Tensor, y: Tensor, steps: int = 500, tol: float = 1e-8
) -> Polished:
    """Minimise g(x, ·) from y by L-BFGS on the full batch, and measure F there.

    Where g(x, ·) is convex the objectives are then those of the true bilevel problem at x, up to
    what is left of ‖∇_y g‖ (and, with several minimisers, for the one that the descent from y
    finds). Where it is not, they are those of the local minimum near y.

    Args:
        problem: a stochastic problem is polished on its full batches.
        x: upper variable, held fixed.
        y: where to start.
        steps: the most L-BFGS iterations: the budget.
        tol: on ‖∇_y g‖.

    Raises:
        InputError: g or its gradient is not finite at (x, y).
    """
    if steps < 0 or not tol >= 0:
        raise InputError(f"steps and tol must be at least 0, got {steps} and {tol}.")
    exact = problem.full if isinstance(problem, StochasticBilevelProblem) else problem
    oracle = Oracle(exact)
    y, before, after = descend_lower(oracle, x, y, steps, tol)
    return Polished(
        y=y,
        objectives=oracle.values(x, y).double().cpu(),
        lower_gradient_norm_before=before,
        lower_gradient_norm_after=after,
        converged=after <= tol,
        n_gradients=oracle.n_gradients,
    )


def descend_lower(
    oracle: Oracle, x: Tensor, y: Tensor, steps: int, tol: float
) -> tuple[Tensor, float, float]:
    """The L-BFGS of `polish_lower`: y at its end, and ‖∇_y g‖ before and after."""
    value, _, gradient = oracle.lower(x, y)
    before = after = float(gradient.norm())
    if not (math.isfinite(value) and math.isfinite(before)):
        raise InputError("The lower level or its gradient is not finite at (x, y).")
    curvature, y = LBFGS(), y.detach()
    for _ in range(steps):
        if after <= tol:
            break
        step = curvature.solve(gradient.flatten())
        if step is None:  # a first step, short since its scale is not known
            step = gradient.flatten() * (0.1 * max(1.0, float(y.norm())) / after)
        found = _search(oracle, x, y, value, gradient, step.reshape(y.shape))
        if found is None:
            break
        trial, value, reached = found
        curvature.add((trial - y).flatten(), (reached - gradient).flatten())
        y, gradient, after = trial, reached, float(reached.norm())
    return y, before, after


def _search(
    oracle: Oracle, x: Tensor, y: Tensor, value: float, gradient: Tensor, step: Tensor
) -> tuple[Tensor, float, Tensor] | None:
    """Backtrack from y − step to a sufficient decrease (Armijo), up to rounding."""
    slope = float((gradient * step).sum())
    slack = 64 * torch.finfo(y.dtype).eps * abs(value)
    for k in range(_HALVINGS):
        trial = y - step / 2**k
        height, _, reached = oracle.lower(x, trial)
        if height <= value - 1e-4 * slope / 2**k + slack and bool(reached.isfinite().all()):
            return None if torch.equal(trial, y) else (trial, height, reached)
    return None
