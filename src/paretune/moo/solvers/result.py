"""What a minimisation returns, and what a method is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paretune.moo.numerics.kkt import KKTParts
from paretune.moo.preference import Preference
from paretune.moo.problem import Problem
from paretune.moo.solvers.watch import Watch


@dataclass(frozen=True)
class History:
    """One row per visited point (per multiplier update for "wc_augmented"), the start included.

    Attributes:
        objectives: F, shape (T, M), float64.
        multipliers: λ (ω for the methods with constraints), shape (T, M), float64.
        kkt_residual: as in `Result`, shape (T,), float64.
        min_norm: min over the simplex of ‖Gλ‖² (Definition 3.2), shape (T,), float64; None for
            the methods with constraints, which do not compute it.
        feasibility: ‖h‖, with inequalities ‖(h, min(κ, −g))‖, shape (T,), float64; None for the
            methods without constraints.
    """

    objectives: Tensor
    multipliers: Tensor
    kkt_residual: Tensor
    min_norm: Tensor | None = None
    feasibility: Tensor | None = None


class Learnt(NamedTuple):
    """What a run of "wc_augmented" has learnt, for one from its end for another preference.

    Attributes:
        curvature: of the mean of λ∘F.
        swing: by how much its gradient changes over z itself, of which rounding z takes a part.
        bends: of the rows of (h, g), shape (q + r,).
        rows: what each of them is multiplied by, shape (q + r,); None for 1.
        hessian: of the augmented Lagrangian, shape (n, n); None where variables are many.
        lagrangian: Hessian of the Lagrangian over Σ ω_s λ_s, shape (n, n); None without.
    """

    curvature: float
    swing: float
    bends: Tensor
    rows: Tensor | None
    hessian: NDArray[np.float64] | None
    lagrangian: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Result:
    """Where a minimisation ended, with its certificate. Tensors but x are float64 on the CPU.

    Attributes:
        x: the last point, for "wc_augmented" the one of smallest residual among the later half of
            those visited; in the shape and dtype of the start point.
        objectives: F(x), shape (M,), without any shift.
        constraints: h(x), shape (q,); empty without constraints.
        rho: the bound ρ on λ_s f_s (with any shift) that the residual was measured with; for
            "mgda" and "linear", which have none, max λ_s f_s.
        multipliers: ω (without constraints λ*) of the objectives, shape (M,); on the simplex, but
            for "wc_penalty", whose ω only tend there; 0 for objectives of preference 0.
        constraint_multipliers: ν of the constraints, shape (q,).
        kkt_residual: distance from stationarity, 0 at a stationary point and never squared:
            ‖K(ρ, x, ω, ν, λ)‖₂ (Definition 5) for "clamp" and the "wc" methods;
            ‖Σ λ_m ∇f_m‖ for "mgda"; ‖(Σ λ_m ∇f_m + Σ ν_i ∇h_i, h)‖ for "linear".
        kkt_parts: the norms of its four parts.
        n_gradient_evaluations: combined gradients Σ w_m ∇f_m + Σ d_i ∇h_i that were computed;
            gradients of single objectives count separately.
        n_function_evaluations: times F and h were computed.
        converged: whether kkt_residual is at most `tol`.
        message: why it stopped, in a sentence.
        history: the way there.
        inequalities, inequality_multipliers: g(x) and its κ >= 0, shape (r,).
        learnt: of "wc_augmented", for a run from here.
    """

    x: Tensor
    objectives: Tensor
    constraints: Tensor
    rho: float
    multipliers: Tensor
    constraint_multipliers: Tensor
    kkt_residual: float
    kkt_parts: KKTParts
    n_gradient_evaluations: int
    n_function_evaluations: int
    converged: bool
    message: str
    history: History = field(repr=False)
    inequalities: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    inequality_multipliers: Tensor = field(
        default_factory=lambda: torch.zeros(0, dtype=torch.float64)
    )
    learnt: Learnt | None = field(default=None, repr=False, compare=False)


class Method(Protocol):
    """A method with its options: a small frozen dataclass with this one function."""

    def run(
        self,
        problem: Problem,
        preference: Preference,
        x0: Tensor,
        steps: int,
        tol: float,
        *,
        watch: Watch | None = None,
    ) -> Result: ...
