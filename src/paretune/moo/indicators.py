"""Quality of a set of points of a front, all objectives to be minimised.

Hypervolume, ε and dominance are computed by moocore.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from paretune.errors import InputError

Array = NDArray[np.float64]


class Hypervolume(NamedTuple):
    """The volume dominated by a set of points, and the reference point that bounds it."""

    value: float
    reference: tuple[float, ...]


def nondominated(points: ArrayLike) -> NDArray[np.bool_]:
    """Which of the points (n, M) no other one dominates, shape (n,); equal points all count."""
    return np.asarray(moocore.is_nondominated(_points(points), keep_weakly=True), dtype=np.bool_)


def default_reference(points: ArrayLike) -> tuple[float, ...]:
    """Nadir + 0.1 (nadir − ideal) of the non-dominated points: botorch's rule.

    A single point has range 0, so that its hypervolume is 0 with this reference.
    """
    front = _points(points)[nondominated(points)]
    nadir, ideal = front.max(axis=0), front.min(axis=0)
    return tuple(map(float, nadir + 0.1 * (nadir - ideal)))


def hypervolume(points: ArrayLike, reference: ArrayLike | None = None) -> Hypervolume:
    """Volume of the set dominated by the points (n, M) and below the reference point (M,).

    Without a reference `default_reference` of these points is taken; give the same one to
    everything that is compared. Points beyond the reference add nothing.

    >>> hypervolume([[1.0, 2.0], [2.0, 1.0]], reference=[3.0, 3.0]).value
    3.0
    """
    array = _points(points)
    bound = default_reference(array) if reference is None else _reference(reference, array)
    return Hypervolume(float(moocore.hypervolume(array, ref=np.array(bound))), bound)


def epsilon_additive(points: ArrayLike, front: ArrayLike) -> float:
    """The smallest ε such that every front point, plus ε in each objective, is weakly dominated."""
    return float(moocore.epsilon_additive(_points(points), ref=_points(front)))


def epsilon_multiplicative(points: ArrayLike, front: ArrayLike) -> float:
    """The smallest ε such that every front point, times ε, is weakly dominated.

    Raises InputError unless all values are positive.
    """
    array, target = _points(points), _points(front)
    if array.min() <= 0 or target.min() <= 0:
        raise InputError("The multiplicative ε-indicator needs positive objective values.")
    return float(moocore.epsilon_mult(array, ref=target))


def unevenness(path: ArrayLike) -> float:
    """Standard deviation over mean of the distances between neighbours of a path (n, M), n >= 3.

    Each objective is divided by its range. 0 is even; where only one of k distances is not 0 it is
    √(k − 1).

    >>> round(unevenness([[0.0, 3.0], [1.0, 2.0], [2.0, 1.0]]), 6)
    0.0
    """
    array = _points(path)
    if len(array) < 3:
        raise InputError(f"The spacing of a path needs at least 3 points, got {len(array)}.")
    width = np.ptp(array, axis=0)
    steps = np.diff(array, axis=0) / np.where(width > 0, width, 1.0)
    distances = np.linalg.norm(steps, axis=1)
    mean = float(distances.mean())
    return float(distances.std() / mean) if mean > 0 else 0.0


def in_order(preferences: ArrayLike, losses: ArrayLike) -> tuple[int, int]:
    """In how many steps along edges of the simplex the objective that gains weight improves.

    A step is between neighbours of the points (n, M) on an edge, where two objectives have all the
    weight; of each step both objectives count, the one that gains and the one that loses weight.

    Returns:
        How many are right, and how many there are.

    >>> in_order([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]], [[3.0, 1.0], [2.0, 2.0], [1.0, 1.5]])
    (3, 4)
    """
    weights, array = _points(preferences), _points(losses)
    right = total = 0
    for first in range(weights.shape[1]):
        for second in range(first + 1, weights.shape[1]):
            edge = np.flatnonzero(np.isclose(weights[:, [first, second]].sum(axis=1), 1))
            path = array[edge[np.argsort(weights[edge, first], kind="stable")]]
            steps = np.diff(path, axis=0)
            right += int((steps[:, first] < 0).sum() + (steps[:, second] > 0).sum())
            total += 2 * len(steps)
    return right, total


def radar_area(losses: ArrayLike) -> float:
    """Area of the radar polygon of 1/loss, over M >= 3 axes at equal angles.

    With r_m = 1 / (the smallest loss of objective m among the points): sin(2π/M)/2 · Σ r_m r_{m+1},
    the last axis next to the first. The area depends on the order of the axes when M >= 4.

    Args:
        losses: one point (M,), or several (n, M), of which each axis takes the best; positive.

    >>> round(radar_area([1.0, 1.0, 1.0, 1.0]), 6)  # a square of diagonal 2
    2.0
    """
    array = _points(np.atleast_2d(np.asarray(losses, dtype=np.float64)))
    if array.min() <= 0 or array.shape[1] < 3:
        raise InputError("A radar polygon of 1/loss needs at least 3 objectives, all positive.")
    radius = 1 / array.min(axis=0)
    return float(math.sin(2 * math.pi / array.shape[1]) / 2 * radius @ np.roll(radius, -1))


def area_ratio(ours: ArrayLike, baseline: ArrayLike) -> float:
    """S_ours / S_baseline, the ratio of two radar areas; above 1 where ours is the larger.

    The WC-Penalty paper (Appendix E.1) reports this ratio for its radar charts of 1/loss without
    giving the area's formula; ours is `radar_area`. Losses of both must be of the same objectives,
    in the same order.
    """
    first, second = (np.atleast_2d(np.asarray(side)) for side in (ours, baseline))
    if first.shape[-1] != second.shape[-1]:
        raise InputError(
            f"The two sets have {first.shape[-1]} and {second.shape[-1]} objectives; "
            "an area ratio needs the same ones."
        )
    return radar_area(first) / radar_area(second)


def _points(points: ArrayLike) -> Array:
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2 or array.size == 0:
        raise InputError(f"Points must have shape (n, M) with n and M >= 1, got {array.shape}.")
    if not np.isfinite(array).all():
        raise InputError("Points must be finite.")
    return array


def _reference(reference: ArrayLike, points: Array) -> tuple[float, ...]:
    bound = np.asarray(reference, dtype=np.float64)
    if bound.shape != (points.shape[1],):
        raise InputError(
            f"The reference point must have {points.shape[1]} values, got shape {bound.shape}."
        )
    return tuple(map(float, bound))
