"""MOML: multi-gradient descent on hypergradients through an unrolled lower level."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from paretune.moo.bilevel.method import BilevelMethod, Iterate
from paretune.moo.bilevel.oracle import Oracle
from paretune.moo.bilevel.steps import (
    Optimizer,
    Stepper,
    as_multipliers,
    check_options,
    min_norm_weights,
    norm,
)
from paretune.moo.bilevel.unroll import inner_steps, unrolled_gradient


@dataclass(frozen=True, kw_only=True)
class MOML(BilevelMethod):
    """MOML (F. Ye et al., "Multi-Objective Meta Learning", NeurIPS 2021).

        y^{d+1} = y^d − β ∇_y g(x, y^d),  d = 0 … D − 1,  y^0 where the last step ended
        d_s     = d/dx f_s(x, y^D(x)),    reverse mode through the D steps
        x       ← x − α Σ λ_s d_s,        λ of smallest ‖Σ λ_s d_s‖ over the simplex

    The preference plays no part. Where 0 is in the convex hull of the d_s, which is almost
    everywhere when S − 1 exceeds the effective dimension of x, the method stands still.

    Per step D + S gradients and S·D products. Defaults are those of the authors' code for learning
    task weights; the WC-Penalty paper runs D = 50, α = 1e-3, β = 1e-8.

    Departures: the path of y is kept in place of the graph (same numbers, memory D + 1 vectors; see
    `unroll`); the authors' code normalises each d_s before it chooses λ, the paper and this do
    not; their code moves y by a separate Adam step on training and validation data, here y is y^D.

    Attributes:
        inner_steps: D.
        alpha: step on x.
        beta: step on y.
        optimizer: "adam" (the authors' code) or None for plain steps on x (the paper).
    """

    uses_preference: ClassVar[bool] = False

    inner_steps: int = 1
    alpha: float = 1e-3
    beta: float = 0.1
    optimizer: Optimizer = "adam"

    def __post_init__(self) -> None:
        check_options(self, ("alpha", "beta"), ("inner_steps",))

    def iterate(
        self, oracle: Oracle, lam: tuple[float, ...], x: Tensor, y: Tensor
    ) -> Iterator[Iterate]:
        """See `BilevelMethod`; the residual is ‖(Σ λ_s d_s, ∇_y g(x, y^{D−1}))‖."""
        move = Stepper(x, self.alpha, self.optimizer)
        while True:
            path = inner_steps(oracle, x, y, self.inner_steps, self.beta)
            y, slope = path[-1], (path[-2] - path[-1]) / self.beta
            rows = unrolled_rows(oracle, x, path, self.beta)
            weights = min_norm_weights(rows)
            direction = weights @ rows
            x = move(direction)
            omega, _ = as_multipliers(weights, lam)
            yield Iterate(x, y, omega, residual=norm(direction, slope))


def unrolled_rows(oracle: Oracle, x: Tensor, path: list[Tensor], beta: float) -> Tensor:
    """d/dx f_s(x, y^D(x)) of each objective, shape (S, p)."""
    rows_x, rows_y = oracle.upper_rows(x, path[-1])
    return torch.stack(
        [
            unrolled_gradient(
                oracle, x, path, gx.reshape(x.shape), gy.reshape(path[-1].shape), beta
            )
            for gx, gy in zip(rows_x, rows_y, strict=True)
        ]
    ).flatten(1)
