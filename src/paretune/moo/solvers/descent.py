"""Descent along a weighted sum of gradients: CLAMP's Algorithm 1, MGDA and linear weighting."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.numerics.kkt import KKTParts
from paretune.moo.preference import Preference
from paretune.moo.problem import Problem
from paretune.moo.solvers.result import History, Result
from paretune.moo.weightings import Clamp, Weighting, Weights
from paretune.moo.weightings.clamp_state import ClampState

OptimizerFactory = Callable[[list[Tensor], float], torch.optim.Optimizer]


@dataclass(frozen=True)
class Descent:
    """z ← z − lr · Σ w_m ∇f_m(z), the weights w chosen anew at every step.

    Attributes:
        weighting: a pure weighting, or a `ClampState` (copied, so a run leaves it unchanged).
        lr: step length. With CLAMP and plain steps, the imbalance between two active objectives
            shrinks by 1 − lr·μ/2 a step near the front, so lr·μ must stay below 4.
        optimizer: None for plain steps, "adam", or a function (parameters, lr) -> optimizer that
            is given the combined gradient.
    """

    weighting: Weighting | ClampState = field(default_factory=lambda: Clamp(mu=1.0))
    lr: float = 0.1
    optimizer: Literal["adam"] | OptimizerFactory | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"lr must be finite and above 0, got {self.lr}.")
        if isinstance(self.optimizer, str) and self.optimizer != "adam":
            raise InputError(
                f"Unknown optimizer {self.optimizer!r}; give None for plain steps, 'adam', "
                "or a function (parameters, lr) -> torch optimizer."
            )

    def run(
        self, problem: Problem, preference: Preference, x0: Tensor, steps: int, tol: float
    ) -> Result:
        """Run from x0 until kkt_residual <= tol, a value is not finite, or `steps` are done.

        Raises InputError when the problem does not fit the preference, has constraints or bounds,
        or F(x0) is not finite.
        """
        if problem.constraints is not None or problem.bounds is not None:
            raise InputError(
                "This method handles neither constraints nor bounds; use method='wc_augmented' or "
                "'wc_penalty', or 'linear' with constraints=AffineConstraints(A, b)."
            )
        wanted = [p > 0 for p in preference.weights]
        weigh = self._weigher(preference, steps)
        z = previous = x0.detach().clone()
        optimizer = self._make_optimizer(z)
        trail: list[_Visit] = []
        message = f"Stopped after all {steps} steps."
        for step in range(steps + 1):
            values, rows = (part.double().cpu() for part in problem.linearise(z, wanted))
            gramian = rows @ rows.T
            if not (torch.isfinite(values).all() and torch.isfinite(gramian).all()):
                if not trail:
                    raise InputError("The objectives or their gradients are not finite at x0.")
                z = previous
                message = (
                    f"Stopped at step {step}: the objectives or their gradients were no longer "
                    "finite; try a smaller lr. x is the last finite point."
                )
                break
            weights = weigh(gramian, values, step)
            direction = weights.weights @ rows
            # From the direction itself: the square root of mgda_term would keep half the digits.
            residual = math.hypot(float(direction.norm()), weights.complementarity)
            trail.append(_Visit(values, weights, residual, float(direction.norm())))
            if residual <= tol:
                message = f"Converged after {step} steps: kkt_residual is at most tol."
                break
            if step < steps:
                previous, move = z.clone(), direction.reshape(z.shape).to(z)
                if optimizer is None:
                    z = z - self.lr * move
                else:
                    z.grad = move
                    optimizer.step()
        return _result(z, trail, preference, step + 1, tol, message)

    def _weigher(
        self, preference: Preference, steps: int
    ) -> Callable[[Tensor, Tensor, int], Weights]:
        weighting = copy.deepcopy(self.weighting)
        p = preference.weights
        if isinstance(weighting, ClampState):
            return lambda gramian, losses, step: weighting.step(
                gramian, losses, p, progress=step / max(steps, 1)
            )
        return lambda gramian, losses, step: weighting(gramian, losses, p)

    def _make_optimizer(self, z: Tensor) -> torch.optim.Optimizer | None:
        if self.optimizer is None:
            return None
        if self.optimizer == "adam":
            return torch.optim.Adam([z], lr=self.lr)
        return self.optimizer([z], self.lr)


class _Visit(NamedTuple):
    objectives: Tensor
    weights: Weights
    residual: float
    stationarity: float


def _result(
    x: Tensor,
    trail: list[_Visit],
    preference: Preference,
    visited: int,
    tol: float,
    message: str,
) -> Result:
    last = trail[-1]
    p = torch.tensor(preference.weights, dtype=torch.float64)
    return Result(
        x=x.detach(),
        objectives=last.objectives,
        constraints=torch.zeros(0, dtype=torch.float64),
        rho=float((p * last.objectives)[p > 0].max()),
        multipliers=last.weights.lam,
        constraint_multipliers=torch.zeros(0, dtype=torch.float64),
        kkt_residual=last.residual,
        kkt_parts=KKTParts(0.0, last.stationarity, 0.0, last.weights.complementarity),
        n_gradient_evaluations=visited * len(preference.live),
        n_function_evaluations=visited,
        converged=last.residual <= tol,
        message=message,
        history=History(
            objectives=torch.stack([visit.objectives for visit in trail]),
            multipliers=torch.stack([visit.weights.lam for visit in trail]),
            kkt_residual=torch.tensor([visit.residual for visit in trail], dtype=torch.float64),
            min_norm=torch.tensor([v.weights.min_norm for v in trail], dtype=torch.float64),
        ),
    )
