"""CLAMP: weighted Chebyshev and Pareto stationarity in one quadratic program."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from paretune.errors import InputError
from paretune.moo.numerics.simplex_qp import Vector, solve_simplex_qp
from paretune.moo.weightings.base import ActiveObjectives, Weights

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Clamp:
    """CLAMP (Eq. 6): λ* = argmin over the simplex of ‖G(p∘λ)‖² − μ λᵀ(p∘F), weights p∘λ*.

    With an ideal point z* the losses are measured from it; with a nadir point n as well, losses
    and gradients are divided by the ranges: D = diag(p / (n − z*)), λ* = argmin of
    λᵀDGᵀGDλ − μ λᵀD(F − z*), and the weights are Dλ*.

    Attributes:
        mu: μ >= 0, in units of gradient² / loss; 0 leaves the first term alone.
        ideal: z*, one value per objective; 0 if not given.
        nadir: n, one value per objective, above `ideal`, which it needs.
    """

    mu: float = 100.0
    ideal: Sequence[float] | None = None
    nadir: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mu) and self.mu >= 0):
            raise InputError(f"mu must be finite and at least 0, got {self.mu}.")
        for m, value in enumerate(self.ideal or ()):
            if not math.isfinite(value):
                raise InputError(f"ideal must be finite, got {value} for objective {m}.")
        if self.nadir is None:
            return
        if self.ideal is None or len(self.ideal) != len(self.nadir):
            raise InputError("nadir needs an ideal point of the same length.")
        for m, (low, high) in enumerate(zip(self.ideal, self.nadir, strict=True)):
            if not 0 < high - low < math.inf:
                raise InputError(
                    f"nadir must be above ideal in every objective; objective {m} has "
                    f"ideal {low} and nadir {high}."
                )

    def __call__(
        self, gramian: Tensor, losses: Tensor, preference: Tensor | Sequence[float]
    ) -> Weights:
        return self.combine(ActiveObjectives.read(gramian, losses, preference))

    def combine(self, active: ActiveObjectives) -> Weights:
        """The same from checked inputs."""
        scale, linear = self.terms(active)
        quadratic = [
            [si * entry * sj for entry, sj in zip(row, scale, strict=True)]
            for row, si in zip(active.gramian, scale, strict=True)
        ]
        weighted = [-self.mu * term for term in linear]
        if not all(map(math.isfinite, chain(weighted, *quadratic))):
            raise InputError(
                f"With mu {self.mu:g} the terms of Eq. 6 are too large for floating-point numbers: "
                "give a smaller mu, or normalise the losses by ideal and nadir."
            )
        lam, gap, _ = solve_simplex_qp(quadratic, weighted)
        top = max(linear)
        return active.weights(
            lam=lam,
            weights=[s * x for s, x in zip(scale, lam, strict=True)],
            gap=gap,
            chebyshev_term=self.mu * sum([x * term for x, term in zip(lam, linear, strict=True)]),
            complementarity=math.hypot(
                *[min(x, top - term) for x, term in zip(lam, linear, strict=True)]
            ),
        )

    def terms(self, active: ActiveObjectives) -> tuple[Vector, Vector]:
        """The diagonal of D, and D(F − z*), for the active objectives."""
        if self.ideal is None:
            ideal = [0.0] * len(active.indices)
        elif len(self.ideal) == active.size:
            ideal = [self.ideal[m] for m in active.indices]
        else:
            raise InputError(f"ideal has {len(self.ideal)} values for {active.size} objectives.")
        scale = active.preference
        if self.nadir is not None:
            ranges = [self.nadir[m] - z for m, z in zip(active.indices, ideal, strict=True)]
            scale = [p / width for p, width in zip(scale, ranges, strict=True)]
        return scale, [s * (f - z) for s, f, z in zip(scale, active.losses, ideal, strict=True)]
