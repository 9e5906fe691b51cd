"""Starts of a run from those that have been solved: an order, and affine mixtures of results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paretune.moo.solvers.result import Result

Array = NDArray[np.float64]

# A place counts as an affine mixture of others where it is missed by less than this part of the
# distance to the nearest of them.
_MISSED = 1e-6
# No weight of a mixture is larger: the points are too near to a line.
_LARGEST = 3.0
# A start is no nearer to a bound than by this part of the distance of the nearest point.
_INSIDE = 0.3


class Stop(NamedTuple):
    """One place of a tour.

    Attributes:
        n: which.
        near: earlier places, the nearest first; none for the first.
        weights: an affine mixture of these that gives the place itself, shape (len(near),); empty
            where there is none.
    """

    n: int
    near: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()


def tour(places: Sequence[Sequence[float]]) -> list[Stop]:
    """From the middle outwards, with what is near among the earlier places for each.

    The rim comes last: there a run is at a bound, and a start on a bound may be a saddle inside.
    """
    points = np.array(places, dtype=np.float64)
    size = points.shape[1]
    middle = ((points - 1 / size) ** 2).sum(1)
    order = np.argsort(middle.round(12), kind="stable")
    stops = [Stop(int(order[0]))]
    for k, n in enumerate(order[1:], start=1):
        gaps = ((points[order[:k]] - points[n]) ** 2).sum(1)
        near = order[np.argsort(gaps.round(12), kind="stable")][: 2 * size - 2]
        weights = _affine(points[n], points[near])
        stops.append(Stop(int(n), tuple(map(int, near)), weights))
    return stops


def _affine(place: Array, near: Array) -> tuple[float, ...]:
    """The smallest weights, adding up to 1, that mix `near` to `place`; none where it is missed."""
    apart = near - place
    sizes = np.linalg.norm(apart, axis=1)
    if len(near) < 2 or sizes.min() == 0:
        return ()
    rows = np.vstack([apart.T / sizes.min(), np.ones(len(near))])
    wanted = np.zeros(len(rows))
    wanted[-1] = 1
    # What is farther away counts less.
    scaled, *_ = np.linalg.lstsq(rows / sizes, wanted, rcond=1e-9)
    weights = scaled / sizes
    if np.abs(rows @ weights - wanted).max() > _MISSED or np.abs(weights).max() > _LARGEST:
        return ()
    return tuple(weights.tolist())


def mix(
    results: Sequence[Result], weights: Sequence[float], project: Callable[[Tensor], Tensor]
) -> Result:
    """An affine mixture of results, multipliers included, as a start.

    Args:
        project: onto the bounds.
    """

    def mixed(tensors: Sequence[Tensor]) -> Tensor:
        stacked = torch.stack(list(tensors))
        shares = torch.tensor(weights, dtype=stacked.dtype, device=stacked.device)
        mean: Tensor = torch.tensordot(shares, stacked, dims=1)
        return mean

    return replace(
        results[0],
        x=_inside(mixed([run.x for run in results]), results[0].x, project),
        multipliers=mixed([run.multipliers for run in results]).clamp(min=0),
        constraint_multipliers=mixed([run.constraint_multipliers for run in results]),
        inequality_multipliers=mixed([run.inequality_multipliers for run in results]).clamp(min=0),
    )


def _inside(x: Tensor, near: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
    """x within the bounds; where it goes beyond one, most of the way to it from another point.

    A start on a bound may be a saddle.
    """
    within = project(x)
    inside: Tensor = torch.where(within == x, x, torch.lerp(within, near, _INSIDE))
    return inside
