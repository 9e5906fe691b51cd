"""Where to aim at a front whose objectives are between 0 and 1: rays from the ideal point.

Two objectives: at the middle of the largest gaps between the points there are, round by round, so
that fronts in pieces and fronts with a knee are covered evenly. More: along Das and Dennis' grid,
the reference directions of NSGA-III.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from paretune.moo.preference import das_dennis

Array = NDArray[np.float64]
Gap = tuple[int, int]

# A round takes the gaps that are longer than this part of the longest one.
_LONG = 0.6
# What is nearer to an end of a gap than this part of it does not divide it.
_APART = 0.1
# Gaps shorter than this, in ranges of the front, are none.
_SHORT = 1e-6


def grid_rays(count: int, size: int) -> Array:
    """`count` directions of the simplex, shape (count, size): the largest Das-Dennis grid that has
    no more, and of the next finer one those that are farthest from what there is.

    >>> grid_rays(3, 2).tolist()
    [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    """
    divisions = 0
    while math.comb(divisions + size, size - 1) <= count and (size > 1 or divisions < 1):
        divisions += 1
    # With fewer than there are corners the middle comes first.
    first = das_dennis(size, divisions) if divisions else [(1 / size,) * size]
    rays = np.array(first)
    finer = np.array(das_dennis(size, divisions + 1))
    distances = np.linalg.norm(finer[:, None] - rays[None], axis=2).min(1)
    while len(rays) < count and size > 1:
        best = int(distances.argmax())
        rays = np.concatenate([rays, finer[best : best + 1]])
        distances = np.minimum(distances, np.linalg.norm(finer - finer[best], axis=1))
    return rays


def front_line(placed: Array) -> list[int]:
    """Of points (n, 2) those that no other one dominates or was at before, along f_1."""
    line: list[int] = []
    lowest = math.inf
    for i in sorted(range(len(placed)), key=lambda i: (*placed[i], i)):
        if placed[i, 1] < lowest:
            line.append(i)
            lowest = placed[i, 1]
    return line


def next_gaps(placed: Array, closed: set[Gap], most: int) -> list[Gap]:
    """The gaps to divide in one round, the longest first, as pairs of neighbours."""
    gaps = [gap for gap in pairwise(front_line(placed)) if gap not in closed]
    lengths = {gap: math.dist(placed[gap[0]], placed[gap[1]]) for gap in gaps}
    longest = max(lengths.values(), default=0.0)
    wanted = [gap for gap in gaps if lengths[gap] > max(_LONG * longest, _SHORT)]
    return sorted(wanted, key=lambda gap: -lengths[gap])[:most]


def divides(new: Sequence[float], left: Sequence[float], right: Sequence[float]) -> bool:
    """Whether a point lies between two neighbours, at neither of them."""
    apart = _APART * math.dist(left, right)
    between = left[0] < new[0] < right[0] and right[1] < new[1] < left[1]
    return between and min(math.dist(new, left), math.dist(new, right)) > apart
