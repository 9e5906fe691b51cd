import numpy as np
import pytest

from paretune.errors import InputError
from paretune.moo.indicators import area_ratio, radar_area


def shoelace(radius):
    """Slow twin: the polygon's corners in the plane, and the shoelace formula."""
    angles = 2 * np.pi * np.arange(len(radius)) / len(radius)
    x, y = radius * np.cos(angles), radius * np.sin(angles)
    return abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2


@pytest.mark.parametrize("size", [3, 4, 5, 8])
def test_radar_area_is_that_of_the_polygon(size):
    losses = np.random.default_rng(size).uniform(0.2, 2.0, size)
    assert radar_area(losses) == pytest.approx(shoelace(1 / losses))


def test_each_axis_takes_the_best_point():
    points = [[1.0, 2.0, 4.0], [2.0, 1.0, 4.0], [3.0, 3.0, 2.0]]
    assert radar_area(points) == pytest.approx(radar_area([1.0, 1.0, 2.0]))


def test_ratio():
    losses = np.random.default_rng(0).uniform(0.2, 2.0, (4, 5))
    assert area_ratio(losses, losses) == 1.0
    assert area_ratio(losses / 2, losses) == pytest.approx(4.0)  # an area: radii twice as long
    assert area_ratio(losses, losses / 2) == pytest.approx(0.25)


def test_bad_input():
    with pytest.raises(InputError, match="at least 3"):
        radar_area([1.0, 2.0])
    with pytest.raises(InputError, match="positive"):
        radar_area([1.0, 2.0, 0.0])
    with pytest.raises(InputError, match="3 and 4 objectives"):
        area_ratio([1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0])
