"""A first y and a first multiplier of ∇_y g = 0, so that a run begins beside the feasible set.

From a y that is far from the lower level's solution and with ν = 0, an augmented Lagrangian first
lowers the objectives by leaving the constraint, and comes back later. Solving for both first costs
some fifty gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paretune.moo.bilevel.oracle import Oracle
from paretune.moo.bilevel.polish import descend_lower

_LOWER_STEPS = 30  # of L-BFGS
_ADJOINT_STEPS = 10  # of conjugate gradients, a product each
_ACCURACY = 1e-2  # ‖Hν + b‖ / ‖b‖ that is good enough
_CURVED = 1e-5  # dᵀHd in parts of ‖d‖ ‖Hd‖ below which H is not taken for positive


def warm_lower(oracle: Oracle, x: Tensor, y: Tensor, tol: float) -> Tensor:
    """y after at most 30 steps of L-BFGS on g(x, ·)."""
    return descend_lower(oracle, x, y, _LOWER_STEPS, tol)[0]


def warm_adjoint(oracle: Oracle, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """ν with H ν ≈ −Σ weights_s ∇_y f_s, in y's shape, by conjugate gradients from 0.

    They end after ten products, at a residual of a hundredth, or where H is not positive.
    """
    residual = -oracle.upper(x, y, weights)[1]
    nu, direction = torch.zeros_like(residual), residual
    square = first = float(residual.square().sum())
    for _ in range(_ADJOINT_STEPS):
        if square <= _ACCURACY**2 * first:
            break
        product = oracle.products(x, y, direction)[1]
        curvature = float((direction * product).sum())
        if curvature <= _CURVED * float(direction.norm()) * float(product.norm()):
            break
        nu = nu + (square / curvature) * direction
        residual = residual - (square / curvature) * product
        before, square = square, float(residual.square().sum())
        direction = residual + (square / before) * direction
    return nu
