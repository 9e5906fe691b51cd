"""The augmented Lagrangian of the weighted-Chebyshev problem, with ρ and δ eliminated.

Eq. (1) with multipliers ν for h = 0 and w0 for λ_s f_s + δ_s = ρ, minimised exactly over ρ and
δ >= 0, leaves, with a = λ∘F,

    A(z) = max over the simplex of wᵀa − ‖w − w0‖² / (2v)  +  νᵀh + u/2 ‖h‖²,

whose maximiser is w = proj_simplex(w0 + v a) and whose gradient is the one combined gradient
Σ w_s λ_s ∇f_s + Σ (ν_i + u h_i) ∇h_i. With w0 = 0 and ν = 0 its stationary points are those of
Eq. (1); at the right multipliers they are KKT points exactly, free of the 1/u and 1/v bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.numerics.kkt import KKTParts, best_rho
from paretune.moo.problem import Point, Problem

# Curvature that the penalty on h adds, in multiples of the objectives' own, and the size of
# v times the spread of λ∘F at the start: the same for all problems.
_U_SCALE, _V_SCALE = 3.0, 1.0
_GROWTH, _WANTED_CONTRACTION = 4.0, 0.5
# ‖ν‖ may reach this many times the ratio of the gradients of objectives and constraints.
_DUAL_LIMIT = 1e8


def project_simplex(values: Sequence[float]) -> list[float]:
    """The nearest point of the probability simplex.

    >>> project_simplex([0.7, 0.5, -1.0])
    [0.6, 0.4, 0.0]
    """
    total = threshold = 0.0
    for k, value in enumerate(sorted(values, reverse=True), start=1):
        total += value
        if value * k > total - 1:
            threshold = (total - 1) / k
    return [max(0.0, value - threshold) for value in values]


@dataclass(frozen=True)
class View:
    """A(z) and its ingredients at one point.

    Attributes:
        point: F, h and their gradients.
        value: A(z).
        chebyshev: a = λ∘F, shifted.
        omega: w, shape (M,), on the simplex.
        nu: ν + u h, shape (q,).
    """

    point: Point
    value: float
    chebyshev: list[float]
    omega: list[float]
    nu: Tensor


class AugmentedLagrangian:
    """A(z) with its current multipliers and penalties, counting what is evaluated."""

    def __init__(
        self, problem: Problem, lam: Sequence[float], shift: Sequence[float], start: Point
    ) -> None:
        self.problem, self.lam, self.shift = problem, lam, shift
        self.n_gradients, self.n_functions = 0, 1
        self.size = start.z.numel()
        self.nu = torch.zeros_like(start.constraints)
        self.w0 = [1 / len(lam)] * len(lam)
        self.damping = 1.0  # σ / u: the part of a full multiplier update that is taken
        self._u = self._v = 1.0
        self._last = (math.inf, math.inf)
        self._set_penalties(start)

    @property
    def penalties(self) -> tuple[float, float]:
        """u and v."""
        return self._u, self._v

    def at(self, z: Tensor) -> View:
        """Evaluate F and h at z."""
        self.n_functions += 1
        return self.view(self.problem.at(z))

    def view(self, point: Point) -> View:
        """A at a point with the current multipliers."""
        values = [
            p * (f + c)
            for p, f, c in zip(self.lam, point.objectives.tolist(), self.shift, strict=True)
        ]
        # Near the end all active a agree in many digits; w and A are computed from differences.
        top = max(values)
        gaps = [a - top for a in values]
        omega = project_simplex([w + self._v * g for w, g in zip(self.w0, gaps, strict=True)])
        value = top + sum(w * g for w, g in zip(omega, gaps, strict=True))
        value -= sum((w - b) * (w - b) for w, b in zip(omega, self.w0, strict=True)) / (2 * self._v)
        nu = self.nu
        if nu.numel():
            h = point.constraints
            nu = torch.add(self.nu, h, alpha=self._u)
            value += float((self.nu + nu) @ h) / 2
        return View(point, value, values, omega, nu)

    def gradient(self, view: View) -> Tensor:
        """∇A, flattened."""
        self.n_gradients += 1
        weights = [w * p for w, p in zip(view.omega, self.lam, strict=True)]
        return view.point.combine(weights, view.nu).flatten()

    def certify(self, view: View, stationarity: float) -> tuple[float, KKTParts]:
        """ρ and the parts of K, given ‖∇A‖ (of its projected form under bounds)."""
        rho = best_rho(view.chebyshev, view.omega)
        slack = [min(w, rho - a) for w, a in zip(view.omega, view.chebyshev, strict=True)]
        feasibility = float(torch.linalg.vector_norm(view.point.constraints))
        return rho, KKTParts(
            abs(sum(view.omega) - 1), stationarity, feasibility, math.hypot(*slack)
        )

    def update(self, view: View, parts: KKTParts) -> None:
        """Move the multipliers to the view's, after an inner solve.

        ν moves by σ h with σ = damping · u, w0 likewise by its damped step. The damping is halved
        when ‖h‖ has grown and doubled up to 1 when it has not. A penalty is raised when its part
        of K shrank too little and stands above the stationarity that the inner solve reached.
        """
        self._damp(parts)
        self.step(view, self.damping)
        last_feasibility, last_slack = self._last
        if parts.feasibility > max(_WANTED_CONTRACTION * last_feasibility, parts.stationarity):
            self._u *= _GROWTH
        if parts.complementarity > max(_WANTED_CONTRACTION * last_slack, parts.stationarity):
            self._v *= _GROWTH
        self._last = (parts.feasibility, parts.complementarity)

    def step(self, view: View, damping: float) -> None:
        """ν += damping · u h, clipped, and w0 += damping (w − w0)."""
        nu = self.nu + damping * (view.nu - self.nu)
        size = float(torch.linalg.vector_norm(nu))
        self.nu = nu * (self._dual_limit / size) if size > self._dual_limit else nu
        self.w0 = [b + damping * (w - b) for b, w in zip(self.w0, view.omega, strict=True)]

    def _damp(self, parts: KKTParts) -> None:
        if parts.feasibility > self._last[0]:
            self.damping /= 2
        else:
            self.damping = min(1.0, 2 * self.damping)

    def _set_penalties(self, start: Point) -> None:
        """u from the curvature of the mean of λ∘F and the size of ∇h, v from the spread of λ∘F."""
        view = self.view(start)
        mean = [p / len(self.lam) for p in self.lam]
        slope = start.combine(mean)
        size, length = float(slope.norm()), max(1.0, float(start.z.norm()))
        self.n_gradients += 1
        if not math.isfinite(size):
            raise InputError("The gradients of the objectives are not finite at x0.")
        curvature = self._curvature(start, mean, slope, 1e-3 * length)
        curvature = max(curvature, 1e-3 * size / length)
        spread = max(view.chebyshev) - min(view.chebyshev)
        self._v = _V_SCALE / max(spread, 0.1 * max(view.chebyshev))
        self._dual_limit = math.inf
        if len(start.constraints):
            h = start.constraints if float(start.constraints.norm()) > 0 else self.nu + 1
            self.n_gradients += 1
            steepness = float(start.vjp(h).norm()) / float(h.norm())
            if steepness > 0:
                self._dual_limit = _DUAL_LIMIT * max(size, curvature * length) / steepness
            self._u = _U_SCALE * (curvature or 1.0) / (steepness or 1.0) ** 2

    def _curvature(self, start: Point, mean: list[float], slope: Tensor, length: float) -> float:
        """‖∇(z) − ∇(z − e)‖ / ‖e‖ of the mean of λ∘F, for e along its gradient."""
        size = float(slope.norm())
        step = slope * (length / size) if size > 0 else torch.full_like(slope, length)
        other = self.problem.at(self.problem.project(start.z - step))
        self.n_functions += 1
        moved = float((other.z - start.z).norm())
        if moved == 0:
            return 0.0
        self.n_gradients += 1
        return float((other.combine(mean) - slope).norm()) / moved
