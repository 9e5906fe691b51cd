"""RACO: conflict-averse gradients with clipped coefficients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from paretune.errors import InputError
from paretune.moo.numerics.simplex_qp import Vector, solve_simplex_qp
from paretune.moo.weightings.base import ActiveObjectives, Weights

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RACO:
    """Conflict-averse gradients with clipped coefficients (RACO, arXiv 2602.02495, Algorithm 1).

    With g = G p the preference-weighted gradient, q* = argmin over the simplex of
    (G q)ᵀg + c ‖g‖ ‖G q‖ (CAGrad's dual, Liu et al. 2021). It is clipped to q = min(q*, p), so that
    the correction lifts no objective above its preference, and the direction is
    g + c ‖g‖ G q / ‖G q‖, or g alone where G q = 0.

    Attributes:
        c: radius of the correction, its length per length of the weighted gradient, in [0, 1); 0 is
            `Linear`.
        clip: False is CAGrad itself around the preference-weighted gradient: q = q*.
    """

    c: float = field(default=0.4, metadata={"key": "radius"})
    clip: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.c < 1:
            raise InputError(f"c must be in [0, 1), got {self.c}.")

    def __call__(
        self, gramian: Tensor, losses: Tensor, preference: Tensor | Sequence[float]
    ) -> Weights:
        active = ActiveObjectives.read(gramian, losses, preference)
        p = active.preference
        radius = self.c * math.sqrt(active.square_norm(p))
        q, gap = self._dual(active, radius)
        clipped = [min(qm, pm) for qm, pm in zip(q, p, strict=True)] if self.clip else q
        square = active.square_norm(clipped)
        # Below the Gramian's rounding the direction of G q is noise.
        rounding = 1e-14 * max(row[m] for m, row in enumerate(active.gramian))
        length = radius / math.sqrt(square) if square > rounding else 0.0
        weights = [pm + length * qm for pm, qm in zip(p, clipped, strict=True)]
        return active.weights(lam=q, weights=weights, gap=gap)

    @staticmethod
    def _dual(active: ActiveObjectives, radius: float) -> tuple[Vector, float]:
        """q* and its relative optimality gap.

        ‖G q‖ is the least of (‖G q‖² / t + t) / 2 over t > 0, which is convex in q and t together:
        t is bisected, and each t is a quadratic program.
        """
        linear = [_dot(row, active.preference) for row in active.gramian]
        quadratic = [[radius * entry for entry in row] for row in active.gramian]
        low, high = 0.0, math.sqrt(max(row[m] for m, row in enumerate(active.gramian)))
        q, norm = active.preference, 0.0
        for _ in range(60):
            t = (low + high) / 2
            q, _, _ = solve_simplex_qp(quadratic, [2 * t * a for a in linear])
            norm = math.sqrt(active.square_norm(q))
            low, high = (t, high) if norm > t else (low, t)
        slopes = [
            a + (radius / norm * _dot(row, q) if norm > 0 else 0.0)
            for a, row in zip(linear, active.gramian, strict=True)
        ]
        scale = max(map(abs, slopes))
        return q, max(0.0, _dot(slopes, q) - min(slopes)) / scale if scale > 0 else 0.0


def _dot(a: Vector, b: Vector) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))
