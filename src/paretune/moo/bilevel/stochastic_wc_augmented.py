"""The augmented Lagrangian by first-order steps, for mini-batches and large models."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.bilevel.flat import FlatProblem
from paretune.moo.bilevel.method import BilevelMethod, Iterate
from paretune.moo.bilevel.oracle import Oracle
from paretune.moo.numerics.kkt import best_rho
from paretune.moo.shift import Shift, check_finite, read_shift
from paretune.moo.solvers.augmented import AugmentedLagrangian
from paretune.moo.solvers.loop import CountedProblem
from paretune.moo.solvers.multipliers import StepwiseMultipliers


@dataclass(frozen=True, kw_only=True)
class StochasticWCAugmented(BilevelMethod):
    """Adam on x and y, a small step of the multipliers after each: `StepwiseMultipliers`.

    A step costs one gradient of g, one combined gradient of F and one product, whatever S: 4
    gradients, and S evaluations of F. It works on full batches as well; there `WCAugmented` needs
    fewer steps.

    Attributes:
        lr: Adam's step on y.
        x_lr: Adam's step on x; None for the same.
        u, v: penalties; None estimates them at the start from the curvature of F and the size of
            ∇h, as `WCAugmented` does.
        sigma: step of ν, at most u; None for u / 20.
        tau: step of w0.
        shift: what is added to the objectives, one value or one each.
    """

    lr: float = 0.03
    x_lr: float | None = None
    u: float | None = None
    v: float | None = None
    sigma: float | None = None
    tau: float = 0.1
    shift: Shift = None

    def __post_init__(self) -> None:
        for name in ("lr", "x_lr"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be finite and above 0, got {value}.")

    def iterate(
        self, oracle: Oracle, lam: tuple[float, ...], x: Tensor, y: Tensor
    ) -> Iterator[Iterate]:
        shift = read_shift(self.shift, len(lam))
        multipliers = self.begin(oracle, lam, shift, x, y)
        x, y = x.clone(), y.clone()
        optimizer = torch.optim.Adam(
            [{"params": [x], "lr": self.x_lr or self.lr}, {"params": [y], "lr": self.lr}]
        )
        while True:
            values = [f + c for f, c in zip(oracle.values(x, y).tolist(), shift, strict=True)]
            chebyshev = [p * f for p, f in zip(lam, values, strict=True)]
            omega = multipliers.weights(chebyshev)
            h = oracle.lower_y(x, y)
            nu = multipliers.direction(h)
            fx, fy = oracle.upper(x, y, [w * p for w, p in zip(omega, lam, strict=True)])
            gx, gy = oracle.products(x, y, nu)
            x.grad, y.grad = fx + gx, fy + gy
            residual = math.inf
            if not oracle.stochastic:
                rho = best_rho(chebyshev, omega)
                slack = [min(w, rho - a) for w, a in zip(omega, chebyshev, strict=True)]
                residual = math.hypot(
                    float(x.grad.norm()), float(y.grad.norm()), float(h.norm()), *slack
                )
            optimizer.step()
            multipliers.update(h, omega)
            yield Iterate(
                x.detach().clone(),
                y.detach().clone(),
                torch.tensor(omega, dtype=torch.float64),
                nu,
                residual,
            )

    def begin(
        self, oracle: Oracle, lam: tuple[float, ...], shift: list[float], x: Tensor, y: Tensor
    ) -> StepwiseMultipliers:
        """The multipliers at the start, with estimated penalties where none are given."""
        u, v = self.u, self.v
        flat = FlatProblem.of(oracle, x.shape, y.shape)
        point = flat.at(flat.join(x, y))
        check_finite(point.objectives.tolist(), "at the start point")
        if u is None or v is None:
            guess = AugmentedLagrangian(CountedProblem(flat), lam, shift, point)
            u, v = u or guess.penalties[0], v or guess.penalties[1]
        return StepwiseMultipliers(len(lam), u, v, self.sigma or u / 20, self.tau)
