"""WC-SOBA: SOBA's single loop on the weighted-Chebyshev problem."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.bilevel.method import BilevelMethod, Iterate
from paretune.moo.bilevel.oracle import Oracle
from paretune.moo.bilevel.soba import directions
from paretune.moo.bilevel.steps import check_options, norm
from paretune.moo.solvers.multipliers import project_simplex


@dataclass(frozen=True, kw_only=True)
class WCSOBA(BilevelMethod):
    """SOBA for min over x of max_s λ_s f_s(x, y*(x)), λ the preference: OURS, in no paper.

        ω  = proj_simplex(ω̄ + v λ∘F(x, y)),   ω̄ ← ω̄ + τ (ω − ω̄),   ω̄ from 1/S
        then a step of SOBA on Σ ω_s λ_s f_s

    It is the fair baseline for the weighted-Chebyshev methods: the preference decides where it
    ends. ω is the exact maximiser of ωᵀ(λ∘F) − ‖ω − ω̄‖² / 2v, so with ω̄ = 0 and no averaging it
    would be a penalty method; the averaging removes the bias. SOBA's adjoint is, up to its sign,
    the multiplier of ∇_y g = 0. There is no penalty on ∇_y g, and no safeguard: with large steps
    ω oscillates.

    Two gradients, one product and one evaluation of F a step. β must stay below 2/‖H‖.

    Attributes:
        alpha: step on x.
        beta: step on y and on the adjoint.
        decay: power by which both steps shrink; 0 for constant ones.
        v: weight of the penalty, in units of 1 / f.
        tau: part of the way that ω̄ moves in a step, above 0, at most 1.
    """

    alpha: float = 0.1
    beta: float = 0.1
    decay: float = 0.0
    v: float = 0.3
    tau: float = 0.1

    def __post_init__(self) -> None:
        check_options(self, ("alpha", "beta", "v", "tau"))
        if self.tau > 1:
            raise InputError(f"tau must be at most 1, got {self.tau}.")

    def iterate(
        self, oracle: Oracle, lam: tuple[float, ...], x: Tensor, y: Tensor
    ) -> Iterator[Iterate]:
        """See `BilevelMethod`; the residual adds ‖ω − ω̄‖ / v to that of `SOBA`."""
        adjoint, preference = torch.zeros_like(y), torch.tensor(lam, dtype=torch.float64)
        mean = torch.full_like(preference, 1 / len(lam))
        for step in itertools.count(1):
            fade = step**-self.decay
            heights = preference * oracle.values(x, y).to(preference)
            omega = mean.new_tensor(project_simplex((mean + self.v * heights).tolist()))
            away = omega - mean
            mean = mean + self.tau * away
            down = directions(oracle, x, y, adjoint, omega * preference)
            x = x - self.alpha * fade * down.x
            y = y - self.beta * fade * down.y
            adjoint = adjoint - self.beta * fade * down.v
            yield Iterate(x, y, omega, -adjoint, residual=norm(*down, away / self.v))
