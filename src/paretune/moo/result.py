"""What a minimisation returns, and what a method is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from paretune.moo.preference import Preference
from paretune.moo.problem import Problem


@dataclass(frozen=True)
class History:
    """One row per visited point, the start included; T + 1 rows after T steps, float64.

    Attributes:
        objectives: F, shape (T + 1, M).
        multipliers: λ, shape (T + 1, M).
        kkt_residual: as in `Result`, shape (T + 1,).
        min_norm: min over the simplex of ‖Gλ‖² (Definition 3.2), shape (T + 1,).
    """

    objectives: Tensor
    multipliers: Tensor
    kkt_residual: Tensor
    min_norm: Tensor


@dataclass(frozen=True)
class Result:
    """Where a minimisation ended, with its certificate.

    Attributes:
        x: the last point, in the shape and dtype of the start point.
        objectives: F(x), shape (M,), float64.
        multipliers: λ on the simplex, shape (M,), float64; 0 for objectives of preference 0.
        kkt_residual: distance from stationarity, 0 at a stationary point and never squared.
            "clamp": the norm of Σ λ_m p_m ∇f_m and min(λ, ρ − p∘F) together, ρ = max p∘F;
            "mgda" and "linear": ‖Σ λ_m ∇f_m‖.
        n_gradient_evaluations: gradients of single objectives that were computed.
        n_function_evaluations: times F was computed.
        converged: whether kkt_residual is at most `tol`.
        message: why it stopped, in a sentence.
        history: every visited point.
    """

    x: Tensor
    objectives: Tensor
    multipliers: Tensor
    kkt_residual: float
    n_gradient_evaluations: int
    n_function_evaluations: int
    converged: bool
    message: str
    history: History = field(repr=False)


class Method(Protocol):
    """A method with its options: a small frozen dataclass with this one function."""

    def run(
        self, problem: Problem, preference: Preference, x0: Tensor, steps: int, tol: float
    ) -> Result: ...
