"""WC-Penalty: the second paper's Algorithm 1, and Algorithm 3 for stochastic problems."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.numerics.kkt import KKTParts, positive_weights
from paretune.moo.preference import Preference
from paretune.moo.problem import Point, Problem, StochasticProblem, check_count
from paretune.moo.shift import Shift, check_positive, read_shift
from paretune.moo.solvers.result import History, Result
from paretune.moo.solvers.warm_up import estimate_schedule


@dataclass(frozen=True)
class WCPenalty:
    """Projected gradient steps on the penalty P(ρ, z, δ) of Eq. (1), exactly as in Algorithm 1.

    P = ρ + u/2 ‖h‖² + v/2 Σ (λ_s f_s + δ_s − ρ)², δ >= 0. What is not given follows Theorem 3:
    u = v = penalty_scale · T^(1/4), η = step_scale · T^(−1/4), T the number of steps. The residual
    uses Remark 2's ω_s = v(λ_s f_s + δ_s − ρ) and ν = u h at the last iterate, which is what to
    report: the theorem's running mean is ruled by the first steps. With u and v fixed, ‖K‖² ends
    at a floor of ‖ν*‖²/u² + ‖ω*‖²/v².

    A `StochasticProblem` is solved by Algorithm 3: each step draws one batch for all objectives
    and one for all constraints, where the paper draws one for each of them.

    Attributes:
        u: penalty on h, at least 0.
        v: penalty on λ_s f_s + δ_s − ρ, at least 0.
        eta: step η. Stable steps are at most about 1/(v(S + 1)), less where gradients are large.
        penalty_scale: Θ's constant in u and v, in units of f.
        step_scale: Θ's constant in η; 0.004 suits the paper's toy.
        warm_up: steps to estimate M, σ and the smoothness of P with (Remark 5), which then give
            u, v and η in place of the two scales; 0 for none. Not for stochastic problems.
        rho0: ρ_0 >= 0.
        shift: what is added to the objectives to make them positive, one value or one each; to
            measure from an ideal point z*, give −z* plus a margin.
        objective_batch: size of the batch for the objectives; Theorem 5 asks for Θ(T^(5/4)).
        constraint_batch: size of the batch for the constraints; None for the same as above.
        independent_batches: whether the values c_s and h come from batches of their own, so that
            products such as h ∇h are unbiased.
        certify_every: steps between evaluations of K on the full batch (stochastic problems).
        seed: of the draws.
    """

    u: float | None = None
    v: float | None = None
    eta: float | None = None
    penalty_scale: float = 1.0
    step_scale: float = 0.004
    warm_up: int = 0
    rho0: float = 0.0
    shift: Shift = None
    objective_batch: int = 32
    constraint_batch: int | None = None
    independent_batches: bool = False
    certify_every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("u", "v", "eta", "penalty_scale", "step_scale"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be finite and above 0, got {value}.")
        if not (math.isfinite(self.rho0) and self.rho0 >= 0):
            raise InputError(f"rho0 must be finite and at least 0, got {self.rho0}.")
        if self.warm_up < 0:
            raise InputError(f"warm_up must be at least 0, got {self.warm_up}.")
        sizes = (self.objective_batch, self.constraint_batch or 1, self.certify_every)
        if min(sizes) < 1:
            raise InputError("Batch sizes and certify_every must be at least 1.")

    def run(
        self,
        problem: Problem | StochasticProblem,
        preference: Preference,
        x0: Tensor,
        steps: int,
        tol: float,
    ) -> Result:
        """Run from x0 until kkt_residual <= tol, a value is not finite, or `steps` are done.

        Raises InputError for what `minimize` names, and when an objective is not positive on the
        way.
        """
        lam = positive_weights(preference)
        exact = problem.on(problem.full) if isinstance(problem, StochasticProblem) else problem
        return _Loop(self, problem, exact, lam).run(x0, steps, tol)

    def schedule(self, steps: int) -> tuple[float, float, float]:
        """u, v and η for that many steps, without a warm-up."""
        root = max(steps, 1) ** 0.25
        return (
            self.penalty_scale * root if self.u is None else self.u,
            self.penalty_scale * root if self.v is None else self.v,
            self.step_scale / root if self.eta is None else self.eta,
        )


class _State(NamedTuple):
    rho: float
    z: Tensor
    delta: list[float]


class _Force(NamedTuple):
    """ω, and ∇_z P."""

    omega: list[float]
    gradient: Tensor


class _Loop:
    """One run: the penalty's parameters, counters and history."""

    def __init__(
        self,
        method: WCPenalty,
        problem: Problem | StochasticProblem,
        exact: Problem,
        lam: Sequence[float],
    ) -> None:
        self.method, self.problem, self.exact, self.lam = method, problem, exact, lam
        self.shift = read_shift(method.shift, len(lam))
        self.generator = torch.Generator().manual_seed(method.seed)
        self.n_gradients = self.n_functions = 0
        self.u = self.v = self.eta = 0.0
        self.rows = array("d")  # F, ω and the parts of K, a row after another

    def run(self, x0: Tensor, steps: int, tol: float) -> Result:
        point = self.visit(self.exact, x0)
        check_count(point.objectives, len(self.lam))
        self.prepare(point, steps)
        state = _State(self.method.rho0, point.z.clone(), [0.0] * len(self.lam))
        stochastic = isinstance(self.problem, StochasticProblem)
        every = self.method.certify_every if stochastic else 1
        certified, message = state, f"Stopped after all {steps} steps."
        for step in range(steps + 1):
            if step % every == 0 or step == steps:
                if step:
                    point = self.visit(self.exact, state.z)
                force = self.force(point, point, state)
                residual = self.certify(point, force, state, step)
                if not math.isfinite(residual):
                    message = (
                        f"Stopped at step {step}: K was no longer finite; give a smaller eta. "
                        "x is the last finite point."
                    )
                    break
                certified = state
                if residual <= tol:
                    message = f"Converged after {step} steps: kkt_residual is at most tol."
                    break
            if step < steps:
                if isinstance(self.problem, StochasticProblem):
                    force = self.draw_force(self.problem, state)
                state = self.advance(state, force)
        return self.result(certified, tol, message)

    def prepare(self, point: Point, steps: int) -> None:
        """Check the start, and set u, v and η."""
        check_positive(self.shifted(point), "at the start point")
        method = self.method
        self.u, self.v, self.eta = method.schedule(steps)
        if method.warm_up:
            guess = estimate_schedule(
                self.exact, self.lam, self.shift, point, method.warm_up, steps
            )
            self.n_gradients += guess.n_gradients
            self.n_functions += guess.n_functions
            self.u, self.v, self.eta = guess.u, guess.v, guess.eta
        if not bool(torch.isfinite(point.constraints).all()):
            raise InputError("The constraints are not finite at x0.")

    def visit(self, problem: Problem, z: Tensor) -> Point:
        self.n_functions += 1
        return problem.at(z)

    def shifted(self, point: Point) -> list[float]:
        return [f + c for f, c in zip(point.objectives.tolist(), self.shift, strict=True)]

    def force(self, values: Point, point: Point, state: _State) -> _Force:
        """Remark 2's ω and ν at `values`, multiplied with the gradients at `point`."""
        omega = [
            self.v * (lam * f + delta - state.rho)
            for lam, f, delta in zip(self.lam, self.shifted(values), state.delta, strict=True)
        ]
        weights = [w * lam for w, lam in zip(omega, self.lam, strict=True)]
        self.n_gradients += 1
        return _Force(omega, point.combine(weights, self.u * values.constraints))

    def draw_force(self, problem: StochasticProblem, state: _State) -> _Force:
        """The same from fresh batches (Eq. 8)."""
        method = self.method

        def sample() -> Point:
            size = method.constraint_batch or method.objective_batch
            batch = problem.draw(method.objective_batch, self.generator)
            other = problem.draw(size, self.generator) if problem.constraints else None
            return self.visit(problem.on(batch, other), state.z)

        point = sample()
        return self.force(sample() if method.independent_batches else point, point, state)

    def advance(self, state: _State, force: _Force) -> _State:
        eta = self.eta
        return _State(
            rho=state.rho - eta * (1 - math.fsum(force.omega)),
            z=self.exact.project(state.z - eta * force.gradient),
            delta=[max(0.0, d - eta * w) for d, w in zip(state.delta, force.omega, strict=True)],
        )

    def certify(self, point: Point, force: _Force, state: _State, step: int) -> float:
        """‖K‖ at an exact point, added to the history when it is finite."""
        left = force.gradient
        if self.exact.bounds is not None:
            left = point.z - self.exact.project(point.z - left)
        values = self.shifted(point)
        gaps = [
            min(w, state.rho - lam * f)
            for w, lam, f in zip(force.omega, self.lam, values, strict=True)
        ]
        parts = KKTParts(
            abs(sum(force.omega) - 1),
            float(left.norm()),
            self.norm(point.constraints),
            math.hypot(*gaps),
        )
        residual = math.hypot(*parts)
        if not math.isfinite(residual):
            if step == 0:
                raise InputError("The objectives, constraints or gradients are not finite at x0.")
            return residual
        check_positive(values, f"at step {step}")
        self.rows.extend([*point.objectives.tolist(), *force.omega, *parts])
        return residual

    @staticmethod
    def norm(values: Tensor) -> float:
        return float(values.norm()) if len(values) else 0.0

    def result(self, state: _State, tol: float, message: str) -> Result:
        size = len(self.lam)
        table = torch.tensor(self.rows, dtype=torch.float64).reshape(-1, 2 * size + 4)
        residuals = table[:, 2 * size :].norm(dim=1)
        constraints = self.exact.constrain(state.z).detach().double().cpu()
        return Result(
            x=state.z,
            objectives=table[-1, :size],
            constraints=constraints,
            rho=state.rho,
            multipliers=table[-1, size : 2 * size],
            constraint_multipliers=self.u * constraints,
            kkt_residual=float(residuals[-1]),
            kkt_parts=KKTParts(*table[-1, 2 * size :].tolist()),
            n_gradient_evaluations=self.n_gradients,
            n_function_evaluations=self.n_functions,
            converged=bool(residuals[-1] <= tol),
            message=message,
            history=History(
                objectives=table[:, :size],
                multipliers=table[:, size : 2 * size],
                kkt_residual=residuals,
                feasibility=table[:, 2 * size + 2],
            ),
        )
