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

    A handful of matrix-vector products replace the two-loop recursion, which matters where a
    gradient costs less than a hundred small tensor operations. Pairs that are not curved
    upwards are left out.
    Source: R. H. Byrd, J. Nocedal and R. B. Schnabel, Math. Programming 63 (1994), Theorem 2.2.
    """

    def __init__(self, memory: int = 20) -> None:
        self._memory = memory
        self._moves: Tensor | None = None  # rows s
        self._changes: Tensor | None = None  # rows y
        self._curvatures: Array = np.zeros(0)  # s_i·y_i
        self._inverse: Array = np.zeros((0, 0))  # of the upper triangle of s_i·y_j
        self._yy: Array = np.zeros((0, 0))

    def add(self, move: Tensor, change: Tensor) -> None:
        """Learn that the gradient changed by that much along that move; both flattened."""
        curvature, square = float(move @ change), float(move @ move)
        if curvature <= 1e-10 * math.sqrt(square * float(change @ change)):
            return
        length = math.sqrt(square)
        move, change = move / length, change / length  # so that late, short steps keep their digits
        curvature /= square
        if self._moves is None or self._changes is None:
            self._moves, self._changes = move[None], change[None]
        else:
            first = 1 if len(self._moves) == self._memory else 0
            self._moves = torch.cat([self._moves[first:], move[None]])
            self._changes = torch.cat([self._changes[first:], change[None]])
            self._curvatures, self._yy = self._curvatures[first:], self._yy[first:, first:]
            self._inverse = self._inverse[first:, first:]
        above = self._inverse @ _numpy(self._moves[:-1] @ change)
        self._inverse = _grow(self._inverse, -above / curvature, 0.0, 1 / curvature)
        products = _numpy(self._changes @ change)
        self._yy = _grow(self._yy, products[:-1], products[:-1], products[-1])
        self._curvatures = np.append(self._curvatures, curvature)

    def solve(self, gradient: Tensor, free: Tensor | None = None) -> Tensor | None:
        """H g, flattened; None before the first pair. Only `free` coordinates (bool) take part."""
        if self._moves is None or self._changes is None:
            return None
        moves, changes, yy = self._moves, self._changes, self._yy
        curvatures, inverse = self._curvatures, self._inverse
        if free is not None:
            moves, changes, gradient = moves * free, changes * free, gradient * free
            sy, yy = _numpy(moves @ changes.T), _numpy(changes @ changes.T)
            sizes = np.sqrt(_numpy((moves**2).sum(1)) * yy.diagonal())
            keep = np.flatnonzero(sy.diagonal() > 1e-10 * sizes)
            if len(keep) == 0:
                return None
            moves, changes = moves[keep], changes[keep]
            sy, yy = sy[np.ix_(keep, keep)], yy[np.ix_(keep, keep)]
            curvatures, inverse = sy.diagonal(), np.asarray(np.linalg.inv(np.triu(sy)), np.float64)
        scale = float(curvatures[-1] / yy[-1, -1])
        inner = inverse @ _numpy(moves @ gradient)
        outer = curvatures * inner + scale * (yy @ inner - _numpy(changes @ gradient))
        along_moves: Tensor = torch.from_numpy(inverse.T @ outer).to(moves) @ moves
        along_changes: Tensor = torch.from_numpy(scale * inner).to(moves) @ changes
        result: Tensor = scale * gradient + along_moves - along_changes
        return result


def _grow(matrix: Array, column: Array, row: Array | float, corner: float) -> Array:
    """The matrix with one more column and one more row."""
    size = len(matrix) + 1
    grown = np.empty((size, size))
    grown[:-1, :-1] = matrix
    grown[:-1, -1], grown[-1, :-1], grown[-1, -1] = column, row, corner
    return grown


def _numpy(values: Tensor) -> Array:
    return np.asarray(values.double().cpu().numpy())
