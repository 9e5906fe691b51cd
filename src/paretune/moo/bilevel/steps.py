"""What several bilevel methods need: weights of smallest norm, steps on x, their residual."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.numerics.simplex_qp import simplex_qp

Optimizer = Literal["adam"] | None


class Stepper:
    """Steps from a point: plain ones, or Adam's."""

    def __init__(self, start: Tensor, lr: float, optimizer: Optimizer) -> None:
        self._at = start.clone()
        kind = torch.optim.SGD if optimizer is None else torch.optim.Adam
        self._optimizer: torch.optim.Optimizer = kind([self._at], lr=lr)

    def __call__(self, direction: Tensor) -> Tensor:
        """The point after a step against `direction`, as a new tensor."""
        self._at.grad = direction.to(self._at).reshape(self._at.shape)
        self._optimizer.step()
        return self._at.clone()


def min_norm_weights(rows: Tensor) -> Tensor:
    """argmin over the simplex of ‖Σ w_s rows_s‖² (MGDA), shape (S,), in the rows' kind.

    Not a number where the rows are not finite, so that the run stops there.
    """
    gramian = (rows @ rows.T).double()
    if not bool(gramian.isfinite().all()):
        return rows.new_full((len(rows),), math.nan)
    return simplex_qp(gramian, torch.zeros(len(rows))).x.to(rows)


def as_multipliers(
    weights: Tensor, lam: Sequence[float], adjoint: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """ω and ν for `Iterate`, from what multiplies ∇f_s and from v with H v = Σ weights_s ∇_y f_s.

    ω_s λ_s are proportional to the weights and ω sums to 1.
    """
    omega = weights.detach().double().cpu() / torch.tensor(lam, dtype=torch.float64)
    total = float(omega.sum())
    return omega / total, None if adjoint is None else adjoint / -total


def norm(*parts: Tensor) -> float:
    """The Euclidean norm of all parts together."""
    return math.hypot(*(float(part.norm()) for part in parts))


def check_options(method: Any, positive: Sequence[str], counts: Sequence[str] = ()) -> None:
    """Raise InputError unless these options are finite and above 0, these integers at least 1."""
    for name in positive:
        value = getattr(method, name)
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} must be finite and above 0, got {value}.")
    for name in counts:
        if getattr(method, name) < 1:
            raise InputError(f"{name} must be at least 1, got {getattr(method, name)}.")
    if getattr(method, "optimizer", None) not in (None, "adam"):
        raise InputError(f"optimizer must be None or 'adam', got {method.optimizer!r}.")
