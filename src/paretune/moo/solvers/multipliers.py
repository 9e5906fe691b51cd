"""The multipliers of the augmented Lagrangian and their one update rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from paretune.errors import InputError

# ‖ν‖ may reach this many times u times the largest ‖h‖ met.
_LIMIT = 1e4
# ‖h‖² is compared over windows of so many updates; growth by this factor halves σ, otherwise σ
# recovers by as much, up to where it began.
_WINDOW, _GROWN = 20, 1.1


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


class DampedMultipliers:
    """w0 of the objectives and ν of h = 0, and how they move.

    Attributes:
        w0: shape (S,), on the simplex; 1/S at first.
        nu: in h's shape; None stands for 0.
    """

    def __init__(self, n_objectives: int) -> None:
        self.w0 = [1 / n_objectives] * n_objectives
        self.nu: Tensor | None = None

    def omega(self, chebyshev: Sequence[float], v: float) -> list[float]:
        """w = proj_simplex(w0 + v a) for a = λ∘F."""
        # Near the end all active a agree in many digits: w is computed from differences.
        top = max(chebyshev)
        return project_simplex([b + v * (a - top) for b, a in zip(self.w0, chebyshev, strict=True)])

    def raised(self, h: Tensor, u: float) -> Tensor:
        """ν + u h, in h's shape."""
        return u * h if self.nu is None else torch.add(self.nu, h, alpha=u)

    def move(self, nu: Tensor, limit: float, omega: Sequence[float], part: float) -> None:
        """ν becomes `nu`, no longer than `limit`, and w0 goes that part of the way to ω."""
        size = float(torch.linalg.vector_norm(nu)) if nu.numel() else 0.0
        self.nu = nu * (limit / size) if size > limit else nu
        self.w0 = [b + part * (w - b) for b, w in zip(self.w0, omega, strict=True)]


class StepwiseMultipliers(DampedMultipliers):
    """w0 for the objectives and ν for h = ∇_y g, moved a little after every step on (x, y).

    One step, with a = λ∘F (shifted) and gradients from wherever they come:

        w = multipliers.weights(a)
        d = multipliers.direction(h)
        (x, y) ← step along Σ w_s λ_s ∇f_s + ∇_{x,y} ⟨∇_y g, d⟩ with w and d held fixed
        multipliers.update(h, w)

    w = proj_simplex(w0 + v a), d = ν + u h; then ν ← ν + σ h and w0 ← (1 − τ) w0 + τ w. As the
    dual part of a saddle dynamic this can diverge, therefore: σ <= u; ‖ν‖ is clipped at 10⁴ u times
    the largest ‖h‖ met; σ is halved when the mean of ‖h‖² over 20 updates has grown by a tenth.

    Args:
        n_objectives: S.
        u: penalty on h; several times the curvature of F divided by ‖∇h‖².
        v: weight of a; about 1 / the spread of a.
        sigma: step σ of ν, above 0 and at most u.
        tau: step τ of w0, in (0, 1].

    Raises InputError for options out of range.
    """

    def __init__(
        self, n_objectives: int, u: float, v: float, sigma: float, tau: float = 0.1
    ) -> None:
        if not (math.isfinite(u) and math.isfinite(v) and u > 0 and v > 0):
            raise InputError(f"u and v must be finite and above 0, got {u} and {v}.")
        if not 0 < sigma <= u:
            raise InputError(f"sigma must be above 0 and at most u = {u:g}, got {sigma}.")
        if not 0 < tau <= 1:
            raise InputError(f"tau must be above 0 and at most 1, got {tau}.")
        super().__init__(n_objectives)
        self.u, self.v, self.sigma, self.tau = u, v, sigma, tau
        self._most = sigma
        self._largest = 0.0
        self._sum, self._count, self._previous = 0.0, 0, math.inf

    def weights(self, chebyshev: Sequence[float]) -> list[float]:
        """w for a = λ∘F, on the simplex."""
        return self.omega(chebyshev, self.v)

    def direction(self, h: Tensor) -> Tensor:
        """d = ν + u h, in h's shape."""
        return self.raised(h, self.u)

    def update(self, h: Tensor, weights: Sequence[float]) -> None:
        """Move ν and w0, with the safeguards."""
        size = float(torch.linalg.vector_norm(h))
        self._watch(size)
        self._largest = max(self._largest, size)
        limit = _LIMIT * self.u * self._largest
        self.move(self.raised(h, self.sigma), limit, weights, self.tau)

    def _watch(self, size: float) -> None:
        self._sum, self._count = self._sum + size * size, self._count + 1
        if self._count < _WINDOW:
            return
        grown = self._sum > _GROWN * self._previous
        self.sigma = self.sigma / 2 if grown else min(self._most, _GROWN * self.sigma)
        self._sum, self._count, self._previous = 0.0, 0, self._sum

    def state_dict(self) -> dict[str, Any]:
        """All of it, with ν as a tensor."""
        return {name.lstrip("_"): value for name, value in vars(self).items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        for name in vars(self):
            setattr(self, name, state[name.lstrip("_")])
