"""Quality of a set of points of a front, all objectives to be minimised. Computed by moocore."""

from __future__ import annotations

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
