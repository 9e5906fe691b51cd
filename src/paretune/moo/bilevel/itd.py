"""ITD: iterative differentiation of a weighted sum through an unrolled lower level."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from paretune.moo.bilevel.method import BilevelMethod, Iterate
from paretune.moo.bilevel.oracle import Oracle
from paretune.moo.bilevel.steps import Optimizer, Stepper, as_multipliers, check_options, norm
from paretune.moo.bilevel.unroll import inner_steps, unrolled_gradient


@dataclass(frozen=True, kw_only=True)
class ITD(BilevelMethod):
    """ITD-BiO (K. Ji, J. Yang and Y. Liang, ICML 2021) on f_λ = Σ λ_s f_s, λ the preference.

        y^{d+1} = y^d − β ∇_y g(x, y^d),  d = 0 … D − 1,  y^0 where the last step ended
        x       ← x − α d/dx f_λ(x, y^D(x))

    Per step D + 1 gradients and D products. Defaults are those of the authors' code; the WC-Penalty
    paper runs D = 50 (40 on language models), α = 1e-3, β = 1e-8.

    Departures: the path of y is kept in place of the graph (see `unroll`); y starts where it was,
    where the authors' code starts each task anew.

    Attributes:
        inner_steps: D.
        alpha: step on x.
        beta: step on y.
        optimizer: "adam" (the authors' code) or None for plain steps on x (the paper).
    """

    inner_steps: int = 5
    alpha: float = 1e-3
    beta: float = 0.1
    optimizer: Optimizer = "adam"

    def __post_init__(self) -> None:
        check_options(self, ("alpha", "beta"), ("inner_steps",))

    def iterate(
        self, oracle: Oracle, lam: tuple[float, ...], x: Tensor, y: Tensor
    ) -> Iterator[Iterate]:
        """See `BilevelMethod`; the residual is ‖(d/dx f_λ, ∇_y g(x, y^{D−1}))‖."""
        move = Stepper(x, self.alpha, self.optimizer)
        weights = torch.tensor(lam, dtype=torch.float64)
        omega, _ = as_multipliers(weights, lam)
        while True:
            path = inner_steps(oracle, x, y, self.inner_steps, self.beta)
            y, slope = path[-1], (path[-2] - path[-1]) / self.beta
            slopes = oracle.upper(x, y, weights)
            direction = unrolled_gradient(oracle, x, path, *slopes, self.beta)
            x = move(direction)
            yield Iterate(x, y, omega, residual=norm(direction, slope))
