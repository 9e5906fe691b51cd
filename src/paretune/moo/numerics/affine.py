"""Affine equality constraints with their exact projection."""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from paretune.errors import InputError


class AffineConstraints:
    """h(z) = A z − b, to be given as `Problem(..., constraints=AffineConstraints(A, b))`.

    A may be rank deficient as long as A z = b has a solution. z may have any shape; A acts on the
    flattened z.

    Args:
        A: shape (q, n).
        b: shape (q,).

    Raises:
        InputError: shapes that do not fit, NaN or infinity, or no z with A z = b.

    >>> AffineConstraints([[1.0, 1.0], [2.0, 2.0]], [1.0, 2.0]).project(torch.zeros(2))
    tensor([0.5000, 0.5000])
    """

    def __init__(self, A: Tensor | ArrayLike, b: Tensor | ArrayLike) -> None:
        self.A: Tensor = torch.as_tensor(A, dtype=torch.float64)
        self.b: Tensor = torch.as_tensor(b, dtype=torch.float64)
        if self.A.dim() != 2 or self.b.shape != self.A.shape[:1] or len(self.b) == 0:
            raise InputError(
                f"A must have shape (q, n) and b shape (q,), got {tuple(self.A.shape)} and "
                f"{tuple(self.b.shape)}."
            )
        if not (torch.isfinite(self.A).all() and torch.isfinite(self.b).all()):
            raise InputError("A and b must be finite.")
        left, sizes, right = torch.linalg.svd(self.A, full_matrices=False)
        keep = sizes > max(self.A.shape) * torch.finfo(torch.float64).eps * sizes.max()
        self.rank = int(keep.sum())
        self._rows: Tensor = right[keep]  # an orthonormal basis of the row space
        self._inverse: Tensor = right[keep].T @ (left[:, keep] / sizes[keep]).T
        missing = self.A @ (self._inverse @ self.b) - self.b
        scale = float(self.b.norm())
        if float(missing.norm()) > 1e-8 * scale:
            raise InputError(
                f"A z = b has no solution: the nearest A z misses b by {float(missing.norm()):.3g}."
            )

    def __call__(self, z: Tensor) -> Tensor:
        return self.A.to(z) @ self._flat(z) - self.b.to(z)

    def vjp(self, z: Tensor, d: Tensor) -> Tensor:
        """Aᵀd in the shape of z: the `constraint_vjp` of a Problem."""
        return (d @ self.A.to(z)).reshape(z.shape)

    def project(self, z: Tensor) -> Tensor:
        """The nearest point with A z = b."""
        flat = self._flat(z).double().cpu()
        moved = flat - self._rows.T @ (self._rows @ flat) + self._inverse @ self.b
        return moved.reshape(z.shape).to(z)

    def duals(self, gradient: Tensor) -> Tensor:
        """ν of least norm that minimises ‖gradient + Aᵀν‖, shape (q,), float64."""
        return -self._inverse.T @ self._flat(gradient).double().cpu()

    def _flat(self, z: Tensor) -> Tensor:
        if z.numel() != self.A.shape[1]:
            raise InputError(f"A has {self.A.shape[1]} columns, but z has {z.numel()} coordinates.")
        return z.flatten()
