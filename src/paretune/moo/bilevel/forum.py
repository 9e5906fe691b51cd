"""FORUM: a first-order multi-gradient method on the value function of the lower level."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from paretune.moo.bilevel.method import BilevelMethod, Iterate
from paretune.moo.bilevel.oracle import Oracle
from paretune.moo.bilevel.steps import Optimizer, Stepper, as_multipliers, check_options, norm
from paretune.moo.numerics.simplex_qp import simplex_qp


@dataclass(frozen=True, kw_only=True)
class FORUM(BilevelMethod):
    """FORUM (F. Ye et al., "A First-Order Multi-Gradient Algorithm", ECAI 2024).

    On z = (x, y) with the constraint q(z) = g(x, y) − g(x, y^T) <= 0, where y^T is y after T
    gradient steps on g(x, ·), held fixed: no second derivatives, no graph through the steps.

        λ* = argmin over the simplex of ½‖Σ λ_s ∇f_s + ν(λ) ∇q‖² − ν(λ) ρ ‖∇q‖²
        ν(λ) = max(Σ λ_s (ρ − ⟨∇q, ∇f_s⟩ / ‖∇q‖²), 0)
        λ ← λ + k^(−3/4) (λ* − λ),   z ← z − μ (Σ λ_s ∇f_s + ν(λ) ∇q)

    the dual of min over d of max_s ⟨∇f_s, d⟩ + ½‖d‖² with ⟨∇q, d⟩ <= −ρ‖∇q‖². The preference plays
    no part.

    Per step T + 1 + S gradients and no products; memory S + 2 gradients, whatever T is. Defaults
    are those of the authors' code; the WC-Penalty paper runs T = 50, ρ = 2, α = 1e-3, β = 1e-8, and
    reports that memory runs out beyond T = 2, which needs a graph that the method does not.

    Departures: the quadratic program is solved exactly and with the factor ½ of the dual, which the
    authors' code lacks; gradients are not normalised before it; λ's averaging shrinks by steps,
    theirs by epochs.

    Attributes:
        inner_steps: T.
        eta: step of the inner loop.
        rho: ρ > 0, how fast q is to shrink.
        alpha: step μ on x.
        beta: step μ on y; the paper has one for both.
        optimizer: "adam" (the authors' code) or None for plain steps (the paper), on x and y.
    """

    uses_preference: ClassVar[bool] = False

    inner_steps: int = 5
    eta: float = 0.1
    rho: float = 0.1
    alpha: float = 1e-3
    beta: float = 1e-4
    optimizer: Optimizer = "adam"

    def __post_init__(self) -> None:
        check_options(self, ("eta", "rho", "alpha", "beta"), ("inner_steps",))

    def iterate(
        self, oracle: Oracle, lam: tuple[float, ...], x: Tensor, y: Tensor
    ) -> Iterator[Iterate]:
        """See `BilevelMethod`; the residual is ‖(Σ λ_s ∇f_s + ν ∇q, ∇_y g)‖."""
        moves = [
            Stepper(part, lr, self.optimizer) for part, lr in ((x, self.alpha), (y, self.beta))
        ]
        weights: Tensor | None = None
        for step in itertools.count(1):
            constraint = self.constraint_gradient(oracle, x, y)
            rows = oracle.upper_rows(x, y)
            size = norm(*constraint)
            units = [part.flatten() / (size or 1.0) for part in constraint]
            along = torch.stack(
                [(part @ unit).double().cpu() for part, unit in zip(rows, units, strict=True)]
            ).sum(0)
            for part, unit in zip(rows, units, strict=True):
                part.addr_(along.to(part), unit, alpha=-1)
            gramians = [(part @ part.T).double().cpu() for part in rows]
            best = constrained_weights(torch.stack(gramians).sum(0), along, self.rho * size)
            weights = best if weights is None else weights + step**-0.75 * (best - weights)
            # Along ∇q the weighted gradients and ν ∇q add up to the larger of both demands.
            along_constraint = max(self.rho * size, float(weights @ along))
            directions = [
                weights.to(part) @ part + along_constraint * unit
                for part, unit in zip(rows, units, strict=True)
            ]
            x, y = (move(direction) for move, direction in zip(moves, directions, strict=True))
            omega, _ = as_multipliers(weights, lam)
            yield Iterate(x, y, omega, residual=norm(*directions, constraint[1]))

    def constraint_gradient(self, oracle: Oracle, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """∇_x q and ∇_y q, y^T held fixed."""
        _, gx, gy = oracle.lower(x, y)
        end = y - self.eta * gy
        for _ in range(self.inner_steps - 1):
            end = end - self.eta * oracle.lower_y(x, end)
        return gx - oracle.lower(x, end)[1], gy


def constrained_weights(across: Tensor, along: Tensor, least: float) -> Tensor:
    """FORUM's λ*, exactly, by one or two quadratic programs over the simplex.

    With ν eliminated the dual is ½λᵀ(A + ttᵀ)λ − ½ max(r − tᵀλ, 0)², convex. Where ν is positive
    that is ½λᵀAλ + r tᵀλ up to a constant, which nowhere exceeds it: if its minimiser has
    r >= tᵀλ, it is the answer. Otherwise ν = 0 at the answer, which then is that of MGDA.

    Args:
        across: A, the Gramian of the parts of ∇f_s orthogonal to ∇q, shape (S, S), float64.
        along: t, the components of ∇f_s along ∇q / ‖∇q‖, shape (S,), float64.
        least: r = ρ‖∇q‖ >= 0, 0 without a constraint.

    Returns:
        λ*, shape (S,), float64; not a number where the arguments are not finite.
    """
    if not (bool(across.isfinite().all()) and bool(along.isfinite().all())):
        return torch.full_like(along, math.nan)
    inside = simplex_qp(across / 2, least * along).x
    if float(inside @ along) <= least:
        return inside
    return simplex_qp(across + torch.outer(along, along), torch.zeros_like(along)).x
