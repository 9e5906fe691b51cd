"""Strictly convex quadratic programmes of a few variables."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from paretune.moo.numerics.nnls import nonnegative_least_squares

Array = NDArray[np.float64]

# ‖r‖² of the least squares below this means that no point meets all rows.
_NONE = 1e-11


def convex_qp(
    hessian: Array, slope: Array, rows: Array, limits: Array, equal: int
) -> tuple[Array, Array] | None:
    """argmin of xᵀHx/2 + slopeᵀx where rows x <= limits, the first `equal` of them with equality,
    and the multipliers of the rows; None where no x meets them or H is not positive definite.

    As a least-distance programme by non-negative least squares, then the exact solution for the
    rows that hold there.
    Source: C. L. Lawson and R. J. Hanson, Solving Least Squares Problems (1974), chapter 23.

    >>> x, multipliers = convex_qp(
    ...     np.eye(2), np.array([-2.0, 0.0]), np.array([[1.0, 0.0]]), np.array([1.0]), 0
    ... )
    >>> x.round(9) + 0.0, multipliers.round(9)
    (array([1., 0.]), array([1.]))
    """
    try:
        root = np.linalg.cholesky(hessian)
    except np.linalg.LinAlgError:
        return None
    centre = np.linalg.solve(root, slope)
    turned = np.linalg.solve(root, rows.T).T
    sizes = np.linalg.norm(turned, axis=1)
    kept = sizes > 1e-14 * sizes.max(initial=0.0)
    kept[:equal] = True
    sizes = np.where(sizes > 0, sizes, 1.0)
    turned, gaps = turned / sizes[:, None], limits / sizes
    # y = Lᵀx + L⁻¹slope is to be shortest where turned y <= gaps + turned centre.
    gaps = gaps + turned @ centre
    system = np.vstack([-turned.T, -gaps])
    system = np.hstack([system[:, kept], -system[:, :equal]])
    wanted = np.zeros(len(system))
    wanted[-1] = 1.0
    found = nonnegative_least_squares(system, wanted)
    left = 1 - float(system[-1] @ found)
    if not left > _NONE:
        return None
    duals = np.zeros(len(rows))
    duals[kept] = found[: int(kept.sum())]
    duals[:equal] -= found[int(kept.sum()) :]
    duals /= left * sizes
    shortest = -(turned * sizes[:, None]).T @ duals
    x = np.linalg.solve(root.T, shortest - centre)
    return _exact(hessian, slope, rows, limits, x, duals)


def _exact(
    hessian: Array, slope: Array, rows: Array, limits: Array, x: Array, duals: Array
) -> tuple[Array, Array]:
    """The solution with the same rows held, as far as rounding allows."""
    held = np.flatnonzero(duals)
    size = len(x)
    matrix = np.zeros((size + len(held), size + len(held)))
    matrix[:size, :size] = hessian
    matrix[:size, size:], matrix[size:, :size] = rows[held].T, rows[held]
    try:
        both = np.linalg.solve(matrix, np.concatenate([-slope, limits[held]]))
    except np.linalg.LinAlgError:
        return x, duals
    if not math.isfinite(float(np.abs(both).sum())):
        return x, duals
    exact = np.zeros_like(duals)
    exact[held] = both[size:]
    if (exact * duals < -1e-9 * np.abs(duals).max(initial=0.0) ** 2).any():
        return x, duals
    return both[:size], exact
