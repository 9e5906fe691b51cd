import numpy as np
import pytest

from paretune.errors import InputError
from paretune.moo.indicators import (
    default_reference,
    epsilon_additive,
    epsilon_multiplicative,
    hypervolume,
    in_order,
    nondominated,
    unevenness,
)

FRONT = np.array([[1.0, 4.0], [2.0, 2.0], [4.0, 1.0]])
DOMINATED = np.array([[3.0, 3.0]])


def dominated_volume(points, reference):
    """Slow twin: inclusion and exclusion over the boxes up to the reference."""
    volume = 0.0
    for subset in range(1, 2 ** len(points)):
        chosen = [point for n, point in enumerate(points) if subset >> n & 1]
        box = np.maximum(np.array(reference) - np.max(chosen, axis=0), 0).prod()
        volume += (-1) ** (len(chosen) + 1) * box
    return volume


def test_nondominated():
    assert nondominated(np.vstack([DOMINATED, FRONT, FRONT[:1]])).tolist() == [False] + [True] * 4


def test_default_reference_is_nadir_and_a_tenth_of_the_range():
    assert default_reference(np.vstack([FRONT, DOMINATED + 9])) == pytest.approx((4.3, 4.3))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_hypervolume(size):
    points = np.random.default_rng(size).uniform(size=(6, size))
    found = hypervolume(points, [0.9] * size)
    assert found.value == pytest.approx(dominated_volume(points, [0.9] * size))
    assert found.reference == (0.9,) * size


def test_hypervolume_states_its_default_reference():
    found = hypervolume(FRONT)
    assert found.reference == default_reference(FRONT)
    assert found.value == pytest.approx(dominated_volume(FRONT, found.reference))


def test_epsilon():
    assert epsilon_additive(FRONT + 0.25, FRONT) == pytest.approx(0.25)
    assert epsilon_multiplicative(FRONT * 1.5, FRONT) == pytest.approx(1.5)
    assert epsilon_additive(FRONT[:1], FRONT) == pytest.approx(3.0)


def test_bad_input():
    with pytest.raises(InputError, match="shape"):
        hypervolume([1.0, 2.0])
    with pytest.raises(InputError, match="finite"):
        nondominated([[np.nan, 1.0]])
    with pytest.raises(InputError, match="2 values"):
        hypervolume(FRONT, [1.0])
    with pytest.raises(InputError, match="positive"):
        epsilon_multiplicative(FRONT - 1, FRONT)


def test_unevenness_is_of_distances_in_ranges():
    even = np.linspace(0, 1, 6)
    assert unevenness(np.stack([1000 * even, 1 - even], axis=1)) == pytest.approx(0, abs=1e-12)
    collapsed = np.array([[0.0, 1.0]] * 3 + [[1.0, 0.0]] * 3)
    assert unevenness(collapsed) == pytest.approx(2.0)  # √(5 - 1): one of five distances is not 0
    assert unevenness(np.ones((4, 2))) == 0
    with pytest.raises(InputError, match="at least 3 points"):
        unevenness(FRONT[:2])


def test_steps_in_order_are_counted_along_the_edges():
    grid = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]], dtype=float)
    assert in_order(grid, 1 - grid) == (8, 8)  # edges of 1, 1 and 2 steps, without what is inside
    assert in_order(grid, grid) == (0, 8)
    turned = in_order(grid[::-1], (1 - grid)[::-1])
    assert turned == (8, 8)
