"""WC-Penalty: the second paper's Algorithm 1, and Algorithm 3 for stochastic problems."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.numerics.kkt import KKTParts, positive_weights
from paretune.moo.preference import Preference
from paretune.moo.problem import (
    Point,
    Problem,
    StochasticProblem,
    check_finite_constraints,
    check_no_inequalities,
)
from paretune.moo.shift import Shift, check_positive, read_shift
from paretune.moo.solvers.loop import CountedProblem, Solver, Visit
from paretune.moo.solvers.result import Result
from paretune.moo.solvers.warm_up import estimate_schedule
from paretune.moo.solvers.watch import Watch
from paretune.options import NOT_IN_RECIPES


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
    seed: int = field(default=0, metadata=NOT_IN_RECIPES)

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
        *,
        watch: Watch | None = None,
    ) -> Result:
        """Run from x0 until kkt_residual <= tol, a value is not finite, or `steps` are done.

        Raises InputError for what `minimize` names.
        """
        check_no_inequalities(problem)
        return _Steps(self, problem, preference, x0, steps).solve(steps, tol, watch)

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


class _Steps(Solver):
    """Algorithms 1 and 3 on (ρ, z, δ), with K of the exact problem at every visit."""

    advice = "try a smaller eta"

    def __init__(
        self,
        method: WCPenalty,
        problem: Problem | StochasticProblem,
        preference: Preference,
        x0: Tensor,
        steps: int,
    ) -> None:
        self.stochastic = problem if isinstance(problem, StochasticProblem) else None
        exact = problem.on(problem.full) if isinstance(problem, StochasticProblem) else problem
        super().__init__(CountedProblem(exact))
        self.method, self.x0, self.left = method, x0, steps
        self.lam = positive_weights(preference)
        self.shift = read_shift(method.shift, len(self.lam))
        self.every = method.certify_every if self.stochastic else 1
        self.generator = torch.Generator().manual_seed(method.seed)
        self.u, self.v, self.eta = method.schedule(steps)

    def start(self) -> Visit:
        point = self.first(self.x0, len(self.lam))
        check_positive(self.shifted(point), "at the start point")
        if self.method.warm_up:
            guess = estimate_schedule(
                self.problem, self.lam, self.shift, point, self.method.warm_up, self.left
            )
            self.u, self.v, self.eta = guess.u, guess.v, guess.eta
        check_finite_constraints(point)
        self.state = _State(self.method.rho0, point.z.clone(), [0.0] * len(self.lam))
        return self.certify(point, 0)

    def step(self) -> Visit:
        """The next point that is certified: `certify_every` steps on for stochastic problems."""
        count = min(self.every, self.left)
        for _ in range(count):
            if self.stochastic is not None:
                self.force = self.draw_force(self.stochastic)
            self.state = self.advance(self.state, self.force)
        self.left -= count
        return self.certify(self.problem.at(self.state.z), count)

    def shifted(self, point: Point) -> list[float]:
        return [f + c for f, c in zip(point.objectives.tolist(), self.shift, strict=True)]

    def force_at(self, values: Point, point: Point) -> _Force:
        """Remark 2's ω and ν at `values`, multiplied with the gradients at `point`."""
        omega = [
            self.v * (lam * f + delta - self.state.rho)
            for lam, f, delta in zip(self.lam, self.shifted(values), self.state.delta, strict=True)
        ]
        weights = [w * lam for w, lam in zip(omega, self.lam, strict=True)]
        return _Force(omega, self.problem.gradient(point, weights, self.u * values.constraints))

    def draw_force(self, problem: StochasticProblem) -> _Force:
        """The same from fresh batches (Eq. 8)."""
        method = self.method

        def sample() -> Point:
            size = method.constraint_batch or method.objective_batch
            batch = problem.draw(method.objective_batch, self.generator)
            other = problem.draw(size, self.generator) if problem.constraints else None
            return self.problem.at(self.state.z, problem.on(batch, other))

        point = sample()
        return self.force_at(sample() if method.independent_batches else point, point)

    def advance(self, state: _State, force: _Force) -> _State:
        eta, project = self.eta, self.problem.problem.project
        return _State(
            rho=state.rho - eta * (1 - math.fsum(force.omega)),
            z=project(state.z - eta * force.gradient),
            delta=[max(0.0, d - eta * w) for d, w in zip(state.delta, force.omega, strict=True)],
        )

    def certify(self, point: Point, count: int) -> Visit:
        """K at an exact point; the next step starts from its force."""
        self.force = self.force_at(point, point)
        omega, values = self.force.omega, self.shifted(point)
        gaps = [
            min(w, self.state.rho - lam * f)
            for w, lam, f in zip(omega, self.lam, values, strict=True)
        ]
        parts = KKTParts(
            abs(sum(omega) - 1),
            float(self.problem.problem.projected(point.z, self.force.gradient).norm()),
            float(point.constraints.norm()),
            math.hypot(*gaps),
        )
        return Visit(
            x=point.z,
            objectives=point.objectives,
            constraints=point.constraints,
            rho=self.state.rho,
            omega=omega,
            nu=self.u * point.constraints.double(),
            parts=parts,
            steps=count,
        )
