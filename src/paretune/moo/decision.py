"""Which point of a front to take: the knee, or the one that meets wanted values best."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paretune.errors import InputError
from paretune.moo.indicators import nondominated

Array = NDArray[np.float64]


def knee(points: ArrayLike) -> int:
    """The number of the point (n, M) that bulges most towards the ideal point.

    With each objective from 0 to 1 over the non-dominated points, the one farthest below the
    hyperplane through the points where an objective is largest, whose sum is 1 where objectives
    are traded evenly: the least Σ u_m. On a concave front that is an end.
    Source: I. Das, Struct. Optim. 18 (1999), "On characterizing the knee of the Pareto curve".

    >>> knee([[0.0, 1.0], [0.2, 0.3], [1.0, 0.0]])
    1
    """
    scaled, front = _normalised(points)
    return int(front[scaled[front].sum(1).argmin()])


def closest(points: ArrayLike, reference: ArrayLike) -> int:
    """The number of the point (n, M) with the least max_m (f_m − r_m) / range_m.

    r are wanted values, which need not be reachable: where they are, the point that is better than
    all of them by as much as it can be. Ties go to the least Σ. Ranges are those of the
    non-dominated points. This is Wierzbicki's achievement function (1980).

    >>> closest([[0.0, 1.0], [0.2, 0.3], [1.0, 0.0]], [0.1, 0.9])
    1
    """
    array = np.asarray(points, dtype=np.float64)
    wanted = np.asarray(reference, dtype=np.float64)
    _, front = _normalised(array)
    if wanted.shape != array.shape[1:] or not np.isfinite(wanted).all():
        raise InputError(f"A reference point needs {array.shape[1]} finite values.")
    away = (array[front] - wanted) / _ranges(array[front])
    return int(front[np.lexsort((away.sum(1), away.max(1).round(9)))[0]])


def pseudo_weights(points: ArrayLike) -> Array:
    """How much each point (n, M) favours each objective, shape (n, M), rows summing to 1.

    w_m ∝ (max f_m − f_m) / range_m; where no objective is favoured, 1 / M.
    Source: K. Deb, Multi-Objective Optimization using Evolutionary Algorithms (2001), 8.1.

    >>> pseudo_weights([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]).tolist()
    [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    """
    array = np.asarray(points, dtype=np.float64)
    nondominated(array)  # its checks
    better = (array.max(0) - array) / _ranges(array)
    total = better.sum(1, keepdims=True)
    weights: Array = np.where(total > 0, better / np.where(total > 0, total, 1), 1 / array.shape[1])
    return weights


def _normalised(points: ArrayLike) -> tuple[Array, NDArray[np.intp]]:
    array = np.asarray(points, dtype=np.float64)
    front = np.flatnonzero(nondominated(array))
    return (array - array[front].min(0)) / _ranges(array[front]), front


def _ranges(points: Array) -> Array:
    ranges: Array = np.ptp(points, axis=0)
    return np.where(ranges > 0, ranges, 1.0)
