"""Weightings: how M gradients combine into one direction, given their Gramian and the losses.

A weighting is a pure function of small arrays on the CPU; whoever holds the gradients forms the
Gramian, calls it, and steps along the weighted sum. What varies from step to step (schedules,
moving averages) lives in `paretune.moo.weightings.clamp_state`. Importing these files does not load
torch, so that recipes can read the options there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from paretune.errors import InputError
from paretune.moo.numerics.simplex_qp import Rows, Vector, check_qp, read_floats, solve_simplex_qp

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """Combination weights and their certificate.

    Attributes:
        weights: what multiplies the gradients, shape (M,), float64 (CLAMP: p∘λ*).
        lam: λ*, the minimiser over the simplex, shape (M,), float64; 0 for dropped objectives.
        gap: scale-free optimality gap of λ* (see `QPSolution`); 0 where nothing is minimised.
        mgda_term: ‖G w‖² with w the weights, the first term of Eq. 6.
        chebyshev_term: μ λ*ᵀ(p∘F), the second term of Eq. 6; 0 without one.
        complementarity: ‖min(λ*, ρ − p∘F)‖₂ with ρ = max p∘F, elementwise over the objectives of
            positive preference; 0 when all of λ* is on the largest p_m f_m. Both it and mgda_term
            vanish exactly at the stationary points of max_m p_m f_m. 0 for other weightings.
        min_norm: min over the simplex of ‖G λ‖², the measure of Pareto stationarity
            (Definition 3.2), over the objectives of positive preference.
    """

    weights: Tensor
    lam: Tensor
    gap: float
    mgda_term: float
    chebyshev_term: float
    complementarity: float
    min_norm: float

    @property
    def vertex(self) -> bool:
        """Whether all of λ* is on one objective."""
        return int(self.lam.count_nonzero()) == 1


class Weighting(Protocol):
    """`weights = weighting(gramian, losses, preference)`, a pure function.

    gramian is GᵀG, shape (M, M), float64; losses F and preference p have shape (M,). Objectives of
    preference 0 are left out and get weight 0: a zero column would make λ* = e_m, direction 0.
    InputError for NaN or infinity anywhere, wrong shapes, a negative preference, none positive,
    or a Gramian that is not symmetric positive semi-definite up to rounding.
    """

    def __call__(
        self, gramian: Tensor, losses: Tensor, preference: Tensor | Sequence[float]
    ) -> Weights: ...


@dataclass(frozen=True)
class ActiveObjectives:
    """The checked inputs of a weighting, for the objectives of positive preference."""

    size: int
    indices: list[int]
    gramian: Rows
    losses: Vector
    preference: Vector

    @classmethod
    def read(
        cls, gramian: Tensor, losses: Tensor, preference: Tensor | Sequence[float]
    ) -> ActiveObjectives:
        rows, values = read_floats(gramian, "gramian"), read_floats(losses, "losses")
        check_qp(rows, values, names=("gramian", "losses"))
        wanted = read_floats(preference, "preference")
        if len(wanted) != len(values):
            raise InputError(
                f"The preference has {len(wanted)} weights for {len(values)} objectives."
            )
        for m, p in enumerate(wanted):
            if not (math.isfinite(p) and p >= 0):
                raise InputError(f"preference[{m}] is {p}; weights must be finite and at least 0.")
        active = [m for m, p in enumerate(wanted) if p > 0]
        if not active:
            raise InputError("No objective has a positive preference weight.")
        if len(active) == len(wanted):
            return cls(len(wanted), active, rows, values, wanted)
        return cls(
            size=len(wanted),
            indices=active,
            gramian=[[rows[i][j] for j in active] for i in active],
            losses=[values[m] for m in active],
            preference=[wanted[m] for m in active],
        )

    def weights(
        self,
        *,
        lam: Vector,
        weights: Vector,
        gap: float,
        chebyshev_term: float = 0.0,
        complementarity: float = 0.0,
    ) -> Weights:
        """`Weights` of full length from a result on the active objectives."""
        import torch

        nearest, _, _ = solve_simplex_qp(self.gramian, [0.0] * len(self.indices))
        whole = torch.tensor([self._spread(weights), self._spread(lam)], dtype=torch.float64)
        return Weights(
            weights=whole[0],
            lam=whole[1],
            gap=gap,
            mgda_term=self.square_norm(weights),
            chebyshev_term=chebyshev_term,
            complementarity=complementarity,
            min_norm=self.square_norm(nearest),
        )

    def _spread(self, values: Vector) -> Vector:
        if len(values) == self.size:
            return values
        full = [0.0] * self.size
        for m, value in zip(self.indices, values, strict=True):
            full[m] = value
        return full

    def square_norm(self, weights: Vector) -> float:
        """‖G w‖² for weights of the active objectives."""
        total = 0.0
        for row, wi in zip(self.gramian, weights, strict=True):
            if wi:
                total += wi * sum([entry * wj for entry, wj in zip(row, weights, strict=True)])
        return max(0.0, total)
