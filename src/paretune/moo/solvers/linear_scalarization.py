"""Linear scalarisation under affine constraints (the second paper's Algorithm 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.numerics.affine import AffineConstraints
from paretune.moo.numerics.kkt import KKTParts
from paretune.moo.preference import Preference
from paretune.moo.problem import Point, Problem, check_no_inequalities
from paretune.moo.solvers.loop import CountedProblem, Solver, Units, Visit
from paretune.moo.solvers.result import Result
from paretune.moo.solvers.watch import Watch


@dataclass(frozen=True)
class LinearScalarization:
    """z ← proj(z − η ∇Σ λ_s f_s(z)) onto {A z = b} (Algorithm 2), or onto the bounds.

    For convex objectives the value approaches its minimum like L ‖z_0 − z*‖² / (2T) (Theorem 4).
    The start is projected first. Constraints must be `AffineConstraints`; together with bounds
    they are refused, since their joint projection has no closed form. Weights may be 0.

    The residual is ‖Σ λ_s ∇f_s + Aᵀν‖ with the ν of least squares, together with ‖A z − b‖:
    the paper's corollary takes ν = 0, which does not vanish at the solution. With bounds it is
    ‖z − proj(z − ∇)‖.

    Attributes:
        lr: the step η; None takes 1/L with L estimated: from the gradients at two close points,
            then raised whenever the descent lemma fails.
    """

    lr: float | None = None

    def __post_init__(self) -> None:
        if self.lr is not None and not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"lr must be finite and above 0, got {self.lr}.")

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
        """Run from x0 until kkt_residual <= tol, no step makes progress, or `steps` are done.

        Raises InputError for constraints that are not affine and for what `minimize` names.
        """
        check_no_inequalities(problem)
        if problem.constraints is not None:
            if not isinstance(problem.constraints, AffineConstraints):
                raise InputError(
                    "method 'linear' projects onto affine constraints only: give "
                    "Problem(..., constraints=AffineConstraints(A, b)), or use 'wc_augmented'."
                )
            if problem.bounds is not None:
                raise InputError(
                    "method 'linear' takes affine constraints or bounds, not both; use "
                    "'wc_augmented'."
                )
        run = _Steps(self.lr, CountedProblem(problem), preference, x0, tol)
        return run.solve(steps, tol, watch)


class _Steps(Solver):
    def __init__(
        self,
        lr: float | None,
        problem: CountedProblem,
        preference: Preference,
        x0: Tensor,
        tol: float,
    ) -> None:
        super().__init__(problem)
        self.lr, self.weights, self.x0, self.tol = lr, preference.weights, x0, tol
        self.affine = problem.problem.constraints

    def start(self) -> Visit:
        self.move_to(self.first(self.project(self.x0), len(self.weights)))
        self.smoothness = 1 / self.lr if self.lr else self.first_smoothness()
        eps = torch.finfo(self.point.z.dtype).eps
        size = abs(self.value) / max(1.0, float(self.point.z.norm()))
        self.units = Units.of(max(float(self.gradient.norm()), size), 0.0, 0.0, self.tol, eps)
        return self.visit()

    def move_to(self, point: Point) -> None:
        self.point, self.value = point, self.value_at(point)
        self.gradient = self.problem.gradient(point, self.weights)

    def step(self) -> Visit | str:
        for _ in range(60):
            trial = self.problem.at(self.project(self.point.z - self.gradient / self.smoothness))
            reached = self.value_at(trial)
            if self.lr is not None:
                accepted = math.isfinite(reached)
            else:
                move = trial.z - self.point.z
                bound = float((self.gradient * move).sum() + self.smoothness / 2 * (move**2).sum())
                slack = 4 * torch.finfo(trial.objectives.dtype).eps * abs(self.value)
                accepted = reached <= self.value + bound + slack
            if accepted:
                self.move_to(trial)
                return self.visit()
            if self.lr is not None:
                break
            self.smoothness *= 2
        return (
            "the objectives were no longer finite, or rounding left no step that lowers them; "
            "x is the last good point."
        )

    def first_smoothness(self) -> float:
        """‖∇(z) − ∇(z − e)‖ / ‖e‖ for a small move e along the gradient."""
        size = float(self.gradient.norm())
        if size == 0:
            return 1.0
        scale = 1e-3 * max(1.0, float(self.point.z.norm())) / size
        other = self.problem.at(self.project(self.point.z - scale * self.gradient))
        length = float((other.z - self.point.z).norm())
        change = float((self.problem.gradient(other, self.weights) - self.gradient).norm())
        return change / length if length > 0 and change > 0 else 1.0

    def project(self, z: Tensor) -> Tensor:
        if isinstance(self.affine, AffineConstraints):
            return self.affine.project(z)
        return self.problem.problem.project(z)

    def value_at(self, point: Point) -> float:
        pairs = zip(self.weights, point.objectives.tolist(), strict=True)
        return math.fsum(w * f for w, f in pairs if w > 0)

    def visit(self) -> Visit:
        point, duals = self.point, torch.zeros(0, dtype=torch.float64)
        if isinstance(self.affine, AffineConstraints):
            duals = self.affine.duals(self.gradient)
            left = self.gradient.flatten().double().cpu() + self.affine.A.T @ duals
        else:
            left = self.problem.problem.projected(point.z, self.gradient)
        feasibility = float(point.constraints.double().norm())
        stationarity = float(left.double().norm()) if math.isfinite(self.value) else math.nan
        weights = torch.tensor(self.weights, dtype=torch.float64)
        parts = KKTParts(0.0, stationarity, feasibility, 0.0)
        return Visit(
            x=point.z,
            objectives=point.objectives,
            constraints=point.constraints,
            rho=float((weights * point.objectives.double().cpu())[weights > 0].max()),
            omega=self.weights,
            nu=duals,
            parts=parts,
            error=self.units.error(parts, [], []),
        )
