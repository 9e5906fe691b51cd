"""Remark 5: u, v and η of WC-Penalty from a warm-up that estimates M, σ and the smoothness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.problem import Point
from paretune.moo.solvers.loop import CountedProblem

_MOST_ENTRIES = 4_000_000


@dataclass(frozen=True)
class Schedule:
    """u, v and η, and the estimates they come from."""

    u: float
    v: float
    eta: float
    gradient_bound: float
    singular_value: float


def estimate_schedule(
    problem: CountedProblem,
    lam: Sequence[float],
    shift: Sequence[float],
    start: Point,
    warm_up: int,
    steps: int,
) -> Schedule:
    """u = M/σ T^(1/4), v = T^(1/4), η = 1/L_P for T steps, from `warm_up` steps of descent.

    The steps go down Σ w_s λ_s f_s + ‖h‖²/2, w_s in proportion to λ_s f_s, with a length of 5 % of
    max(1, ‖z‖). M is the largest ‖λ_s ∇f_s‖ met, σ the smallest singular value of ∇h, and
    L_P = u (‖∇h‖² + ‖h‖ L) + v (1 + S (1 + M²) + Σ λ_s f_s L), with the largest ‖∇h‖ met, h and f
    of the start, and L the largest change of the gradients λ_s ∇f_s or ∇h per unit of z.

    Raises InputError when ∇h is too large to find σ, or (nearly) rank deficient: Assumption 2.
    """
    q = len(start.constraints)
    if q * start.z.numel() > _MOST_ENTRIES:
        raise InputError(
            f"The warm-up forms ∇h, which has {q} x {start.z.numel()} entries here; give u, v and "
            "eta instead."
        )
    scaled = torch.tensor(lam, dtype=torch.float64)
    added = torch.tensor(shift, dtype=torch.float64)
    every = [True] * len(lam)
    slope = steep = bend = 0.0
    sigma = math.inf
    previous: tuple[Tensor, Tensor, Tensor] | None = None
    point = start
    for _ in range(warm_up + 1):
        rows = scaled[:, None] * problem.rows(point, every).double().cpu()
        columns = _constraint_rows(problem, point)
        values = scaled * (point.objectives.double().cpu() + added)
        slope = max(slope, float(rows.norm(dim=1).max()))
        if q:
            sizes = torch.linalg.svdvals(columns)
            sigma, steep = min(sigma, float(sizes.min())), max(steep, float(sizes.max()))
        if previous is not None:
            length = float((point.z - previous[0]).norm())
            if length == 0:
                break
            change = float((rows - previous[1]).norm(dim=1).max())
            bend = max(bend, change / length, float((columns - previous[2]).norm()) / length)
        previous = point.z, rows, columns
        direction = (values / values.sum()) @ rows
        if q:
            direction = direction + point.constraints.double().cpu() @ columns
        size = float(direction.norm())
        if size == 0:
            break
        move = 0.05 * max(1.0, float(point.z.norm())) / size * direction
        moved = point.z - move.reshape(point.z.shape).to(point.z)
        point = problem.at(problem.problem.project(moved))
    if q and sigma <= 1e-8 * steep:
        raise InputError(
            "The constraint gradients are (nearly) linearly dependent in the warm-up, so there is "
            "no sigma (Assumption 2); give u, v and eta instead."
        )
    ratio = max(1.0, slope / sigma) if q else 1.0
    root = max(steps, 1) ** 0.25
    u, v = ratio * root, root
    top = float((scaled * (start.objectives.double().cpu() + added)).sum())
    violation = float(start.constraints.double().norm()) if q else 0.0
    smoothness = u * (steep**2 + violation * bend) + v * (
        len(lam) * (1 + slope**2) + 1 + top * bend
    )
    return Schedule(u, v, 1 / smoothness, slope, sigma)


def _constraint_rows(problem: CountedProblem, point: Point) -> Tensor:
    """∇hᵀ, shape (q, n), one product a row."""
    q = len(point.constraints)
    eye = torch.eye(q, dtype=point.constraints.dtype, device=point.z.device)
    rows = [problem.vjp(point, unit).double().cpu() for unit in eye]
    return torch.stack(rows) if rows else torch.zeros(0, point.z.numel(), dtype=torch.float64)
