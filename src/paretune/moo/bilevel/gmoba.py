"""gMOBA: a single loop with one adjoint an objective and a multi-gradient step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from paretune.moo.bilevel.method import BilevelMethod, Iterate
from paretune.moo.bilevel.oracle import Oracle
from paretune.moo.bilevel.steps import as_multipliers, check_options, min_norm_weights, norm


@dataclass(frozen=True, kw_only=True)
class GMOBA(BilevelMethod):
    """gMOBA (X. Yang, W. Yao, H. Yin, S. Zeng and J. Zhang, Sci. China Math. 67, 2024).

        y   ← y − β ∇_y g(x, y)
        v_s ← v_s − η (H v_s − ∇_y f_s)                  at the new y, from 0
        d_s = ∇_x f_s − Jᵀ v_s
        x   ← x − α Σ λ_s d_s,                           λ of smallest ‖Σ λ_s d_s‖ over the simplex

    RECONSTRUCTED: only the abstract and the problem of the paper were at hand and no public code
    was found, so the defaults are ours too. The last line is the paper's kind of subproblem,
    min over x' of max_s ⟨d_s, x' − x⟩ + ‖x' − x‖² / 2α, without the nonsmooth terms and the
    constraint set it allows. The preference plays no part.

    Per step S + 1 gradients and 2S products; S adjoints are held. β and η must stay below 2/‖H‖.

    Attributes:
        alpha: step on x.
        beta: step on y.
        eta: step on the adjoints.
    """

    uses_preference: ClassVar[bool] = False

    alpha: float = 0.1
    beta: float = 0.1
    eta: float = 0.1

    def __post_init__(self) -> None:
        check_options(self, ("alpha", "beta", "eta"))

    def iterate(
        self, oracle: Oracle, lam: tuple[float, ...], x: Tensor, y: Tensor
    ) -> Iterator[Iterate]:
        """See `BilevelMethod`; the residual is ‖(Σ λ_s d_s, ∇_y g, H v_s − ∇_y f_s …)‖."""
        adjoints = y.new_zeros(len(lam), *y.shape)
        while True:
            slope = oracle.lower_y(x, y)
            y = y - self.beta * slope
            rows_x, rows_y = oracle.upper_rows(x, y)
            errors = []
            for s, wanted in enumerate(rows_y):
                errors.append(oracle.products(x, y, adjoints[s])[1] - wanted.reshape(y.shape))
                adjoints[s] -= self.eta * errors[-1]
                rows_x[s] -= oracle.products(x, y, adjoints[s])[0].flatten()
            weights = min_norm_weights(rows_x)
            direction = weights @ rows_x
            x = x - self.alpha * direction.reshape(x.shape)
            adjoint = torch.tensordot(weights.to(y), adjoints, dims=1)
            yield Iterate(
                x,
                y,
                *as_multipliers(weights, lam, adjoint),
                residual=norm(direction, slope, *errors),
            )
