"""MoCo: multi-objective gradient correction, with hypergradients by Neumann series."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from paretune.moo.bilevel.method import BilevelMethod, Iterate
from paretune.moo.bilevel.oracle import Oracle
from paretune.moo.bilevel.steps import Optimizer, Stepper, as_multipliers, check_options, norm
from paretune.moo.solvers.multipliers import project_simplex


@dataclass(frozen=True, kw_only=True)
class MoCo(BilevelMethod):
    """MoCo (H. Fernando et al., "Mitigating Gradient Bias in Multi-objective Learning", ICLR 2023).

        y   ← y − β ∇_y g(x, y),                          T times, without a graph
        h_s = ∇_x f_s − Jᵀ v_s,                           v_s = β Σ_{j=0}^{N} (I − βH)^j ∇_y f_s
        Y   ← Y + τ_k (h − Y),                            row by row, from 0
        w   ← proj_simplex(w − γ_k (Y Yᵀ + ρI) w),        from 1/S
        x   ← x − α Yᵀ w,                                 τ_k = τ k^−decay, γ_k = γ k^−decay

    The tracking of Y and w follows the authors' code. The lower level's part (the first two lines)
    is RECONSTRUCTED: the paper's nested variant has no public code and its text was not at hand.
    The preference plays no part.

    Per step T + S gradients and S (N + 1) products. τ, γ and decay are the authors' defaults, T and
    N ours; the WC-Penalty paper runs T = 50, α = 1e-3, β = 1e-8, γ = 1e-3, ρ = 1e-6. β must be
    below 1/‖H‖, or the series diverges.

    Departures: no factor 2 before Y Yᵀ, as in the paper (their code has it, without ρ); none of the
    LibMTL port's softmax and rescaling of gradients.

    Attributes:
        inner_steps: T.
        neumann_terms: N.
        alpha: step on x.
        beta: step on y, and of the Neumann series.
        tracking: τ, at most 1.
        gamma: step on w, in units of 1 / gradient².
        rho: ρ >= 0.
        decay: power by which τ and γ shrink; 0 for constant ones.
        optimizer: None for plain steps on x (the paper), or "adam".
    """

    uses_preference: ClassVar[bool] = False

    inner_steps: int = 10
    neumann_terms: int = 10
    alpha: float = 0.1
    beta: float = 0.1
    tracking: float = 0.1
    gamma: float = 0.1
    rho: float = 0.0
    decay: float = 0.5
    optimizer: Optimizer = None

    def __post_init__(self) -> None:
        check_options(self, ("alpha", "beta", "tracking", "gamma"), ("inner_steps",))

    def iterate(
        self, oracle: Oracle, lam: tuple[float, ...], x: Tensor, y: Tensor
    ) -> Iterator[Iterate]:
        """See `BilevelMethod`; the residual is ‖(Yᵀw, h − Y, ∇_y g before the last inner step)‖."""
        move = Stepper(x, self.alpha, self.optimizer)
        weights = x.new_full((len(lam),), 1 / len(lam))
        tracked = x.new_zeros(len(lam), x.numel())
        for step in itertools.count(1):
            fade = step**-self.decay
            for _ in range(self.inner_steps):
                slope = oracle.lower_y(x, y)
                y = y - self.beta * slope
            rows, adjoints = self.hypergradients(oracle, x, y)
            tracked = tracked + self.tracking * fade * (rows - tracked)
            gradient = tracked @ (tracked.T @ weights) + self.rho * weights
            moved = (weights - self.gamma * fade * gradient).tolist()
            weights = weights.new_tensor(project_simplex(moved))
            direction = weights @ tracked
            x = move(direction)
            adjoint = torch.tensordot(weights.to(y), adjoints, dims=1)
            yield Iterate(
                x,
                y,
                *as_multipliers(weights, lam, adjoint),
                residual=norm(direction, rows - tracked, slope),
            )

    def hypergradients(self, oracle: Oracle, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """h_s, shape (S, p), and v_s, shape (S, *y.shape)."""
        rows_x, rows_y = oracle.upper_rows(x, y)
        rows, adjoints = [], []
        for gx, gy in zip(rows_x, rows_y, strict=True):
            term = total = self.beta * gy.reshape(y.shape)
            for _ in range(self.neumann_terms):
                term = term - self.beta * oracle.products(x, y, term)[1]
                total = total + term
            across, _ = oracle.products(x, y, total)
            rows.append(gx - across.flatten())
            adjoints.append(total)
        return torch.stack(rows), torch.stack(adjoints)
