"""One-step lookahead: x moves along what the next step on y does to the objectives."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.bilevel.method import BilevelMethod, Iterate
from paretune.moo.bilevel.oracle import Oracle
from paretune.moo.bilevel.steps import check_options
from paretune.moo.solvers.multipliers import DampedMultipliers

_BETAS, _EPS = (0.9, 0.999), 1e-8


@dataclass(frozen=True, kw_only=True)
class Lookahead(BilevelMethod):
    """Adam on y for g alone; Adam on x for F where that step leads: OURS, after DoGE and others.

    From y the step goes to about y − η P ∇_y g(x, y), P = 1/(√v̂ + ε) after it, so that to first
    order x changes Σ ω_s λ_s f_s there by

        ∇_x F − η (∇²_yx g)ᵀ P ∇_y F,   F = Σ ω_s λ_s f_s,

    which is divided by η ‖∇_y g‖_P ‖∇_y F‖_P. ω are the multipliers of max_s λ_s f_s, as in
    `StochasticWCAugmented`. y never moves for the objectives, so nothing here can pass off an
    infeasible y as progress, and no lower level has to be solved: what x is for is the path that y
    takes, one step at a time. Where y(x) is what matters, that is short-sighted.

    A step costs two gradients, one product and one evaluation of F.

    Attributes:
        lr: Adam's step on y.
        x_lr: Adam's step on x.
        v: weight of the spread of λ∘F in ω; None for 1 / the spread at the start.
        tau: step of ω's mean, above 0, at most 1.
    """

    lr: float = 0.03
    x_lr: float = 0.05
    v: float | None = None
    tau: float = 0.1

    def __post_init__(self) -> None:
        check_options(self, ("lr", "x_lr", "tau"))
        if self.v is not None and not (math.isfinite(self.v) and self.v > 0):
            raise InputError(f"v must be finite and above 0, got {self.v}.")
        if self.tau > 1:
            raise InputError(f"tau must be at most 1, got {self.tau}.")

    def iterate(
        self, oracle: Oracle, lam: tuple[float, ...], x: Tensor, y: Tensor
    ) -> Iterator[Iterate]:
        """See `BilevelMethod`; nothing is measured that would be 0 at a solution."""
        x, y, v = x.clone(), y.clone(), self.v
        of_x = torch.optim.Adam([x], self.x_lr, _BETAS, _EPS)
        of_y = torch.optim.Adam([y], self.lr, _BETAS, _EPS)
        multipliers = DampedMultipliers(len(lam))
        while True:
            heights = [p * f for p, f in zip(lam, oracle.values(x, y).tolist(), strict=True)]
            v = v or 1 / ((max(heights) - min(heights)) or 1.0)
            omega = multipliers.omega(heights, v)
            multipliers.w0 = [
                b + self.tau * (w - b) for b, w in zip(multipliers.w0, omega, strict=True)
            ]
            fx, fy = oracle.upper(x, y, [w * p for w, p in zip(omega, lam, strict=True)])
            before, h = y.detach().clone(), oracle.lower_y(x, y)
            y.grad = h
            of_y.step()
            moved = of_y.state[y]
            scale = 1 - _BETAS[1] ** float(moved["step"])
            p = 1 / ((moved["exp_avg_sq"] / scale).sqrt() + _EPS)
            px, _ = oracle.products(x, before, p * fy)
            size = math.sqrt(float((h * p * h).sum()) * float((fy * p * fy).sum()))
            if (
                size == 0
            ):  # y stands still, but its sets pull it: there is no length to compare with
                size = float(px.norm())
            if size > 0:
                x.grad = fx / (self.lr * size) - px / size
                of_x.step()
            yield Iterate(
                x.detach().clone(), y.detach().clone(), torch.tensor(omega, dtype=torch.float64)
            )
