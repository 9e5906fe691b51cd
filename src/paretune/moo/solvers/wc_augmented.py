"""The default method under constraints: an augmented Lagrangian with exact elimination."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.numerics.curvature import most_negative_curvature
from paretune.moo.numerics.lbfgs import LBFGS, DenseBFGS
from paretune.moo.preference import Preference
from paretune.moo.problem import Point, Problem, check_finite_constraints
from paretune.moo.shift import Shift, check_finite, read_shift
from paretune.moo.solvers.augmented import AugmentedLagrangian, View, fitting, stack
from paretune.moo.solvers.loop import CountedProblem, Solver, Visit
from paretune.moo.solvers.result import Learnt, Result
from paretune.moo.solvers.sequential import SequentialQP
from paretune.moo.solvers.watch import Watch

# An inner solve ends when the gradient has shrunk by this factor, or after so many iterations.
_INNER_ACCURACY, _INNER_LIMIT = 0.1, 10
_HALVINGS = 20
# A step is stretched, by this factor at a time, where A falls by more than this part of what its
# slope says: it bends down, or hardly up.
_STRAIGHT, _STRETCH = 0.95, 3.0
# So many variables and no more: a matrix costs less than pairs, and old curvature does no harm.
_FEW = 10
# Sequential quadratic programming is for no more variables, and for no more objectives and
# constraints together: each has a gradient of its own.
_DENSE, _ROWS = 50, 8
# So many updates of the multipliers without a step in between end a run.
_IDLE = 50
# Times that a run turns back from far off the constraints.
_TURNS = 5
# Stationary points that are left in one run.
_ESCAPES = 3
# ‖x‖, in parts of ‖x0‖ or 1, at which a run has gone off.
_GONE = 1e6
# ‖h‖ that counts as met in a message, in the constraints' unit.
_FEASIBLE = 1e-4


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

    L-BFGS keeps curvature across updates, with up to ten variables as a matrix.

    From a result for another preference, where objectives and constraints are up to eight together
    and variables up to fifty, the steps are those of `sequential` first, with a gradient for each
    row that matters: the point is near, and these need few evaluations.

    Attributes:
        memory: pairs that L-BFGS keeps.
        shift: what is added to the objectives, one value or one each; to measure from an ideal
            point z*, give −z* plus a margin.
        v_scale: v times the spread of λ∘F at the start. A small one makes A nearly linear in F, and
            leads to the ends of concave fronts.
        second_order: whether to look for a direction of negative curvature where the tolerance is
            met, for four or five gradients, and to go on along it: such a point is a saddle.
        scale_rows: whether slopes and bends of up to eight constraints are looked at first, for
            three evaluations: rows whose slopes differ by more than thirty times are brought to
            one size inside, and the first penalty outweighs the bends.
    """

    memory: int = 30
    shift: Shift = None
    v_scale: float = 3.0
    second_order: bool = True
    scale_rows: bool = True

    def __post_init__(self) -> None:
        if self.memory < 1:
            raise InputError(f"memory must be at least 1, got {self.memory}.")
        if not (math.isfinite(self.v_scale) and self.v_scale > 0):
            raise InputError(f"v_scale must be finite and above 0, got {self.v_scale}.")

    def run(
        self,
        problem: Problem,
        preference: Preference,
        x0: Tensor,
        steps: int,
        tol: float,
        first_nu: Callable[[Tensor], Tensor] | None = None,
        *,
        near: Result | None = None,
        watch: Watch | None = None,
    ) -> Result:
        """Run from x0 until kkt_residual <= tol, no step helps, or `steps` inner iterations.

        `first_nu` makes of the weights w_s λ_s at x0, shape (S,), a ν to start from, shape (q,);
        without it ν starts at 0. `near` is a result for another preference, whose multipliers and
        what it learnt are taken up where their shapes fit.

        Raises InputError for what `minimize` names.
        """
        run = _Steps(self, CountedProblem(problem), preference, x0, tol, first_nu, near)
        result = run.solve(steps, tol, watch)
        return replace(result, learnt=run.learnt())


class _Steps(Solver):
    """Quasi-Newton steps on A(z); an inner solve ends in an update of the multipliers."""

    advice = "keep out by bounds where values or slopes are infinite"
    reports_best = True

    def __init__(
        self,
        method: WCAugmented,
        problem: CountedProblem,
        preference: Preference,
        x0: Tensor,
        tol: float,
        first_nu: Callable[[Tensor], Tensor] | None,
        near: Result | None,
    ) -> None:
        super().__init__(problem)
        lam = preference.weights
        # One for another number of objectives is of another problem.
        self.near = near if near is None or len(near.multipliers) == len(lam) else None
        self.sequential: SequentialQP | None = None
        self.nearing = False  # whether steps are those of `sequential`
        self.memory, self.x0, self.first_nu = method.memory, x0, first_nu
        self.v_scale, self.scale_rows = method.v_scale, method.scale_rows
        self.escapes_left = _ESCAPES if method.second_order else 0
        self.tol = tol
        self.lam = lam
        self.shift = read_shift(method.shift, len(self.lam))
        self.taken = self.stalls = self.idle = 0
        self.turns_left = _TURNS
        self.rounding = 64 * torch.finfo(x0.dtype).eps

    def start(self) -> Visit:
        point = self.first(self.x0, len(self.lam))
        check_finite(point.objectives.tolist(), "at the start point")
        check_finite_constraints(point)
        learnt = None if self.near is None else fitting(self.near.learnt, point)
        self.lagrangian = AugmentedLagrangian(
            self.problem,
            self.lam,
            self.shift,
            point,
            self.tol,
            self.v_scale,
            self.scale_rows,
            learnt,
        )
        if self.first_nu is not None:
            omega = self.lagrangian.spread(self.lagrangian.view(point).omega)
            weights = torch.tensor(
                [w * p for w, p in zip(omega, self.lam, strict=True)], dtype=torch.float64
            )
            multipliers = self.lagrangian.multipliers
            multipliers.nu = self.first_nu(weights).to(multipliers.nu)
        if self.near is not None:
            self.lagrangian.take_up(self.near)
        self.curvature, self.inside = self.fresh(), point
        if learnt is not None and learnt.hessian is not None:
            self.curvature = DenseBFGS(learnt.hessian)
        if learnt is not None and (sequential := self.sequence(point, learnt)) is not None:
            self.sequential, self.nearing = sequential, True
            return self.look_along(steps=0)
        return self.begin_inner(self.lagrangian.view(point))

    def begin_inner(self, view: View, gradient: Tensor | None = None) -> Visit:
        """The first point of an inner solve; it costs no step."""
        gradient = self.lagrangian.gradient(view) if gradient is None else gradient
        visit = self.look(view, gradient, steps=0)
        finest = 0.1 * self.tol * self.lagrangian.units.gradient
        self.goal = max(_INNER_ACCURACY * visit.parts.stationarity, finest)
        self.inner_end, self.began = self.taken + _INNER_LIMIT, self.taken
        return visit

    def look(self, view: View, gradient: Tensor, steps: int) -> Visit:
        z, problem = view.point.z, self.problem.problem
        self.view, self.gradient, self.residual = view, gradient, gradient
        if problem.bounds is not None:
            self.residual = problem.projected(z, gradient.view_as(z)).flatten()
        stationarity = float(torch.linalg.vector_norm(self.residual))
        self.visit = self.lagrangian.visit(view, stationarity, steps, opens=steps == 0)
        return self.visit

    def step(self) -> Visit | str:
        if self.nearing:
            assert self.sequential is not None
            if self.sequential.step(self.radius):
                return self.look_along(steps=1)
            self.nearing = False  # from the start as without
            return self.begin_inner(self.lagrangian.view(self.inside))
        stuck = False
        if (visit := self.turn_back()) is not None:
            return visit
        if self.visit.parts.stationarity > self.goal and self.taken < self.inner_end:
            found = self.search(self.direction())
            if found is not None:
                return self.take(*found)
            self.curvature, stuck = self.fresh(), True
        self.stalls = self.stalls + 1 if stuck and self.taken == self.began else 0
        if self.stalls == 3:
            return (
                "rounding left no step that lowers the augmented Lagrangian. x is the point of "
                "smallest residual."
            )
        self.idle = self.idle + 1 if self.taken == self.began else 0
        if self.idle == _IDLE:
            return "the multipliers no longer move x. x is the point of smallest residual."
        if stuck:
            self.lagrangian.step(self.view)
        else:
            self.lagrangian.update(self.view, self.visit.parts)
        return self.begin_inner(self.lagrangian.view(self.view.point))

    def sequence(self, point: Point, learnt: Learnt) -> SequentialQP | None:
        """For a start that may be near; None where it would cost more gradients than it saves, or
        slopes are infinite."""
        n = point.z.numel()
        if n > _DENSE or len(self.lam) + len(stack(point)) > _ROWS:
            return None
        current = self.lagrangian.multipliers
        assert current.nu is not None
        nu = self.lagrangian.scaled(current.nu).double().cpu().numpy()
        duals = np.concatenate([current.w0, nu])
        first = np.eye(n) * (learnt.curvature or 1.0)
        hessian = first if learnt.lagrangian is None else learnt.lagrangian
        run = SequentialQP(self.problem, self.lam, self.shift, point, duals, hessian)
        return run if np.isfinite(run.rows).all() else None

    def look_along(self, steps: int) -> Visit:
        """Where `sequential` is, with its multipliers."""
        run = self.sequential
        assert run is not None
        view = View(run.point, math.nan, run.values[: run.size].tolist(), run.omega, run.nu)
        return self.look(view, run.gradient, steps)._replace(opens=True)

    def leave_sequence(self) -> None:
        """A where `sequential` ended, with its multipliers."""
        assert self.sequential is not None
        self.nearing = False
        multipliers = self.lagrangian.multipliers
        multipliers.w0 = self.sequential.omega
        multipliers.nu = self.lagrangian.unscaled(self.sequential.nu)
        self.view = self.lagrangian.view(self.view.point)
        self.gradient = self.sequential.combined(self.view.omega, self.view.nu)

    def turn_back(self) -> Visit | None:
        """The last point within reach of the constraints, with a larger penalty on them: off them
        the objectives may fall without end."""
        if self.turns_left == 0 or self.lagrangian.violation(self.view) <= self.lagrangian.far:
            self.inside = self.view.point
            return None
        self.turns_left -= 1
        self.lagrangian.stiffen()
        self.curvature = self.fresh()
        return self.begin_inner(self.lagrangian.view(self.inside))

    def take(self, trial: View, move: Tensor, reached: Tensor) -> Visit:
        self.curvature.add(move, reached - self.gradient)
        self.taken += 1
        return self.look(trial, reached, steps=1)

    def escape(self) -> Visit | None:
        """A point below a saddle, by a step along negative curvature of A."""
        if self.escapes_left == 0:
            return None
        self.escapes_left -= 1
        if self.nearing:
            assert self.near is not None
            if self.lagrangian.is_at(self.view, self.near.objectives.tolist()):
                # An end of the front, or a local minimum that longer steps may leave.
                self.nearing = False
                return self.begin_inner(self.lagrangian.view(self.inside))._replace(escaped=True)
            self.leave_sequence()
        bend = most_negative_curvature(
            self.problem.problem,
            self.view.point.z,
            self.gradient,
            lambda z: self.lagrangian.gradient(self.lagrangian.at(z)),
        )
        if bend is None:
            return None
        z, size = self.view.point.z, max(1.0, float(torch.linalg.vector_norm(self.view.point.z)))
        slack = self.rounding * abs(self.view.value)
        for length in (0.1 * size, 0.01 * size, 0.001 * size):
            for sign in (1.0, -1.0):
                trial = self.problem.problem.project(z + sign * length * bend)
                view = self.lagrangian.at(trial)
                if not view.value < self.view.value - slack:
                    continue
                gradient = self.lagrangian.gradient(view)
                if bool(gradient.isfinite().all()):
                    self.curvature, self.stalls = self.fresh(), 0
                    return self.begin_inner(view, gradient)._replace(escaped=True)
        return None

    def learnt(self) -> Learnt:
        """For a run from where this one ended."""
        dense = self.curvature.hessian if isinstance(self.curvature, DenseBFGS) else None
        learnt = self.lagrangian.learnt(dense)
        if self.sequential is None:
            return learnt
        return learnt._replace(lagrangian=self.sequential.learnt())

    def remark(self, result: Result) -> str:
        size, began = (float(torch.linalg.vector_norm(z)) for z in (result.x, self.x0))
        if not result.converged and size > _GONE * max(1.0, began):
            return (
                f"x is {size:.2g} away: the objectives may have no least value; if they have one, "
                "give bounds."
            )
        if len(result.constraints) + len(result.inequalities) == 0:
            return ""
        duals = torch.cat([result.constraint_multipliers, result.inequality_multipliers])
        if self.lagrangian.rows is not None:
            duals = duals / self.lagrangian.rows.double().cpu()
        size = float(duals.norm())
        if result.converged and size > self.lagrangian.large_dual:
            return (
                f"The multipliers of the constraints are large (‖ν‖ = {size:.2g}): the gradients "
                "of the constraints are nearly dependent at x, which need not be a KKT point."
            )
        if result.converged or result.kkt_parts.feasibility <= (
            _FEASIBLE * self.lagrangian.units.constraint
        ):
            return ""
        point = self.problem.at(result.x)
        excess = point.inequalities.clamp(min=0)
        slope = self.problem.vjp(point, point.constraints, excess).reshape(point.z.shape)
        size = math.hypot(float(point.constraints.norm()), float(excess.norm()))
        left = float(self.problem.problem.projected(point.z, slope).norm())
        return (
            f"The constraints are not met: they miss by {size:.2g} at x, and the gradient of half "
            f"the square of that is {left:.2g}. They may have no solution near x; if they have "
            "one, start nearer to it."
        )

    def fresh(self) -> LBFGS | DenseBFGS:
        few = self.x0.numel() <= _FEW
        return DenseBFGS() if few else LBFGS(self.memory)

    @property
    def radius(self) -> float:
        """No step moves z by more than its own size, out to some plateau."""
        return max(1.0, float(torch.linalg.vector_norm(self.view.point.z)))

    def direction(self) -> Tensor:
        """What to go down along; coordinates that a bound holds stay where they are."""
        z, free = self.view.point.z, None
        if self.problem.problem.bounds is not None:
            held = (self.residual == 0) & (self.gradient != 0)
            free = ~held if bool(held.any()) else None
        step = self.curvature.solve(self.gradient, free)
        radius = self.radius
        if step is None:  # a first step, short since its scale is not known
            step, radius = self.residual, 0.1 * radius
        size = float(torch.linalg.vector_norm(step))
        if size > radius:
            step = step * (radius / size)
        return step.view_as(z)

    def farther(self, trial: View, move: Tensor, step: Tensor) -> tuple[View, Tensor]:
        """The same step stretched while A falls and does not bend upwards, as far as steps go.

        Beside a saddle steps along the gradient are short, and pairs have no upward curvature.
        """
        z, project = self.view.point.z, self.problem.problem.project
        longest = self.radius / float(torch.linalg.vector_norm(step))
        length = _STRETCH
        while length <= longest:
            other = self.lagrangian.at(project(torch.sub(z, step, alpha=length)))
            if not other.value < trial.value:
                break
            trial, move = other, (other.point.z - z).flatten()
            if not self.is_straight(trial, float(move @ self.gradient)):
                break
            length *= _STRETCH
        return trial, move

    def is_straight(self, trial: View, slope: float) -> bool:
        """Whether A fell by nearly all that its slope along the move says, or more."""
        return trial.value - self.view.value < _STRAIGHT * slope

    def search(self, step: Tensor) -> tuple[View, Tensor, Tensor] | None:
        """Backtrack to a sufficient decrease (Armijo) and a finite gradient along the projected
        step; where to, the move, flattened, and the gradient there."""
        z, project = self.view.point.z, self.problem.problem.project
        slack = self.rounding * abs(self.view.value)
        length = 1.0
        for _ in range(_HALVINGS):
            trial = self.lagrangian.at(project(torch.sub(z, step, alpha=length)))
            move = (trial.point.z - z).flatten()
            slope = float(move @ self.gradient)
            rise = trial.value - self.view.value
            if rise <= 1e-4 * slope + slack:
                if length == 1.0 and self.is_straight(trial, slope):
                    trial, move = self.farther(trial, move, step)
                gradient = self.lagrangian.gradient(trial)
                if bool(gradient.isfinite().all()):
                    return trial, move, gradient
                length *= 0.5
                continue
            # The lowest point of the parabola through what is known, kept within a tenth and half.
            lowest = -slope / (2 * (rise - slope)) if rise > slope else 0.1
            length *= min(0.5, max(0.1, lowest)) if math.isfinite(lowest) else 0.1
        return None
