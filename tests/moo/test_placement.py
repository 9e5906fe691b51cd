"""Placing points one after the other, on fronts that are known exactly."""

import numpy as np
import pytest
from numpy.typing import NDArray

from paretune.moo.indicators import unevenness
from paretune.moo.placement import ENDS, ends_range, next_preference

Array = NDArray[np.float64]
_T = np.linspace(0, 1, 20_001)


def _curve(convexity: float, low: tuple[float, float], high: tuple[float, float]) -> Array:
    """f_2 falls from its nadir to its ideal as f_1 rises: below the chord (1) or above it (-1)."""
    y = (1 - np.sqrt(_T)) ** 2 if convexity > 0 else np.sqrt(1 - _T**2)
    y = 1 - _T if convexity == 0 else y
    return np.array(low) + np.stack([_T, y], axis=1) * (np.array(high) - np.array(low))


def _in_pieces() -> Array:
    whole = _curve(0, (0, 0), (1, 1))
    return whole[(_T < 0.2) | (_T > 0.75)]


FRONTS = {
    "convex": _curve(1, (0, 0), (1, 1)),
    "linear": _curve(0, (0, 0), (1, 1)),
    "concave": _curve(-1, (0, 0), (1, 1)),
    "offset": _curve(1, (5, 5), (9, 9)),
    "as DPO's": _curve(1, (0.3, 0.55), (0.69, 0.9)),
    "50 to 1": _curve(1, (0, 0), (50, 1)),
    "concave, 50 to 1": _curve(-1, (10, 0), (60, 1)),
}


def reached(
    front: Array, p: tuple[float, float], losses: list[list[float]], aim: str
) -> list[float]:
    """What an exact training at p gives: of a single objective, that end."""
    if 0 in p:
        return [float(x) for x in (front[0] if p[0] else front[-1])]
    if aim == "linear":
        return [float(x) for x in front[np.argmin(front @ p)]]
    found = ends_range(*losses[:2])
    assert found is not None
    ideal, nadir = map(np.array, found)
    scaled = (front - ideal) / (nadir - ideal)
    return [float(x) for x in front[np.argmin((scaled * p).max(1))]]


def place(
    front: Array, count: int, aim: str = "chebyshev"
) -> tuple[list[tuple[float, float]], Array]:
    asked: list[tuple[float, float]] = []
    losses: list[list[float]] = []
    while len(losses) < count:
        p = next_preference(losses, aim)  # type: ignore[arg-type]
        if p is None:
            break
        asked.append(p)
        losses.append(reached(front, p, losses, aim))
    return asked, np.array(losses)


def ordered(losses: Array) -> Array:
    return losses[np.argsort(losses[:, 0])]


@pytest.mark.parametrize("name", FRONTS)
def test_gaps_are_more_even_than_a_grid_of_p(name: str) -> None:
    front = FRONTS[name]
    asked, losses = place(front, 9)
    assert asked[:2] == list(ENDS)
    assert len(set(asked)) == len(losses) == 9
    grid = [(1 - k / 8, k / 8) for k in range(9)]
    ends = [losses[0].tolist(), losses[1].tolist()]
    scaled = np.array([reached(front, p, ends, "chebyshev") for p in grid])
    assert unevenness(ordered(losses)) <= unevenness(ordered(scaled)) + 0.05
    assert unevenness(ordered(losses)) < 0.45
    raw = np.array(
        [front[np.argmin((front * p).max(1))] if all(p) else front[0 if p[0] else -1] for p in grid]
    )
    if name in ("offset", "as DPO's", "50 to 1"):  # where a grid of p collapses
        assert unevenness(ordered(losses)) < 0.5 * unevenness(ordered(raw))


def test_on_average_it_is_as_even_as_was_measured() -> None:
    """Over eight other fronts an unevenness of 0.22 was found with nine points."""
    found = [unevenness(ordered(place(front, 9)[1])) for front in FRONTS.values()]
    assert np.mean(found) < 0.3


@pytest.mark.parametrize("aim", ["chebyshev", "linear"])
def test_the_middle_of_the_largest_gap_is_met(aim: str) -> None:
    front = FRONTS["as DPO's"]
    _, losses = place(front, 9, aim)
    width = np.ptp(losses[:2], axis=0)
    for n in range(2, 9):
        before = ordered(losses[:n]) / width
        lengths = np.linalg.norm(np.diff(before, axis=0), axis=1)
        left, right = before[np.argmax(lengths)], before[np.argmax(lengths) + 1]
        new = losses[n] / width
        assert left[0] < new[0] < right[0]
        if aim == "chebyshev":  # the point lies on the ray through the middle, from the ideal one
            ideal = np.array([losses[0, 0], losses[1, 1]]) / width
            middle, ray = (left + right) / 2 - ideal, new - ideal
            assert ray[0] / ray.sum() == pytest.approx(middle[0] / middle.sum(), abs=2e-3)


def test_a_gap_of_a_front_in_pieces_is_left_alone() -> None:
    front = _in_pieces()
    asked, losses = place(front, 12)
    assert len(set(asked)) == len(asked)
    inside = (losses[:, 0] > 0.21) & (losses[:, 0] < 0.74)
    assert not inside.any()
    lengths = np.linalg.norm(np.diff(ordered(losses), axis=0), axis=1)
    assert np.sort(lengths)[-2] < 0.25  # all but the hole
    assert len(losses) >= 8


def test_dominated_points_and_those_that_are_not_finite_divide_no_gap() -> None:
    ends = [[0.0, 1.0], [1.0, 0.0]]
    assert next_preference([*ends, [1.2, 1.2]]) is None
    assert next_preference([*ends, [float("nan"), 0.5]]) is None
    below, *others = [0.1, 0.1], [0.5, 0.5], [0.1, 0.1]
    first = next_preference([*ends, below])
    assert first is not None
    for other in others:  # the second gap is next, and then there is none
        second = next_preference([*ends, below, other])
        assert second is not None
        assert second != first
        assert next_preference([*ends, below, other, other]) is None


def test_ends_without_a_front_between_them() -> None:
    for ends in ([[0.5, 0.5], [0.4, 0.6]], [[0.5, 0.5], [0.5, 0.5]], [[float("nan"), 1], [1, 0]]):
        assert ends_range(*ends) is None
        assert next_preference(ends) is None
