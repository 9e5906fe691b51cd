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
from paretune.moo.problem import Point, Problem, check_count
from paretune.moo.solvers.result import History, Result


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
        self, problem: Problem, preference: Preference, x0: Tensor, steps: int, tol: float
    ) -> Result:
        """Run from x0 until kkt_residual <= tol, no step makes progress, or `steps` are done.

        Raises InputError for constraints that are not affine and for what `minimize` names.
        """
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
        return _Run(problem, preference, steps, tol, self.lr).go(x0)


class _Run:
    def __init__(
        self, problem: Problem, preference: Preference, steps: int, tol: float, lr: float | None
    ) -> None:
        self.problem, self.steps, self.tol, self.lr = problem, steps, tol, lr
        self.weights = preference.weights
        self.affine = problem.constraints
        self.n_gradients = self.n_functions = 0
        self.objectives: list[Tensor] = []
        self.parts: list[KKTParts] = []

    def go(self, x0: Tensor) -> Result:
        point = self.visit(self.project(x0))
        check_count(point.objectives, len(self.weights))
        value, gradient = self.value(point), self.gradient(point)
        if not (math.isfinite(value) and bool(torch.isfinite(gradient).all())):
            raise InputError("The objectives or their gradients are not finite at x0.")
        duals = self.record(point, gradient)
        smoothness = 1 / self.lr if self.lr else self.first_smoothness(point, gradient)
        message = f"Stopped after all {self.steps} steps."
        for step in range(self.steps + 1):
            if self.residual <= self.tol:
                message = f"Converged after {step} steps: kkt_residual is at most tol."
                break
            if step == self.steps:
                break
            moved = self.step(point, value, gradient, smoothness)
            if moved is None:
                message = (
                    f"Stopped at step {step}: the objectives were no longer finite, or rounding "
                    "left no step that lowers them; x is the last good point."
                )
                break
            point, smoothness = moved
            value, gradient = self.value(point), self.gradient(point)
            duals = self.record(point, gradient)
        return self.result(point, duals, message)

    def step(
        self, point: Point, value: float, gradient: Tensor, smoothness: float
    ) -> tuple[Point, float] | None:
        """The next point and the L that its step was checked with."""
        for _ in range(60):
            trial = self.visit(self.project(point.z - gradient / smoothness))
            move = trial.z - point.z
            bound = float((gradient * move).sum() + smoothness / 2 * (move**2).sum())
            reached = self.value(trial)
            if self.lr is not None:
                return (trial, smoothness) if math.isfinite(reached) else None
            slack = 4 * torch.finfo(trial.objectives.dtype).eps * abs(value)
            if reached <= value + bound + slack:
                return trial, smoothness
            smoothness *= 2
        return None

    def first_smoothness(self, point: Point, gradient: Tensor) -> float:
        """‖∇(z) − ∇(z − e)‖ / ‖e‖ for a small move e along the gradient."""
        size = float(gradient.norm())
        if size == 0:
            return 1.0
        scale = 1e-3 * max(1.0, float(point.z.norm())) / size
        other = self.visit(self.project(point.z - scale * gradient))
        length = float((other.z - point.z).norm())
        change = float((self.gradient(other) - gradient).norm())
        return change / length if length > 0 and change > 0 else 1.0

    def project(self, z: Tensor) -> Tensor:
        if isinstance(self.affine, AffineConstraints):
            return self.affine.project(z)
        return self.problem.project(z)

    def visit(self, z: Tensor) -> Point:
        self.n_functions += 1
        return self.problem.at(z)

    def value(self, point: Point) -> float:
        pairs = zip(self.weights, point.objectives.tolist(), strict=True)
        return math.fsum(w * f for w, f in pairs if w > 0)

    def gradient(self, point: Point) -> Tensor:
        self.n_gradients += 1
        return point.combine(self.weights)

    def record(self, point: Point, gradient: Tensor) -> Tensor:
        """Add this point to the history; its ν."""
        duals = torch.zeros(0, dtype=torch.float64)
        left = gradient.flatten().double().cpu()
        if isinstance(self.affine, AffineConstraints):
            duals = self.affine.duals(gradient)
            left = left + self.affine.A.T @ duals
        elif self.problem.bounds is not None:
            left = (point.z - self.problem.project(point.z - gradient)).flatten()
        feasibility = float(point.constraints.double().norm())
        self.objectives.append(point.objectives.double().cpu())
        self.parts.append(KKTParts(0.0, float(left.norm()), feasibility, 0.0))
        return duals

    @property
    def residual(self) -> float:
        return math.hypot(*self.parts[-1])

    def result(self, point: Point, duals: Tensor, message: str) -> Result:
        weights = torch.tensor(self.weights, dtype=torch.float64)
        objectives = torch.stack(self.objectives)
        return Result(
            x=point.z,
            objectives=objectives[-1],
            constraints=point.constraints.double().cpu(),
            rho=float((weights * objectives[-1])[weights > 0].max()),
            multipliers=weights,
            constraint_multipliers=duals,
            kkt_residual=self.residual,
            kkt_parts=self.parts[-1],
            n_gradient_evaluations=self.n_gradients,
            n_function_evaluations=self.n_functions,
            converged=self.residual <= self.tol,
            message=message,
            history=History(
                objectives=objectives,
                multipliers=weights.expand(len(objectives), -1),
                kkt_residual=torch.tensor(
                    [math.hypot(*parts) for parts in self.parts], dtype=torch.float64
                ),
                feasibility=torch.tensor(
                    [parts.feasibility for parts in self.parts], dtype=torch.float64
                ),
            ),
        )
