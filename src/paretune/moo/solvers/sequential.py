"""Sequential quadratic programming from a start that is already near: a solution of a neighbour."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paretune.moo.numerics.convex_qp import convex_qp
from paretune.moo.problem import Point
from paretune.moo.solvers.loop import CountedProblem

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]

# So many steps and no more, and so many halvings of one.
_STEPS, _HALVINGS = 15, 5
# A step may rise above the last point, as long as it stays below the highest of so many.
_REMEMBERED = 3
# The bound ρ on all λ_s f_s costs this part of its square, over their size, so that it is strictly
# convex too; ρ moves by 0 in the end.
_PROXIMAL = 1e-2
# Eigenvalues of the Hessian are raised to this part of the largest one.
_LEAST = 1e-3
# Penalties on the rows in what a step is to lower, in multiples of their multipliers.
_OUTWEIGHED = 2.0


class SequentialQP:
    """Steps on min ρ s.t. a_s = λ_s (f_s + c_s) <= ρ, h = 0, g <= 0 within bounds.

    Each solves the problem with linear rows (a, h, g) and a quasi-Newton Hessian of the Lagrangian,
    by updates of rank one, made positive. It is handed from run to run, divided by Σ ω_s λ_s. The
    gradient of a row is computed where it has a multiplier or is within reach of a step.

    Source: J. Nocedal and S. J. Wright, Numerical Optimization (2006), chapter 18.

    Args:
        problem: whose evaluations and gradients are counted.
        lam, shift: λ and c, shape (M,); objectives of weight 0 are left out, S remain.
        start: where to begin.
        multipliers: ω, ν and κ there, shape (S + q + r,).
        hessian: of the Lagrangian over Σ ω_s λ_s, shape (n, n).

    Attributes:
        point: where it is.
        values: (a, h, g) there.
        duals: the multipliers there.
    """

    def __init__(
        self,
        problem: CountedProblem,
        lam: Sequence[float],
        shift: Sequence[float],
        start: Point,
        multipliers: Array,
        hessian: Array,
    ) -> None:
        self.problem, self.point = problem, start
        self.lam, self.shift = np.array(lam), np.array(shift)
        self.wanted = self.lam > 0
        self.size, self.q = int(self.wanted.sum()), len(start.constraints)
        self.left = _STEPS
        self.duals = multipliers
        self.hessian = hessian * self.scale
        self.penalty = np.zeros(len(multipliers) - self.size)
        self.heights: list[float] = []
        self.values = self.values_at(start)
        self.rows = np.zeros((len(self.values), start.z.numel()))
        self.fresh = np.zeros(len(self.values), dtype=bool)
        self.look(~self.fresh)

    @property
    def scale(self) -> float:
        """Σ ω_s λ_s."""
        return float(self.duals[: self.size] @ self.lam[self.wanted])

    @property
    def omega(self) -> list[float]:
        """Of the wanted objectives."""
        omega: list[float] = self.duals[: self.size].tolist()
        return omega

    @property
    def nu(self) -> Tensor:
        """ν and κ, shape (q + r,)."""
        return torch.from_numpy(self.duals[self.size :].copy()).to(self.point.z)

    @property
    def gradient(self) -> Tensor:
        """Of the Lagrangian, flattened."""
        return torch.from_numpy(self.duals @ self.rows).to(self.point.z)

    def combined(self, omega: Sequence[float], nu: Tensor) -> Tensor:
        """The gradient of the Lagrangian with other multipliers, flattened."""
        duals = np.concatenate([np.array(omega), _numpy(nu)])
        self.look(duals != 0)
        return torch.from_numpy(duals @ self.rows).to(self.point.z)

    def learnt(self) -> Array:
        """The Hessian, for a run for another preference."""
        return self.hessian / self.scale

    def values_at(self, point: Point) -> Array:
        """(a, h, g)."""
        objectives = _numpy(point.objectives)
        scaled = (self.lam * (objectives + self.shift))[self.wanted]
        return np.concatenate([scaled, _numpy(point.constraints), _numpy(point.inequalities)])

    def look(self, wanted: Bools) -> None:
        """Gradients of these rows at the point, where they are not known."""
        wanted, size = wanted & ~self.fresh, self.size
        objectives = np.zeros(len(self.lam), dtype=bool)
        objectives[self.wanted] = wanted[:size]
        if objectives.any():
            rows = _numpy(self.problem.rows(self.point, objectives.tolist()))
            scaled = self.lam[:, None] * rows
            self.rows[:size][wanted[:size]] = scaled[objectives]
        units = torch.eye(len(self.values) - size).to(self.point.z)
        for k in np.flatnonzero(wanted[size:]):
            row = self.problem.vjp(self.point, units[k, : self.q], units[k, self.q :])
            self.rows[size + k] = _numpy(row.flatten())
        self.fresh |= wanted

    def solve(self) -> tuple[Array, float, Array] | None:
        """The move, by how much ρ changes, and the multipliers; None where there is none."""
        (count, n), size, q = self.rows.shape, self.size, self.q
        if not np.isfinite(self.rows).all():
            return None
        hessian = np.zeros((n + 1, n + 1))
        hessian[:n, :n] = self.convex()
        top = self.values[:size].max()
        hessian[n, n] = _PROXIMAL / (float(np.abs(self.values[:size]).max()) or 1.0)
        slope = np.append(np.zeros(n), 1.0)
        rows = np.hstack([self.rows, np.zeros((count, 1))])
        rows[:size, n] = -1
        limits = np.concatenate([top - self.values[:size], -self.values[size:]])
        order = np.r_[size : size + q, 0:size, size + q : count]  # equations come first
        lower, upper = self.reach()
        low, high = np.flatnonzero(np.isfinite(lower)), np.flatnonzero(np.isfinite(upper))
        eye = np.eye(n + 1)
        found = convex_qp(
            hessian,
            slope,
            np.vstack([rows[order], -eye[low], eye[high]]),
            np.concatenate([limits[order], -lower[low], upper[high]]),
            q,
        )
        if found is None:
            return None
        move, given = found
        duals = np.zeros(count)
        duals[order] = given[:count]
        duals[:size] = duals[:size].clip(min=0)
        duals[size + q :] = duals[size + q :].clip(min=0)
        total = duals[:size].sum()
        if not (math.isfinite(total) and total > 0):
            return None
        return move[:n], float(move[n]), duals / total

    def reach(self) -> tuple[Array, Array]:
        """How far each coordinate may move, down (not above 0) and up."""
        bounds, z = self.problem.problem.bounds, self.point.z
        if bounds is None:
            return np.full(z.numel(), -np.inf), np.full(z.numel(), np.inf)
        low, high = (torch.as_tensor(b, dtype=z.dtype, device=z.device) - z for b in bounds)
        return _numpy(low.flatten()), _numpy(high.flatten())

    def height(self, values: Array) -> float:
        """What a step is to lower: ρ and the penalties on rows that are not met."""
        rest = values[self.size :]
        missed = np.concatenate([np.abs(rest[: self.q]), np.maximum(rest[self.q :], 0)])
        return float(values[: self.size].max() + self.penalty @ missed)

    def step(self, radius: float) -> bool:
        """Move, by no more than the radius; False where no point is found, or after many steps."""
        self.left -= 1
        if self.left < 0 or (found := self.aim()) is None:
            return False
        move, change, duals = found
        self.penalty = np.maximum(self.penalty, _OUTWEIGHED * np.abs(duals[self.size :]))
        here = self.height(self.values)
        expected = max(here - float(self.values[: self.size].max()) - change, 0.0)
        self.heights = [*self.heights, here][-_REMEMBERED:]
        z, project = self.point.z, self.problem.problem.project
        slack = 64 * torch.finfo(z.dtype).eps * abs(here)
        size = float(np.linalg.norm(move))
        part = 1.0 if size <= radius else radius / size
        for _ in range(_HALVINGS):
            aside = torch.from_numpy(part * move).to(z).view_as(z)
            trial = self.problem.at(project(z + aside))
            values = self.values_at(trial)
            if self.height(values) <= max(self.heights) - 1e-4 * part * expected + slack:
                return self.take(trial, values, self.duals + part * (duals - self.duals))
            part /= 2
        return False

    def aim(self) -> tuple[Array, float, Array] | None:
        """As `solve`, with the rows known that turn out to have multipliers."""
        while (found := self.solve()) is not None:
            stale = (found[2] != 0) & ~self.fresh
            if not stale.any():
                break
            self.look(stale)
        return found

    def take(self, point: Point, values: Array, duals: Array) -> bool:
        """Go to a point; False where gradients are not finite there."""
        moved = _numpy((point.z - self.point.z).flatten())
        old, size, q = duals @ self.rows, self.size, self.q
        self.point, self.values, self.duals = point, values, duals
        self.fresh[:] = False
        near = np.ones(len(values), dtype=bool)
        reach = float(np.linalg.norm(moved)) * np.linalg.norm(self.rows, axis=1)
        top = int(values[:size].argmax())
        near[:size] = values[top] - values[:size] <= reach[:size] + reach[top]
        near[size + q :] = values[size + q :] >= -reach[size + q :]
        self.look(near | (duals != 0))
        if not np.isfinite(self.rows).all():
            return False
        self.learn(moved, duals @ self.rows - old)
        return True

    def convex(self) -> Array:
        """The Hessian with its eigenvalues' absolute values, the small ones raised."""
        values, vectors = np.linalg.eigh(self.hessian)
        values = np.abs(values)
        convex: Array = (vectors * np.maximum(values, _LEAST * values.max())) @ vectors.T
        return convex

    def learn(self, move: Array, change: Array) -> None:
        """The symmetric update of rank one, which may find negative curvature."""
        left = change - self.hessian @ move
        along = float(left @ move)
        if abs(along) > 1e-8 * float(np.linalg.norm(left) * np.linalg.norm(move)):
            self.hessian = self.hessian + np.multiply.outer(left, left) / along


def _numpy(values: Tensor) -> Array:
    return np.asarray(values.double().cpu().numpy())
