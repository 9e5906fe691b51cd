"""Where on a front of two objectives the next point should be: in the middle of its largest gap.

The ends come first, p = (1, 0) and (0, 1). Their losses are the ranges by which losses are scaled,
u = (f - ideal) / (nadir - ideal). From then on the longest gap between neighbours is aimed at. What
comes of it may be a neighbour again, where a front is in pieces: that gap is left alone.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

Point = tuple[float, float]
Aim = Literal["chebyshev", "linear"]

ENDS: tuple[Point, Point] = ((1.0, 0.0), (0.0, 1.0))
_APART = 0.1  # of a gap: what is nearer to its end does not divide it
_DECIMALS = 4  # of a preference


def ends_range(first: Sequence[float], second: Sequence[float]) -> tuple[Point, Point] | None:
    """Ideal and nadir of two objectives, by the losses of the points trained on each alone.

    Returns:
        None where there is no front between them: one is no worse than the other in its objective.
    """
    ideal, nadir = (first[0], second[1]), (second[0], first[1])
    if not all(low < high for low, high in zip(ideal, nadir, strict=True)):  # NaN, too
        return None
    return ideal, nadir


def next_preference(losses: Sequence[Sequence[float]], aim: Aim = "chebyshev") -> Point | None:
    """The preference to train next, a function of the losses reached so far alone.

    Args:
        losses: of the points, in the order in which this function asked for them.
        aim: How p is followed by what is trained. ``"chebyshev"``: to the least max_m p_m u_m, so
            that p ∝ 1 / u at the middle u of the gap. ``"linear"``: to the least Σ_m p_m f_m, so
            that p is the normal of the gap.

    Returns:
        Weights of four decimals; None where no gap is left that points were not tried in.

    >>> [next_preference([[0.2, 0.8], [0.6, 0.4]][:n]) for n in range(3)]
    [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)]
    """
    if len(losses) < len(ENDS):
        return ENDS[len(losses)]
    scale = ends_range(*losses[:2])
    if scale is None:
        return None
    ideal, nadir = scale
    scaled = [
        [(f - a) / (b - a) for f, a, b in zip(row, ideal, nadir, strict=True)] for row in losses
    ]
    line, closed, asked = [0, 1], set[tuple[int, int]](), set(ENDS)
    new = 2
    while True:
        gap = _largest(line, scaled, closed)
        if gap is None:
            return None
        left, right = gap
        if aim == "linear":
            wanted = _normal(losses[left], losses[right])
        else:
            wanted = _ray(scaled[left], scaled[right])
        if wanted in asked:
            closed.add(gap)
            continue
        if new == len(losses):
            return wanted
        asked.add(wanted)
        if not _divides(scaled[new], scaled[left], scaled[right]):
            closed.add(gap)
        line = _front([*line, new], scaled)
        new += 1


def _largest(
    line: Sequence[int], scaled: Sequence[Sequence[float]], closed: set[tuple[int, int]]
) -> tuple[int, int] | None:
    gaps = [gap for gap in pairwise(line) if gap not in closed]
    return max(gaps, key=lambda gap: math.dist(scaled[gap[0]], scaled[gap[1]]), default=None)


def _normal(left: Sequence[float], right: Sequence[float]) -> Point:
    """The p of which both are as good: Σ_m p_m f_m is the same."""
    return _weights(abs(left[1] - right[1]), abs(left[0] - right[0]))


def _ray(left: Sequence[float], right: Sequence[float]) -> Point:
    """The p of which max_m p_m u_m is least on the ray from 0 through the middle of these."""
    first, second = ((a + b) / 2 for a, b in zip(left, right, strict=True))
    return _weights(max(second, 0.0), max(first, 0.0))


def _weights(first: float, second: float) -> Point:
    total = first + second
    share = round(first / total if total > 0 else 0.5, _DECIMALS)
    share = min(max(share, 10**-_DECIMALS), 1 - 10**-_DECIMALS)
    return share, round(1 - share, _DECIMALS)


def _divides(new: Sequence[float], left: Sequence[float], right: Sequence[float]) -> bool:
    apart = _APART * math.dist(left, right)
    between = left[0] < new[0] < right[0] and right[1] < new[1] < left[1]
    return between and min(math.dist(new, left), math.dist(new, right)) > apart


def _front(line: Sequence[int], scaled: Sequence[Sequence[float]]) -> list[int]:
    """The points that no other dominates or was at before, along f_1; the ends stay."""
    finite = [i for i in line if all(map(math.isfinite, scaled[i]))]
    kept: list[int] = []
    for i in sorted(finite, key=lambda i: (scaled[i][0], scaled[i][1])):
        better = (
            all(a <= b for a, b in zip(scaled[j], scaled[i], strict=True))
            and (j < i or scaled[j] != scaled[i])
            for j in finite
            if j != i
        )
        if i in (0, 1) or not any(better):
            kept.append(i)
    return kept
