"""What a bilevel minimisation returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from paretune.moo.numerics.kkt import KKTParts


@dataclass(frozen=True)
class Record:
    """One recorded point, measured on the full batches.

    Attributes:
        step: steps taken before it; the start is 0.
        seconds: spent until then, without what recording took.
        n_gradients: spent until then, without what recording took.
        objectives: F(x, y), shape (S,), float64 on the CPU.
        weights: the weights ω on the objectives in the last step, shape (S,); nan at the start
            and for methods without.
        x: a copy.
        lower_gradient_norm: ‖∇_y g(x, y)‖.
    """

    step: int
    seconds: float
    n_gradients: int
    objectives: Tensor
    weights: Tensor
    x: Tensor
    lower_gradient_norm: float


@dataclass(frozen=True)
class BilevelHistory:
    """The records of a run as columns: shapes (T,), and (T, …) for tensors."""

    step: Tensor
    seconds: Tensor
    n_gradients: Tensor
    objectives: Tensor
    weights: Tensor
    x: Tensor
    lower_gradient_norm: Tensor

    @staticmethod
    def of(records: Sequence[Record]) -> BilevelHistory:
        def column(name: str, dtype: torch.dtype) -> Tensor:
            return torch.tensor([getattr(record, name) for record in records], dtype=dtype)

        return BilevelHistory(
            step=column("step", torch.int64),
            seconds=column("seconds", torch.float64),
            n_gradients=column("n_gradients", torch.int64),
            objectives=torch.stack([record.objectives for record in records]),
            weights=torch.stack([record.weights for record in records]),
            x=torch.stack([record.x for record in records]),
            lower_gradient_norm=column("lower_gradient_norm", torch.float64),
        )


@dataclass(frozen=True)
class BilevelResult:
    """Where a bilevel minimisation ended, measured on the full batches.

    The objectives depend on y directly, so a y with ∇_y g ≠ 0 can make them lower than any true
    solution: read them with `lower_gradient_norm`, or after `polish_lower`.

    Attributes:
        x: the pair (x, y), in the shapes and dtypes of the start.
        objectives: F(x, y), shape (S,), float64 on the CPU.
        lower_gradient_norm: ‖∇_y g(x, y)‖, 0 where y solves a convex lower level.
        multipliers: ω on the objectives, shape (S,).
        adjoint: ν on ∇_y g = 0, in y's shape; None where a method has none and y is too large to
            solve for it.
        rho: the bound ρ on λ_s f_s that the residual was measured with.
        kkt_residual: ‖K‖₂ of min ρ s.t. ∇_y g = 0, λ_s f_s <= ρ (Definition 5), with the method's
            own multipliers, or the best ones for a method without; nan without an adjoint.
        kkt_parts: the norms of its four parts.
        n_gradient_evaluations: as counted by `Oracle`.
        n_function_evaluations: evaluations of F without a gradient.
        seconds: the run took, without recording and the final measurement.
        converged: whether the method met `tol` by its own residual.
        message: why it stopped, in a sentence.
        history: the way there.
    """

    x: tuple[Tensor, Tensor]
    objectives: Tensor
    lower_gradient_norm: float
    multipliers: Tensor
    adjoint: Tensor | None
    rho: float
    kkt_residual: float
    kkt_parts: KKTParts
    n_gradient_evaluations: int
    n_function_evaluations: int
    seconds: float
    converged: bool
    message: str
    history: BilevelHistory = field(repr=False)
