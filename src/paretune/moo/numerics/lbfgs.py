"""BFGS, dense for few variables and with limited memory for many; coordinates can be held fixed."""

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
        # Where in it the pairs are, the oldest first. In that order, (2, pairs, pairs): the inverse
        # of the upper triangle of s_i·y_j, and y_i·y_j.
        self._order: NDArray[np.int_] = np.zeros(0, dtype=int)
        self._small: Array = np.zeros((2, 0, 0))

    def add(self, move: Tensor, change: Tensor) -> None:
        """Learn that the gradient changed by that much along that move; both flattened."""
        pair = torch.stack([move, change])
        (square, curvature), (_, steepness) = (pair @ pair.mT).tolist()
        if curvature <= 1e-10 * math.sqrt(square * steepness):
            return
        if self._storage is None:
            self._storage = pair.new_empty(self._memory, *pair.shape)
        slot = len(self._order)
        if slot == self._memory:
            slot, self._order = int(self._order[0]), self._order[1:]
            self._small = self._small[:, 1:, 1:]
        self._order = np.concatenate([self._order, [slot]])
        # Scaled so that late, short steps keep their digits.
        pair = torch.div(pair, math.sqrt(square), out=self._storage[slot])
        products = _products(self._storage[: len(self._order)], pair[1])[self._order]
        grown = np.zeros((2, len(products), len(products)))
        grown[:, :-1, :-1] = self._small
        grown[0, -1, -1] = square / curvature
        grown[0, :-1, -1] = self._small[0] @ products[:-1, 0] * (-square / curvature)
        grown[1, -1] = grown[1, :, -1] = products[:, 1]
        self._small = grown

    def solve(self, gradient: Tensor, free: Tensor | None = None) -> Tensor | None:
        """H g, flattened; None before the first pair. Only `free` coordinates (bool) take part."""
        if self._storage is None:
            return None
        order, (inverse, yy) = self._order, self._small
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
            inverse = np.linalg.inv(np.triu(sy))
        scale = 1 / float(inverse[-1, -1] * yy[-1, -1])
        along_moves, along_changes = _products(pairs, gradient)[order].T
        inner = inverse @ along_moves
        outer = inner / inverse.diagonal() + scale * (yy @ inner - along_changes)
        weights = np.zeros((len(pairs), 2))
        weights[order, 0], weights[order, 1] = outer @ inverse, -scale * inner
        combined = torch.from_numpy(weights.ravel()).to(gradient)
        return torch.addmv(gradient, pairs.flatten(0, 1).mT, combined, beta=scale)


class DenseBFGS:
    """The same with the whole matrix: cheaper, and it forgets nothing, where variables are few."""

    def __init__(self, hessian: Array | None = None) -> None:
        self._hessian = None if hessian is None else hessian.copy()

    @property
    def hessian(self) -> Array | None:
        """The approximation, shape (n, n); None before the first pair."""
        return None if self._hessian is None else self._hessian.copy()

    def add(self, move: Tensor, change: Tensor) -> None:
        """As in `LBFGS`."""
        s, y = _numpy(torch.stack([move, change]))
        curvature, square, steepness = s @ y, s @ s, y @ y
        if not curvature > 1e-10 * math.sqrt(square * steepness):
            return
        if self._hessian is None:
            self._hessian = np.eye(len(s)) * (steepness / curvature)
        along = self._hessian @ s
        square = s @ along
        if not (math.isfinite(square) and square > 0):  # rounding has made it indefinite
            self._hessian = None
            return
        root, other = y / math.sqrt(curvature), along / math.sqrt(square)
        self._hessian += np.multiply.outer(root, root) - np.multiply.outer(other, other)

    def solve(self, gradient: Tensor, free: Tensor | None = None) -> Tensor | None:
        """As in `LBFGS`."""
        if self._hessian is None:
            return None
        hessian, right = self._hessian, _numpy(gradient)
        try:
            if free is None:
                step = np.linalg.solve(hessian, right)
            else:
                step, kept = np.zeros_like(right), np.flatnonzero(free.cpu().numpy())
                step[kept] = np.linalg.solve(hessian[kept][:, kept], right[kept])
            descent = float(step @ right)
        except np.linalg.LinAlgError:
            descent = math.nan
        if not 0 < descent < math.inf:  # rounding has made it indefinite
            self._hessian = None
            return None
        return torch.from_numpy(step).to(gradient)


def _products(pairs: Tensor, vector: Tensor) -> Array:
    """(s_i·v, y_i·v), shape (pairs, 2)."""
    return _numpy(pairs.flatten(0, 1) @ vector).reshape(-1, 2)


def _numpy(values: Tensor) -> Array:
    return np.asarray(values.double().cpu().numpy())
