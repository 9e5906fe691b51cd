"""Limited-memory BFGS in its compact form, with coordinates that can be held fixed."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


class LBFGS:
    """An approximation of the inverse Hessian from the last steps s and gradient changes y.

    A few matrix-vector products replace the two-loop recursion, which matters where a gradient
    costs less than a hundred small tensor operations. Pairs that are not curved upwards are left
    out.
    Source: R. H. Byrd, J. Nocedal and R. B. Schnabel, Math. Programming 63 (1994), Theorem 2.2.
    """

    def __init__(self, memory: int = 20) -> None:
        self._memory = memory
        self._storage: Tensor | None = None  # s and y, (memory, 2, n)
        self._order: NDArray[np.int_] = np.zeros(
            0, dtype=int
        )  # where in it the pairs are, the oldest first
        # In that order:
        self._curvatures: Array = np.zeros(0)  # s_i·y_i
        self._inverse: Array = np.zeros((0, 0))  # of the upper triangle of s_i·y_j
        self._yy: Array = np.zeros((0, 0))

    def add(self, move: Tensor, change: Tensor) -> None:
        """Learn that the gradient changed by that much along that move; both flattened."""
        curvature, square = float(move @ change), float(move @ move)
        if curvature <= 1e-10 * math.sqrt(square * float(change @ change)):
            return
        if self._storage is None:
            self._storage = move.new_empty(self._memory, 2, len(move))
        slot = len(self._order)
        if slot == self._memory:
            slot, self._order = int(self._order[0]), self._order[1:]
            self._curvatures, self._yy = self._curvatures[1:], self._yy[1:, 1:]
            self._inverse = self._inverse[1:, 1:]
        self._order = np.concatenate([self._order, [slot]])
        # Scaled so that late, short steps keep their digits.
        pair = torch.stack([move, change], out=self._storage[slot]).div_(math.sqrt(square))
        curvature /= square
        products = _products(self._storage[: len(self._order)], pair[1])[self._order]
        above = self._inverse @ products[:-1, 0]
        self._inverse = _grow(self._inverse, -above / curvature, 0.0, 1 / curvature)
        self._yy = _grow(self._yy, products[:-1, 1], products[:-1, 1], products[-1, 1])
        self._curvatures = np.concatenate([self._curvatures, [curvature]])

    def solve(self, gradient: Tensor, free: Tensor | None = None) -> Tensor | None:
        """H g, flattened; None before the first pair. Only `free` coordinates (bool) take part."""
        if self._storage is None:
            return None
        order, curvatures, inverse, yy = self._order, self._curvatures, self._inverse, self._yy
        pairs = self._storage[: len(order)]
        if free is not None:
            pairs, gradient = pairs * free, gradient * free
            rows = pairs.flatten(0, 1)
            gramian = _numpy(rows @ rows.mT)
            sy, yy = gramian[::2, 1::2], gramian[1::2, 1::2]
            sizes = np.sqrt(gramian.diagonal()[::2] * yy.diagonal())
            order = order[(sy.diagonal() > 1e-10 * sizes)[order]]
            if len(order) == 0:
                return None
            sy, yy = sy[order][:, order], yy[order][:, order]
            curvatures, inverse = sy.diagonal(), np.asarray(np.linalg.inv(np.triu(sy)), np.float64)
        scale = float(curvatures[-1] / yy[-1, -1])
        along_moves, along_changes = _products(pairs, gradient)[order].T
        inner = inverse @ along_moves
        outer = curvatures * inner + scale * (yy @ inner - along_changes)
        weights = np.zeros((len(pairs), 2))
        weights[order, 0], weights[order, 1] = outer @ inverse, -scale * inner
        combined = torch.from_numpy(weights.ravel()).to(gradient)
        return torch.addmv(gradient, pairs.flatten(0, 1).mT, combined, beta=scale)


def _products(pairs: Tensor, vector: Tensor) -> Array:
    """(s_i·v, y_i·v), shape (pairs, 2)."""
    return _numpy(pairs.flatten(0, 1) @ vector).reshape(-1, 2)


def _grow(matrix: Array, column: Array, row: Array | float, corner: float) -> Array:
    """The matrix with one more column and one more row."""
    size = len(matrix) + 1
    grown = np.empty((size, size))
    grown[:-1, :-1] = matrix
    grown[:-1, -1], grown[-1, :-1], grown[-1, -1] = column, row, corner
    return grown


def _numpy(values: Tensor) -> Array:
    return np.asarray(values.double().cpu().numpy())
