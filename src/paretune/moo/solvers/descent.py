"""Descent along a weighted sum of gradients: CLAMP's Algorithm 1, MGDA and linear weighting."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.numerics.kkt import KKTParts
from paretune.moo.numerics.simplex_qp import MAX_SIZE
from paretune.moo.preference import Preference
from paretune.moo.problem import Point, Problem, check_no_inequalities
from paretune.moo.solvers.linear_scalarization import LinearScalarization
from paretune.moo.solvers.loop import CountedProblem, Solver, Units, Visit
from paretune.moo.solvers.result import Result
from paretune.moo.solvers.watch import Watch
from paretune.moo.weightings import MGDA, Clamp, Linear, Weighting, Weights
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
        self,
        problem: Problem,
        preference: Preference,
        x0: Tensor,
        steps: int,
        tol: float,
        *,
        watch: Watch | None = None,
    ) -> Result:
        """Run from x0 until kkt_residual <= tol, a value is not finite, or `steps` are done.

        Raises InputError when the problem does not fit the preference, has constraints or bounds,
        or F(x0) is not finite.
        """
        check_no_inequalities(problem)
        if problem.constraints is not None or problem.bounds is not None:
            raise InputError(
                "This method handles neither constraints nor bounds; use method='wc_augmented' or "
                "'wc_penalty', or 'linear' with constraints=AffineConstraints(A, b)."
            )
        if sum(p > 0 for p in preference.weights) > MAX_SIZE:
            if isinstance(self.weighting, Linear) and self.optimizer is None:
                linear = LinearScalarization(self.lr)
                return linear.run(problem, preference, x0, steps, tol, watch=watch)
            raise InputError(
                f"This method takes at most {MAX_SIZE} objectives of positive preference, got "
                f"{len(preference)}; 'wc_augmented' and 'linear' take any number."
            )
        run = _Steps(self, CountedProblem(problem), preference, x0, steps, tol)
        return run.solve(steps, tol, watch)


class _Steps(Solver):
    def __init__(
        self,
        method: Descent,
        problem: CountedProblem,
        preference: Preference,
        x0: Tensor,
        steps: int,
        tol: float,
    ) -> None:
        super().__init__(problem)
        self.tol = tol
        self.lr, self.total, self.taken = method.lr, max(steps, 1), 0
        self.p = preference.weights
        self.preference = torch.tensor(self.p, dtype=torch.float64)
        self.wanted = [p > 0 for p in self.p]
        self.weighting = copy.deepcopy(method.weighting)
        self.z = x0.detach().clone()
        self.optimizer = self._make_optimizer(method.optimizer)
        self.units: Units | None = None
        self.none = torch.zeros(0, dtype=torch.float64)
        self.direction = self.none

    def start(self) -> Visit:
        return self._visit(self.first(self.z, len(self.wanted)))

    def step(self) -> Visit:
        move = self.direction.to(self.z).view_as(self.z)
        if self.optimizer is None:
            self.z = self.z - self.lr * move
        else:
            self.z.grad = move
            self.optimizer.step()
        self.taken += 1
        return self._visit(self.problem.at(self.z))

    def _visit(self, point: Point) -> Visit:
        values = point.objectives.double().cpu()
        rows = self.problem.rows(point, self.wanted).double().cpu()
        gramian, none = rows @ rows.T, self.none
        # An optimizer of torch moves z in place.
        x = self.z if self.optimizer is None else self.z.clone()
        losses = values.tolist()
        if not all(map(math.isfinite, losses + gramian.flatten().tolist())):
            lost = KKTParts(math.nan, math.nan, 0.0, math.nan)
            return Visit(x, values, none, math.nan, [math.nan] * len(losses), none, lost)
        weights = self._weigh(gramian, values)
        self.direction = weights.weights @ rows
        # From the direction itself: the square root of mgda_term would keep half the digits.
        stationarity = float(torch.linalg.vector_norm(self.direction))
        parts = KKTParts(0.0, stationarity, 0.0, weights.complementarity)
        scaled = [p * f for p, f in zip(self.p, losses, strict=True)]
        rho = max(a for a, wanted in zip(scaled, self.wanted, strict=True) if wanted)
        if self.units is None:
            # Where the start is stationary its gradients say nothing, but its losses do.
            p = torch.ones_like(values) if isinstance(self.weighting, MGDA) else self.preference
            length = max(1.0, float(self.z.norm()))
            sizes = torch.maximum((p[:, None] * rows).norm(dim=1), (p * values).abs() / length)
            steepest = float(sizes[self.preference > 0].max())
            spread = rho - min(scaled) or abs(rho)
            eps = torch.finfo(self.z.dtype).eps
            self.units = Units.of(steepest, spread, 0.0, self.tol, eps)
        omega = weights.lam.tolist()
        # A complementarity of 0 belongs to weightings that do not ask for one.
        gaps = [rho - a if weights.complementarity else 0.0 for a in scaled]
        error = self.units.error(parts, gaps, omega)
        return Visit(
            x, values, none, rho, omega, none, parts, error=error, min_norm=weights.min_norm
        )

    def _weigh(self, gramian: Tensor, values: Tensor) -> Weights:
        if isinstance(self.weighting, ClampState):
            progress = self.taken / self.total
            return self.weighting.step(gramian, values, self.preference, progress)
        return self.weighting(gramian, values, self.preference)

    def _make_optimizer(
        self, optimizer: Literal["adam"] | OptimizerFactory | None
    ) -> torch.optim.Optimizer | None:
        if optimizer is None:
            return None
        if optimizer == "adam":
            return torch.optim.Adam([self.z], lr=self.lr)
        return optimizer([self.z], self.lr)
