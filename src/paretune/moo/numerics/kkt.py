"""The KKT system of the weighted-Chebyshev problem (Definition 5): certificates for any point."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.numerics.nnls import nonnegative_least_squares
from paretune.moo.numerics.simplex_qp import solve_simplex_qp
from paretune.moo.preference import Preference
from paretune.moo.problem import Point, Problem, check_count

# Up to this many entries ∇h is formed to solve for ν and to find its rank.
_DENSE_ENTRIES = 4_000_000
# Singular values below this part of the largest count as zero.
_RANK_TOLERANCE = 1e-8
# Below this part of the largest one a singular value is warned about.
_NEARLY = 1e-3
# Objectives count as active in a warning when they are this close to ρ, or weigh more than it.
_ACTIVE_TOLERANCE = 1e-6


class KKTParts(NamedTuple):
    """Norms of the four parts of K; their root of squares is the residual."""

    multiplier_sum: float
    stationarity: float
    feasibility: float
    complementarity: float


class Multipliers(NamedTuple):
    """ρ, ω of shape (M,) and ν of shape (q,), with inequalities (ν, κ), float64 on the CPU."""

    rho: float
    omega: Tensor
    nu: Tensor


class DegenerateConstraintsWarning(UserWarning):
    """The gradients that LICQ wants independent are (nearly) dependent."""


@dataclass(frozen=True)
class KKTSystem:
    """K(ρ, z, ω, ν, λ) of Definition 5, float64 on the CPU.

    Attributes:
        multiplier_sum: Σ ω_s − 1.
        stationarity: g = Σ ω_s λ_s ∇f_s + Σ ν_i ∇h_i, flattened, shape (z.numel(),). With bounds
            its projected form z − proj(z − g), which is g where no bound is in the way.
        constraints: h(z), shape (q,).
        complementarity: min(ω_s, ρ − λ_s f_s), shape (M,).
        inequalities: min(κ_j, −g_j), shape (r,).
    """

    multiplier_sum: float
    stationarity: Tensor
    constraints: Tensor
    complementarity: Tensor
    inequalities: Tensor

    @property
    def parts(self) -> KKTParts:
        return KKTParts(
            abs(self.multiplier_sum),
            float(self.stationarity.norm()),
            math.hypot(float(self.constraints.norm()), float(self.inequalities.norm())),
            float(self.complementarity.norm()),
        )

    @property
    def norm(self) -> float:
        """‖K‖₂, not squared."""
        return math.hypot(*self.parts)


def kkt_system(
    problem: Problem,
    x: Tensor | ArrayLike,
    rho: float,
    omega: Tensor | ArrayLike,
    nu: Tensor | ArrayLike | None,
    preference: Preference | Sequence[float],
) -> KKTSystem:
    """K(ρ, x, ω, ν, λ), the paper's measure of convergence (Definition 5).

    It is 0 exactly at the KKT points of min ρ s.t. h(z) = 0, λ_s f_s(z) <= ρ. One combined gradient
    is computed. Algorithm 1 takes ω_s = v(λ_s f_s + δ_s − ρ) and ν = u h (Remark 2);
    `best_multipliers` finds the ones that make K small.

    Args:
        problem: objectives, constraints and bounds.
        x: the point.
        rho: ρ.
        omega: ω, shape (M,).
        nu: ν, shape (q,), followed by the κ >= 0 of inequalities, shape (r,); None without
            constraints.
        preference: λ, positive weights that sum to 1.

    Raises:
        InputError: shapes that do not fit, or a weight that is 0.
    """
    point = problem.at(as_tensor(x))
    lam = positive_weights(preference)
    check_count(point.objectives, len(lam))
    weights = torch.as_tensor(omega, dtype=torch.float64).cpu()
    duals = torch.as_tensor([] if nu is None else nu, dtype=torch.float64).cpu()
    q, excess = len(point.constraints), point.inequalities.double().cpu()
    if weights.shape != (len(lam),) or duals.shape != (q + len(excess),):
        raise InputError(
            f"omega and nu must have shapes ({len(lam)},) and ({q + len(excess)},), "
            f"got {tuple(weights.shape)} and {tuple(duals.shape)}."
        )
    duals, sides = duals[:q], duals[q:]
    scaled = torch.tensor(lam, dtype=torch.float64)
    gradient = point.combine(weights * scaled, duals, sides)
    return KKTSystem(
        multiplier_sum=float(weights.sum()) - 1,
        stationarity=problem.projected(point.z, gradient).flatten().double().cpu(),
        constraints=point.constraints.double().cpu(),
        complementarity=torch.minimum(weights, rho - scaled * point.objectives.double().cpu()),
        inequalities=torch.minimum(sides, -excess),
    )


def best_multipliers(
    problem: Problem, x: Tensor | ArrayLike, preference: Preference | Sequence[float]
) -> Multipliers:
    """Multipliers that make ‖K‖ small at x, so that a point from any solver can be certified.

    For each k, with the k largest λ_s f_s as the active objectives, the best ω >= 0 and ν are
    found exactly (a simplex QP on the gradients without their components along ∇h); the k with the
    smallest ‖K‖ wins. ν is the one of least norm. Coordinates on a bound do not count towards the
    choice. With many variables and constraints ν comes from conjugate gradients on products.
    Inequalities within 1e-6 of 0, and those that are violated, count as active: κ >= 0 on them.

    Warns with `DegenerateConstraintsWarning`, giving the reason, when ∇h or the gradients that
    LICQ wants independent in (ρ, z)-space, (−1, λ_s ∇f_s) of the active objectives and (0, ∇h_i),
    are nearly dependent: then a minimum need not be a KKT point.

    Raises InputError as `kkt_system` does.
    """
    point = problem.at(as_tensor(x))
    lam = positive_weights(preference)
    check_count(point.objectives, len(lam))
    scaled = torch.tensor(lam, dtype=torch.float64)
    values = scaled * point.objectives.double().cpu()
    free = _free(problem, point.z)
    rows = scaled[:, None] * point.gradients().double().cpu() * free
    solve = _DualSolver(point, free)
    targets = [solve(-row) for row in rows]
    reduced = rows + torch.stack([along for _, along in targets])
    gramian = reduced @ reduced.T
    sides, edges, pulls = _active_sides(point, free, solve)
    order = torch.argsort(values, descending=True).tolist()
    best: tuple[float, float, Tensor, Tensor] | None = None
    for k in range(1, len(lam) + 1):
        idle = torch.ones(len(lam), dtype=torch.float64)
        idle[order[:k]] = 0
        if len(edges):
            omega, kappa = _with_sides(reduced, edges, idle)
            left = omega @ reduced + kappa @ edges
            square = float((omega.sum() - 1) ** 2 + left @ left)
        else:
            quadratic = gramian + torch.diag(idle)
            solution, _, value = solve_simplex_qp(quadratic.tolist(), [0.0] * len(lam))
            # Over all ω >= 0 with this active set the best multiple of the simplex point:
            omega = torch.tensor(solution, dtype=torch.float64) / (1 + max(value, 0.0))
            kappa = omega.new_zeros(0)
            square = float((omega.sum() - 1) ** 2 + omega @ gramian @ omega)
        rho = best_rho(values.tolist(), omega.tolist())
        square += float((torch.minimum(omega, rho - values) ** 2).sum())
        if best is None or square < best[0]:
            best = square, rho, omega, kappa
    assert best is not None
    _, rho, omega, kappa = best
    close = values >= rho - _ACTIVE_TOLERANCE * float(values.abs().max())
    solve.warn_if_degenerate(rows[close | (omega > _ACTIVE_TOLERANCE)])
    nu = torch.stack([dual for dual, _ in targets]).T @ omega
    full = torch.zeros(len(point.inequalities), dtype=torch.float64)
    if len(edges):
        full[sides] = kappa
        nu = nu + pulls.T @ kappa
    return Multipliers(rho, omega, torch.cat([nu, full]))


def _active_sides(point: Point, free: Tensor, solve: _DualSolver) -> tuple[Tensor, Tensor, Tensor]:
    """Which g_j count as active, their gradients without the components along ∇h, and the ν of
    those components, a row each."""
    g = point.inequalities.double().cpu()
    sides = (g >= -_ACTIVE_TOLERANCE).nonzero()[:, 0]
    units = torch.eye(len(g), dtype=torch.float64)[sides]
    rows = [point.vjp(None, unit).double().cpu() * free for unit in units]
    if not rows:
        return sides, free.new_zeros(0, len(free)), free.new_zeros(0, len(point.constraints))
    targets = [solve(-row) for row in rows]
    edges = torch.stack(rows) + torch.stack([along for _, along in targets])
    return sides, edges, torch.stack([dual for dual, _ in targets])


def _with_sides(reduced: Tensor, edges: Tensor, idle: Tensor) -> tuple[Tensor, Tensor]:
    """The ω, κ >= 0 that minimise ‖Σ ω_s r_s + Σ κ_j e_j‖² + (Σ ω_s − 1)² + Σ idle_s ω_s²."""
    size = len(reduced)
    blocks = [torch.cat([reduced, edges]).T, torch.zeros(1, size + len(edges), dtype=torch.float64)]
    blocks[1][0, :size] = 1
    blocks.append(torch.zeros(size, size + len(edges), dtype=torch.float64))
    blocks[2][:, :size] = torch.diag(idle)
    right = np.zeros(len(reduced.T) + 1 + size)
    right[len(reduced.T)] = 1
    found = torch.from_numpy(nonnegative_least_squares(torch.cat(blocks).numpy(), right))
    return found[:size], found[size:]


def best_rho(values: Sequence[float], omega: Sequence[float]) -> float:
    """The ρ that minimises Σ min(ω_s, ρ − a_s)² for given a = λ∘F and ω, exactly.

    Between the breakpoints a_s + ω_s the sum is a parabola whose lowest point is the mean of a
    over the objectives with ρ < a_s + ω_s.

    >>> best_rho([2.0, 1.0], [1.0, 0.0])
    2.0
    """
    pairs = sorted(zip(values, omega, strict=True), key=lambda pair: -(pair[0] + pair[1]))
    best, lowest = max(values), math.inf
    for k in range(1, len(pairs) + 1):
        rho = sum(a for a, _ in pairs[:k]) / k
        total = math.hypot(*[min(w, rho - a) for a, w in pairs])
        if total < lowest:
            best, lowest = rho, total
    return best


class _DualSolver:
    """Least squares in ν: the ν of least norm that minimises ‖∇h ν − target‖, and ∇h ν."""

    def __init__(self, point: Point, free: Tensor) -> None:
        self._point, self._free = point, free
        self._size = len(point.constraints)
        self._basis: tuple[Tensor, Tensor, Tensor] | None = None
        if 0 < self._size * point.z.numel() <= _DENSE_ENTRIES:
            eye = torch.eye(self._size, dtype=point.constraints.dtype, device=point.z.device)
            columns = [self._multiply(unit) for unit in eye]
            self._jacobian = torch.stack(columns, dim=1)
            self._basis = torch.linalg.svd(self._jacobian, full_matrices=False)

    def _multiply(self, direction: Tensor) -> Tensor:
        return self._point.vjp(direction).double().cpu() * self._free

    def _multiply_transposed(self, moved: Tensor) -> Tensor:
        return self._point.jvp(moved * self._free).double().cpu()

    def __call__(self, target: Tensor) -> tuple[Tensor, Tensor]:
        if self._size == 0:
            return torch.zeros(0, dtype=torch.float64), torch.zeros_like(target)
        if self._basis is None:
            return self._conjugate_gradients(target)
        left, sizes, right = self._basis
        keep = sizes > _RANK_TOLERANCE * sizes.max()
        inverse = torch.where(keep, 1 / sizes.clamp(min=torch.finfo(sizes.dtype).tiny), 0.0)
        nu = right.T @ (inverse * (left.T @ target))
        return nu, self._jacobian @ nu

    def _conjugate_gradients(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """CGLS from ν = 0, so that ν has the least norm."""
        nu = torch.zeros(self._size, dtype=torch.float64)
        remaining, along = target.clone(), torch.zeros_like(target)
        slope = direction = self._multiply_transposed(remaining)
        square = first = float(slope @ slope)
        for _ in range(2 * min(self._size, len(target))):
            if square <= 1e-24 * first:
                break
            image = self._multiply(direction)
            step = square / float(image @ image)
            nu, along = nu + step * direction, along + step * image
            remaining = remaining - step * image
            slope = self._multiply_transposed(remaining)
            previous, square = square, float(slope @ slope)
            direction = slope + (square / previous) * direction
        return nu, along

    def warn_if_degenerate(self, active: Tensor) -> None:
        """Warn when ∇h or the LICQ set in (ρ, z)-space is nearly rank deficient."""
        if self._basis is None:
            return
        low, high = float(self._basis[1].min()), float(self._basis[1].max())
        if self._size > len(self._jacobian) or low <= _NEARLY * high:
            warnings.warn(
                f"The {self._size} constraint gradients are (nearly) linearly dependent here "
                f"(singular values {low:.1e} to {high:.1e}), so LICQ "
                "fails: a minimum need not satisfy the KKT conditions, and nu is not unique.",
                DegenerateConstraintsWarning,
                stacklevel=3,
            )
            return
        lifted = torch.cat([active, -torch.ones(len(active), 1, dtype=active.dtype)], dim=1)
        padded = torch.nn.functional.pad(self._jacobian.T, (0, 1))
        stack = torch.nn.functional.normalize(torch.cat([lifted, padded]), dim=1)
        spread = torch.linalg.svdvals(stack)
        if len(stack) > stack.shape[1] or float(spread.min()) <= _NEARLY * float(spread.max()):
            warnings.warn(
                "The gradients (-1, λ_s ∇f_s) of the active objectives and (0, ∇h_i) are (nearly) "
                "linearly dependent here, so LICQ in (ρ, z)-space fails: the multipliers are not "
                "unique.",
                DegenerateConstraintsWarning,
                stacklevel=3,
            )


def positive_weights(preference: Preference | Sequence[float]) -> tuple[float, ...]:
    """The weights, all above 0. Raises InputError naming a weight of 0."""
    checked = Preference.of(preference)
    for name, weight in checked.items():
        if weight == 0:
            raise InputError(
                f"The preference weight of {name!r} is 0; the weighted-Chebyshev methods need "
                "positive weights, so leave this objective out of the problem."
            )
    return checked.weights


def as_tensor(x: Tensor | ArrayLike) -> Tensor:
    """x as a floating-point tensor; what is not one becomes float64.

    Raises InputError for what is not an array of real numbers.
    """
    try:
        tensor = x if isinstance(x, Tensor) else torch.as_tensor(x, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"A point must be an array of numbers, got {x!r} ({error}).") from None
    if tensor.is_complex() or tensor.numel() == 0:
        raise InputError(f"A point must hold real numbers, got {tensor!r}.")
    return tensor if tensor.is_floating_point() else tensor.double()


def _free(problem: Problem, z: Tensor) -> Tensor:
    """1 for coordinates strictly within the bounds, 0 for those on one; flattened."""
    if problem.bounds is None:
        return torch.ones(z.numel(), dtype=torch.float64)
    lower, upper = (torch.as_tensor(b, dtype=z.dtype, device=z.device) for b in problem.bounds)
    return ((z > lower) & (z < upper)).flatten().double().cpu()
