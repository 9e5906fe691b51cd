"""The augmented Lagrangian of the weighted-Chebyshev problem, with ρ and δ eliminated.

Eq. (1) with multipliers ν for h = 0 and w0 for λ_s f_s + δ_s = ρ, minimised exactly over ρ and
δ >= 0, leaves, with a = λ∘F,

    A(z) = max over the simplex of wᵀa − ‖w − w0‖² / (2v)  +  νᵀh + u/2 ‖h‖²,

whose maximiser is w = proj_simplex(w0 + v a) and whose gradient is the one combined gradient
Σ w_s λ_s ∇f_s + Σ (ν_i + u h_i) ∇h_i. With w0 = 0 and ν = 0 its stationary points are those of
Eq. (1); at the right multipliers they are KKT points exactly, free of the 1/u and 1/v bias.
Inequalities g <= 0 add (‖max(0, κ + u g)‖² − ‖κ‖²) / 2u, with multipliers κ >= 0, which ν here
includes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.numerics.kkt import KKTParts, best_rho
from paretune.moo.problem import Point
from paretune.moo.solvers.loop import CountedProblem, Units, Visit
from paretune.moo.solvers.multipliers import DampedMultipliers
from paretune.moo.solvers.result import Learnt, Result

# Curvature that the penalty on h adds, in multiples of the objectives' own: the same for all
# problems.
_U_SCALE = 3.0
_GROWTH, _WANTED_CONTRACTION = 4.0, 0.5
_SAME = 1e-5  # points closer than this, in parts of the largest λ_s f_s, are one
# ‖ν‖ may reach this many times the ratio of the gradients of objectives and constraints.
_DUAL_LIMIT = 1e8
_PENALTY_LIMIT = 1e12  # times the first u and v
_MET = 1e-4  # ‖(h, g)‖ below this says nothing of which inequalities will matter
_FAR = 1e3  # ‖(h, g)‖ above this many times its size at the start is far out
_STIFFER = 100.0  # u after a step far out
# Rows of (h, g) whose slopes differ by more than this factor are brought to one.
_ROWS_APART = 30.0
_FEW_ROWS = 8  # more are not looked at
# Rows that together have less than this part of the objectives' slope may cancel, as g and −g do.
_CANCELLED = 1e-3
_FLAT = 1e-7  # rows with less than this part of the steepest slope are left as they are
# ‖ν‖ above this many times that ratio is the mark of constraint gradients that are dependent.
_LARGE_DUAL = 100.0


class View(NamedTuple):
    """A(z) and its ingredients at one point.

    Attributes:
        point: F, h and their gradients.
        value: A(z).
        chebyshev: a = λ∘F, shifted, of the objectives of positive preference.
        omega: w of the objectives of positive preference, on the simplex.
        nu: ν + u h and max(0, κ + u g), shape (q + r,).
    """

    point: Point
    value: float
    chebyshev: list[float]
    omega: list[float]
    nu: Tensor


def fitting(learnt: Learnt | None, point: Point) -> Learnt | None:
    """What was learnt, if it is of a problem with as many variables and constraints."""
    if learnt is None or learnt.bends.shape != stack(point).shape:
        return None
    if learnt.hessian is not None and len(learnt.hessian) != point.z.numel():
        return None
    return learnt


def stack(point: Point) -> Tensor:
    """(h, g), shape (q + r,)."""
    if len(point.inequalities) == 0:
        return point.constraints
    return torch.cat([point.constraints, point.inequalities])


class AugmentedLagrangian:
    """A(z) with its current multipliers and penalties."""

    def __init__(
        self,
        problem: CountedProblem,
        lam: Sequence[float],
        shift: Sequence[float],
        start: Point,
        tol: float = 0.0,
        v_scale: float = 1.0,
        scale_rows: bool = False,
        learnt: Learnt | None = None,
    ) -> None:
        self.problem, self.lam, self.shift, self.tol = problem, lam, shift, tol
        self.wanted = [s for s, p in enumerate(lam) if p > 0]  # the others are left out
        self.multipliers = DampedMultipliers(len(self.wanted))
        self.q, self.unequal = len(start.constraints), len(start.inequalities) > 0
        self.multipliers.nu = torch.zeros_like(stack(start))
        self.rows: Tensor | None = None  # what each row of (h, g) is multiplied by; None for 1
        self.damping = 1.0  # σ / u: the part of a full multiplier update that is taken
        self._u = self._v = 1.0
        self._last = (math.inf, math.inf)
        self._set_penalties(start, v_scale, scale_rows, learnt)

    @property
    def penalties(self) -> tuple[float, float]:
        """u and v."""
        return self._u, self._v

    def learnt(self, hessian: NDArray[np.float64] | None) -> Learnt:
        """What a run for another preference may begin with."""
        return Learnt(self._met, self._swing, self._bends, self.rows, hessian)

    def take_up(self, near: Result) -> None:
        """Begin with the multipliers of another run, where their shapes fit."""
        nu = torch.cat([near.constraint_multipliers, near.inequality_multipliers])
        omega = [near.multipliers[s].item() for s in self.wanted]
        current = self.multipliers.nu
        assert current is not None
        if nu.shape == current.shape and bool(nu.isfinite().all()):
            self.multipliers.nu = self.unscaled(nu.to(current))
        if (total := sum(omega)) > 0:
            self.multipliers.w0 = [w / total for w in omega]

    def at(self, z: Tensor) -> View:
        """Evaluate F and h at z."""
        return self.view(self.problem.at(z))

    def view(self, point: Point) -> View:
        """A at a point with the current multipliers."""
        objectives = point.objectives.tolist()
        values = [self.lam[s] * (objectives[s] + self.shift[s]) for s in self.wanted]
        omega, w0 = self.multipliers.omega(values, self._v), self.multipliers.w0
        top = max(values)
        value = top + sum(w * (a - top) for w, a in zip(omega, values, strict=True))
        value -= sum((w - b) * (w - b) for w, b in zip(omega, w0, strict=True)) / (2 * self._v)
        nu = self.multipliers.nu
        assert nu is not None
        if nu.numel():
            rows = self.scaled(stack(point))
            raised = self.multipliers.raised(rows, self._u)
            h, _ = self.split(rows)
            (old, was), (new, now) = self.split(nu), self.split(raised)
            value += float((old + new) @ h) / 2
            if was is not None and now is not None:
                now = now.clamp(min=0)
                raised = torch.cat([new, now])
                value += float(now.square().sum() - was.square().sum()) / (2 * self._u)
            nu = self.scaled(raised)
        return View(point, value, values, omega, nu)

    def split(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        """What belongs to h, and to g; None without inequalities."""
        return (values[: self.q], values[self.q :]) if self.unequal else (values, None)

    def scaled(self, values: Tensor) -> Tensor:
        """(h, g) as A sees it; or ν as the problem's own rows have it."""
        return values if self.rows is None else values * self.rows

    def unscaled(self, nu: Tensor) -> Tensor:
        """ν of the problem's own rows as A has it."""
        return nu if self.rows is None else nu / self.rows

    def violation(self, view: View) -> float:
        """‖(h, min(κ, −g))‖ of the rows as A sees them."""
        if not view.nu.numel():
            return 0.0
        h, g = self.split(self.scaled(stack(view.point)))
        size = float(torch.linalg.vector_norm(h))
        if g is None:
            return size
        kappa = self.unscaled(view.nu)[self.q :]
        return math.hypot(size, float(torch.linalg.vector_norm(torch.minimum(kappa, -g))))

    def is_at(self, view: View, objectives: Sequence[float]) -> bool:
        """Whether a view has these F, as far as matters on a front."""
        values = [self.lam[s] * (objectives[s] + self.shift[s]) for s in self.wanted]
        apart = max(abs(a - b) for a, b in zip(values, view.chebyshev, strict=True))
        return apart <= _SAME * max(map(abs, view.chebyshev))

    def gradient(self, view: View) -> Tensor:
        """∇A, flattened."""
        weights = [w * p for w, p in zip(self.spread(view.omega), self.lam, strict=True)]
        gradient = self.problem.gradient(view.point, weights, *self.split(view.nu))
        return self.problem.problem.within_bounds(view.point.z, gradient).flatten()

    def spread(self, omega: Sequence[float]) -> list[float]:
        """ω of all objectives, 0 for those that are left out."""
        full = [0.0] * len(self.lam)
        for s, w in zip(self.wanted, omega, strict=True):
            full[s] = w
        return full

    def visit(self, view: View, stationarity: float, steps: int, opens: bool) -> Visit:
        """The view with ρ and K, given ‖∇A‖ (of its projected form under bounds)."""
        rho = best_rho(view.chebyshev, view.omega)
        gaps = [rho - a for a in view.chebyshev]
        slack = map(min, view.omega, gaps)
        point, (nu, kappa), violation = view.point, self.split(view.nu), view.point.constraints
        if kappa is not None:
            violation = torch.cat([violation, torch.minimum(kappa, -point.inequalities)])
        feasibility = float(torch.linalg.vector_norm(violation)) if view.nu.numel() else 0.0
        parts = KKTParts(abs(sum(view.omega) - 1), stationarity, feasibility, math.hypot(*slack))
        return Visit(
            x=point.z,
            objectives=point.objectives,
            constraints=point.constraints,
            rho=rho,
            omega=self.spread(view.omega),
            nu=nu,
            inequalities=point.inequalities,
            kappa=point.inequalities if kappa is None else kappa,
            parts=parts,
            error=self.units.error(parts, gaps, view.omega),
            steps=steps,
            opens=opens,
        )

    def update(self, view: View, parts: KKTParts) -> None:
        """Move the multipliers to the view's, after an inner solve.

        ν moves by σ h with σ = damping · u, w0 likewise by its damped step. The damping is halved
        when ‖h‖ has grown and doubled up to 1 when it has not. A penalty is raised when its part
        of K shrank too little and stands above the stationarity that the inner solve reached.
        """
        feasibility = parts.feasibility if self.rows is None else self.violation(view)
        self._damp(feasibility)
        self.step(view)
        last_feasibility, last_slack = self._last
        if feasibility > max(_WANTED_CONTRACTION * last_feasibility, parts.stationarity):
            self._u = min(_GROWTH * self._u, self._most[0])
        if parts.complementarity > max(_WANTED_CONTRACTION * last_slack, parts.stationarity):
            self._v = min(_GROWTH * self._v, self._most[1])
        self._last = (feasibility, parts.complementarity)

    def step(self, view: View) -> None:
        """ν += damping · u h, clipped, and w0 += damping (w − w0)."""
        nu = self.multipliers.nu
        assert nu is not None
        if nu.numel():
            nu = nu + self.damping * (self.unscaled(view.nu) - nu)
        self.multipliers.move(nu, self._dual_limit, view.omega, self.damping)

    def stiffen(self) -> None:
        """A larger u, after a step far from what the constraints allow."""
        self._u = min(_STIFFER * self._u, self._most[0])

    def _damp(self, feasibility: float) -> None:
        if feasibility > self._last[0]:
            self.damping /= 2
        else:
            self.damping = min(1.0, 2 * self.damping)

    def _set_penalties(
        self, start: Point, v_scale: float, scale_rows: bool, learnt: Learnt | None
    ) -> None:
        """u from the curvature of the mean of λ∘F and the size of ∇h, v from the spread of λ∘F."""
        view = self.view(start)
        count = len(self.wanted)
        mean = [p / count for p in self.lam]
        slope = self.problem.gradient(start, mean)
        slope = self.problem.problem.within_bounds(start.z, slope)
        size, length = float(slope.norm()), max(1.0, float(start.z.norm()))
        if not math.isfinite(size):
            raise InputError("The gradients of the objectives are not finite at x0.")
        if learnt is None:
            self._met, self._swing = self._curvature(start, mean, slope, length)
        else:
            self._met, self._swing = learnt.curvature, learnt.swing
        self._bends = torch.zeros_like(stack(start))
        curvature = max(self._met, 1e-3 * size / length)
        gradient, constraint = max(size, curvature * length), 0.0
        spread = max(view.chebyshev) - min(view.chebyshev)
        objective = max(spread, 0.1 * max(map(abs, view.chebyshev))) or gradient * length or 1.0
        self._v = v_scale / objective
        self._dual_limit = self.large_dual = self.far = math.inf
        h = torch.cat([start.constraints, start.inequalities.clamp(min=0)])
        if len(h):
            if learnt is not None:
                self.rows, self._bends = learnt.rows, learnt.bends
            elif scale_rows and len(h) <= _FEW_ROWS:
                slopes, self._bends = self._probe(start, 1e-3 * length)
                self.rows = _row_scales(slopes)
            met = float(h.norm())
            told = met > (_MET if len(start.inequalities) else 0.0)
            seen = self.scaled(h) if told else torch.ones_like(h)
            slope = self._along(start, seen)
            steepness = float(slope.norm()) / float(seen.norm())
            if not told and len(h) > 1 and steepness < _CANCELLED * gradient:
                draws = torch.randn(len(h), generator=torch.Generator().manual_seed(0))
                other = draws.to(h)
                aside = self._along(start, other)
                if float(aside.norm()) / float(other.norm()) > steepness:
                    seen, slope = other, aside
                    steepness = float(slope.norm()) / float(seen.norm())
            if steepness > 0:
                self._dual_limit = _DUAL_LIMIT * gradient / steepness
                self.large_dual = _LARGE_DUAL * gradient / steepness
            # Multipliers of about that size give the Lagrangian the bends of the constraints.
            bend = float(self.scaled(self._bends).max()) * gradient / (steepness or 1.0)
            self._u = _U_SCALE * (max(curvature, bend) or 1.0) / (steepness or 1.0) ** 2
            constraint = max(met, float(slope.norm()) / float(self.scaled(seen).norm()) * length)
            self.far = _FAR * max(float(self.scaled(h).norm()), steepness * length)
        self._most = _PENALTY_LIMIT * self._u, _PENALTY_LIMIT * self._v
        eps = torch.finfo(start.z.dtype).eps
        rounded = count * max(size, self._swing)
        self.units = Units.of(count * gradient, objective, constraint, self.tol, eps, rounded)

    def _along(self, start: Point, seen: Tensor) -> Tensor:
        """The slope of Σ seen_i row_i, as A sees the rows."""
        along = self.scaled(seen)
        return self.problem.vjp(start, along[: self.q], along[self.q :])

    def _probe(self, start: Point, length: float) -> tuple[Tensor, Tensor]:
        """Slope and bend of each row of (h, g) along two random lines, for three evaluations."""
        generator, here = torch.Generator().manual_seed(0), stack(start)
        draws = torch.randn(2, *start.z.shape, generator=generator, dtype=torch.float64)
        moves = [draw.to(start.z) * (length / float(draw.norm())) for draw in draws]
        changes = []
        for move in (moves[0], -moves[0], moves[1]):
            other = self.problem.at(self.problem.problem.project(start.z + move))
            moved = float((other.z - start.z).norm())  # 0 in a corner of the bounds
            changes.append((stack(other) - here) / moved if moved > 0 else torch.zeros_like(here))
        ahead, behind, aside = changes
        return (ahead**2 + behind**2 + 2 * aside**2).sqrt() / 2, (ahead + behind).abs() / length

    def _curvature(
        self, start: Point, mean: list[float], slope: Tensor, length: float
    ) -> tuple[float, float]:
        """c = ‖∇(z) − ∇(z − e)‖ / ‖e‖ of the mean of λ∘F, for a short e along its gradient.

        And its swing, c_i z_i with the c_i of each variable alone, none above c: where variables
        are of different sizes, the steepest of them says nothing of the gradients of the others.
        """
        size, short = float(slope.norm()), 1e-3 * length
        step = slope * (short / size) if size > 0 else torch.full_like(slope, short)
        other = self.problem.at(self.problem.problem.project(start.z - step))
        moved = float((other.z - start.z).norm())
        if moved == 0:
            return 0.0, 0.0
        change = self.problem.gradient(other, mean) - slope
        most = float(change.norm()) / moved
        if not math.isfinite(most):
            return 0.0, 0.0
        each = (change / (other.z - start.z)).abs().nan_to_num(most, most).clamp(max=most)
        place = float(start.z.norm())
        swing = float((each * start.z).norm()) * (length / place) if place > 0 else most * length
        return most, swing


def _row_scales(slopes: Tensor) -> Tensor | None:
    """What brings the slopes of all rows to their mean; None where they are much the same."""
    top = float(slopes.max())
    seen = slopes > _FLAT * top
    if not (math.isfinite(top) and bool(seen.any())):
        return None
    if top <= _ROWS_APART * float(slopes[seen].min()):
        return None
    return torch.where(seen, slopes[seen].log().mean().exp() / slopes, 1.0)
