"""The default method under constraints: an augmented Lagrangian with exact elimination."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.numerics.kkt import KKTParts, positive_weights
from paretune.moo.numerics.lbfgs import LBFGS, DenseBFGS
from paretune.moo.preference import Preference
from paretune.moo.problem import Problem, check_count
from paretune.moo.shift import Shift, check_positive, read_shift
from paretune.moo.solvers.augmented import AugmentedLagrangian, View
from paretune.moo.solvers.result import Result
from paretune.moo.solvers.wc_first_order import run_first_order
from paretune.moo.solvers.wc_track import Track, projected

# An inner solve ends when the gradient has shrunk by this factor, or after so many iterations.
_INNER_ACCURACY, _INNER_LIMIT = 0.1, 10
_HALVINGS = 20
# So many variables and no more: a matrix costs less than pairs, and old curvature does no harm.
_FEW = 10


@dataclass(frozen=True)
class WCAugmented:
    """min ρ s.t. h(z) = 0, λ_s f_s(z) <= ρ, by the augmented Lagrangian of `augmented`.

    Inner solves on z alternate with updates of the multipliers ν and w0, which become the ν and ω
    of the certificate. One evaluation is one forward pass and one combined gradient, whatever
    S and q. The penalties start from the scales met at x0 and grow where progress is slow, so the
    defaults are meant for all problems. The result's x is the point of smallest residual among the
    later half of those visited; it is a local solution if the problem is not convex.

    At a solution without multipliers (LICQ fails: the paper's Examples 1 and 2) the residual still
    falls, slowly, while ν grows without bound; a ν that grows as tol is lowered tells.

    "lbfgs" keeps curvature across updates, with up to ten variables as a matrix. "heavy_ball" and
    "adam" need less memory, and several times more steps.

    Attributes:
        inner: solver for z.
        lr: step of "heavy_ball", default 1/L with L from power iteration, and of "adam", default
            0.03.
        memory: pairs that L-BFGS keeps.
        shift: what is added to the objectives to make them positive, one value or one each; to
            measure from an ideal point z*, give −z* plus a margin.
    """

    inner: Literal["lbfgs", "heavy_ball", "adam"] = "lbfgs"
    lr: float | None = None
    memory: int = 30
    shift: Shift = None

    def __post_init__(self) -> None:
        if self.inner not in ("lbfgs", "heavy_ball", "adam"):
            raise InputError(
                f"Unknown inner solver {self.inner!r}; there are lbfgs, heavy_ball, adam."
            )
        if self.lr is not None and self.inner == "lbfgs":
            raise InputError("inner='lbfgs' has no lr; it belongs to 'heavy_ball' and 'adam'.")
        if self.lr is not None and not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"lr must be finite and above 0, got {self.lr}.")
        if self.memory < 1:
            raise InputError(f"memory must be at least 1, got {self.memory}.")

    def run(
        self,
        problem: Problem,
        preference: Preference,
        x0: Tensor,
        steps: int,
        tol: float,
        first_nu: Callable[[Tensor], Tensor] | None = None,
    ) -> Result:
        """Run from x0 until kkt_residual <= tol, no step helps, or `steps` inner iterations.

        `first_nu` makes of the weights w_s λ_s at x0, shape (S,), a ν to start from, shape (q,);
        without it ν starts at 0.

        Raises InputError for what `minimize` names, and when an objective is not positive at an
        update of the multipliers.
        """
        lam = positive_weights(preference)
        start = problem.at(x0)
        check_count(start.objectives, len(lam))
        shift = read_shift(self.shift, len(lam))
        values = [f + c for f, c in zip(start.objectives.tolist(), shift, strict=True)]
        check_positive(values, "at the start point")
        if not bool(torch.isfinite(start.constraints).all()):
            raise InputError("The constraints are not finite at x0.")
        lagrangian = AugmentedLagrangian(problem, lam, shift, start)
        if first_nu is not None:
            omega = torch.tensor(lagrangian.view(start).omega, dtype=torch.float64)
            lagrangian.nu = first_nu(omega * omega.new_tensor(lam)).to(lagrangian.nu)
        track = Track(lagrangian, tol)
        if self.inner == "lbfgs":
            message = _QuasiNewton(lagrangian, track, steps, self.memory).run(
                lagrangian.view(start)
            )
        else:
            message = run_first_order(
                lagrangian, track, lagrangian.view(start), steps, self.inner, self.lr
            )
        return track.result(message)


class _QuasiNewton:
    """L-BFGS steps on A(z) between updates of the multipliers."""

    def __init__(
        self, lagrangian: AugmentedLagrangian, track: Track, steps: int, memory: int
    ) -> None:
        self.lagrangian, self.track, self.steps, self.memory = lagrangian, track, steps, memory
        self.curvature = self.fresh()
        self.taken = 0

    def fresh(self) -> LBFGS | DenseBFGS:
        few = self.lagrangian.size <= _FEW
        return DenseBFGS() if few else LBFGS(self.memory)

    def run(self, view: View) -> str:
        """Go to the end; why it stopped."""
        stalls = 0
        while True:
            taken = self.taken
            view, parts, done, stuck = self.solve(view)
            self.track.record(view, parts, f"after {self.taken} steps")
            if done:
                return f"Converged after {self.taken} steps: kkt_residual is at most tol."
            if self.taken >= self.steps:
                return f"Stopped after all {self.steps} steps."
            stalls = stalls + 1 if stuck and self.taken == taken else 0
            if stalls == 3:
                return (
                    f"Stopped after {self.taken} steps: rounding left no step that lowers the "
                    "augmented Lagrangian. x is the point of smallest residual."
                )
            if not stuck:
                self.lagrangian.update(view, parts)
            else:
                self.lagrangian.step(view, self.lagrangian.damping)
            view = self.lagrangian.view(view.point)

    def solve(self, view: View) -> tuple[View, KKTParts, bool, bool]:
        """One inner solve: where it ended, its parts of K, whether that meets the tolerance, and
        whether no step was found."""
        gradient = self.lagrangian.gradient(view)
        residual = projected(self.lagrangian.problem, view.point.z, gradient)
        stationarity, done = self.track.look(view, residual)
        goal = max(_INNER_ACCURACY * stationarity, 0.1 * self.track.tol)
        last, stuck = min(self.taken + _INNER_LIMIT, self.steps), False
        while not (done or stationarity <= goal or self.taken >= last):
            found = self.search(view, gradient, self.direction(view, gradient, residual))
            if found is None:
                self.curvature, stuck = self.fresh(), True
                break
            trial, move = found
            reached = self.lagrangian.gradient(trial)
            self.curvature.add(move, reached - gradient)
            view, gradient = trial, reached
            residual = projected(self.lagrangian.problem, view.point.z, gradient)
            stationarity, done = self.track.look(view, residual)
            self.taken += 1
        return view, self.lagrangian.certify(view, stationarity)[1], done, stuck

    def direction(self, view: View, gradient: Tensor, residual: Tensor) -> Tensor:
        """What to go down along; coordinates that a bound holds stay where they are."""
        z, problem = view.point.z, self.lagrangian.problem
        free = None
        if problem.bounds is not None:
            held = (residual == 0) & (gradient != 0)
            free = ~held if bool(held.any()) else None
        step = self.curvature.solve(gradient, free)
        radius = max(1.0, float(torch.linalg.vector_norm(z)))
        if step is None:  # a first step, short since its scale is not known
            step, radius = residual, 0.1 * radius
        size = float(torch.linalg.vector_norm(step))
        if size > radius:  # no step moves z by more than its own size, out to some plateau
            step = step * (radius / size)
        return step.reshape(z.shape)

    def search(self, view: View, gradient: Tensor, step: Tensor) -> tuple[View, Tensor] | None:
        """Backtrack to a sufficient decrease (Armijo) along the projected step; where to, and the
        move, flattened."""
        z, project = view.point.z, self.lagrangian.problem.project
        slack = 64 * torch.finfo(z.dtype).eps * abs(view.value)
        length = 1.0
        for _ in range(_HALVINGS):
            trial = self.lagrangian.at(project(torch.sub(z, step, alpha=length)))
            move = (trial.point.z - z).flatten()
            slope = float(move @ gradient)
            rise = trial.value - view.value
            if rise <= 1e-4 * slope + slack:
                return trial, move
            # The lowest point of the parabola through what is known, kept within a tenth and half.
            lowest = -slope / (2 * (rise - slope)) if rise > slope else 0.1
            length *= min(0.5, max(0.1, lowest)) if math.isfinite(lowest) else 0.1
        return None
