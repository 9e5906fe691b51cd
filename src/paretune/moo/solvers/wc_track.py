"""What a run of the augmented Lagrangian remembers: the best late point and the history."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.numerics.kkt import KKTParts
from paretune.moo.problem import Problem
from paretune.moo.shift import check_positive
from paretune.moo.solvers.augmented import AugmentedLagrangian, View
from paretune.moo.solvers.result import History, Result


class Certified(NamedTuple):
    """A view with its ‖K‖, the ρ that goes with it, and the parts."""

    norm: float
    rho: float
    parts: KKTParts
    view: View


class Track:
    """The point of smallest ‖K‖ among the later half of those visited, and the history.

    Early points are forgotten: where one starts with h = 0 and good multipliers, the start has a
    small residual and the worst objectives. At every power of two a new window of points begins,
    and the best of this one and the last is what counts.
    """

    def __init__(self, lagrangian: AugmentedLagrangian, tol: float) -> None:
        self.lagrangian, self.tol = lagrangian, tol
        self._windows: tuple[Certified | None, Certified | None] = (None, None)
        self._visited = 0
        self._rows: list[list[float]] = []

    @property
    def best(self) -> Certified | None:
        return min(filter(None, self._windows), key=lambda point: point.norm, default=None)

    def look(self, view: View, residual: Tensor) -> tuple[float, bool]:
        """‖∇A‖ (of its projected form under bounds), and whether ‖K‖ meets the tolerance."""
        stationarity = float(torch.linalg.vector_norm(residual))
        self._visited += 1
        last, now = self._windows
        if self._visited & (self._visited - 1) == 0:
            last, now = now or last, None
        smallest = now.norm if now else math.inf
        if stationarity < smallest:  # ‖K‖ is no smaller
            rho, parts = self.lagrangian.certify(view, stationarity)
            norm = math.hypot(*parts)
            if norm < smallest:
                now = Certified(norm, rho, parts, view)
        self._windows = last, now
        return stationarity, now is not None and now.norm <= self.tol

    def record(self, view: View, parts: KKTParts, where: str) -> None:
        """A row of the history; InputError when an objective is not positive there."""
        values = view.point.objectives.tolist()
        shifted = [f + c for f, c in zip(values, self.lagrangian.shift, strict=True)]
        check_positive(shifted, where)
        self._rows.append([*values, *view.omega, math.hypot(*parts), parts.feasibility])

    def result(self, message: str) -> Result:
        best = self.best
        if best is None:
            raise InputError("The objectives, constraints or gradients are not finite at x0.")
        norm, rho, parts, view = best
        size = len(view.omega)
        table = torch.tensor(self._rows, dtype=torch.float64).reshape(-1, 2 * size + 2)
        return Result(
            x=view.point.z,
            objectives=view.point.objectives.double().cpu(),
            constraints=view.point.constraints.double().cpu(),
            rho=rho,
            multipliers=torch.tensor(view.omega, dtype=torch.float64),
            constraint_multipliers=view.nu.double().cpu(),
            kkt_residual=norm,
            kkt_parts=parts,
            n_gradient_evaluations=self.lagrangian.n_gradients,
            n_function_evaluations=self.lagrangian.n_functions,
            converged=norm <= self.tol,
            message=message,
            history=History(
                objectives=table[:, :size],
                multipliers=table[:, size : 2 * size],
                kkt_residual=table[:, -2],
                feasibility=table[:, -1],
            ),
        )


def projected(problem: Problem, z: Tensor, gradient: Tensor) -> Tensor:
    """z − proj(z − g), flattened: the gradient, but for what the bounds hold back."""
    if problem.bounds is None:
        return gradient
    return (z - problem.project(z - gradient.reshape(z.shape))).flatten()
