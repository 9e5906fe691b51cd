"""Gates of conditioned adapters, the sequence of preferences, and calibration."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import PchipInterpolator
from scipy.special import betaincinv

from paretune.errors import InputError
from paretune.moo.calibration import Calibration, measure_path, pchip, scale_to_ranges
from paretune.moo.gates import Gate, beta_quantile, corners, spread_preferences


@pytest.mark.parametrize("m", [2, 3, 5])
def test_corners_are_a_regular_simplex(m: int) -> None:
    v = corners(m)
    expected = np.full((m, m), -1 / (m - 1))
    np.fill_diagonal(expected, 1)
    assert np.allclose(v @ v.T, expected)
    assert np.allclose(v.sum(0), 0)


@pytest.mark.parametrize("m", [2, 3, 4])
def test_both_bases_span_the_same_adapters(m: int) -> None:
    q = spread_preferences(0, 50, m)
    design = np.concatenate([Gate(m).factors(q)], axis=1)
    back, residual, rank, _ = np.linalg.lstsq(design, Gate(m, "objectives").factors(q), rcond=None)
    assert rank == m
    assert np.allclose(design @ back, q)
    assert residual.max() < 1e-20


@pytest.mark.parametrize("m", [2, 3, 5])
def test_centred_factors_have_no_leak_and_one_variance_for_any_number(m: int) -> None:
    factors = Gate(m).factors(spread_preferences(0, 20_000, m))
    second_moments = factors.T @ factors / len(factors)  # the first factor is 1: means, too
    assert np.allclose(second_moments, np.diag([1] + (m - 1) * [1 / 3]), atol=5e-3)


@pytest.mark.parametrize("m", [2, 3, 4])
@pytest.mark.parametrize("seed", [0, 3])
def test_preferences_fill_the_simplex_evenly(m: int, seed: int) -> None:
    p = spread_preferences(100, 2_000, m, seed)
    assert p.min() >= 0
    assert np.allclose(p.sum(1), 1)
    assert np.allclose(p.mean(0), 1 / m, atol=5e-3)
    drawn = np.random.default_rng(0).dirichlet(m * [2 / m], 200_000)
    for level in (0.1, 0.5, 0.9):
        assert np.allclose(np.quantile(p, level, axis=0), np.quantile(drawn, level), atol=0.02)
    assert np.allclose(p.T @ p / len(p), drawn.T @ drawn / len(drawn), atol=5e-3)
    assert np.array_equal(p[7:9], spread_preferences(107, 2, m, seed))


@pytest.mark.parametrize(("a", "b"), [(1, 1), (2 / 3, 4 / 3), (2 / 3, 2 / 3), (0.2, 1.8), (4, 9)])
def test_beta_quantiles_are_scipys(a: float, b: float) -> None:
    u = np.linspace(0, 0.999, 400)
    assert np.allclose(beta_quantile(u, a, b), betaincinv(a, b, u), atol=1e-4)


def test_any_four_in_a_row_cover_the_segment() -> None:
    for start in range(100):
        first = np.sort(spread_preferences(start, 4, 2)[:, 0])
        assert np.diff(np.concatenate([[first[-1] - 1], first])).max() < 0.4


@given(
    st.lists(st.integers(-3000, 3000).map(lambda n: n / 1000), min_size=3, max_size=8),
    st.lists(st.floats(0.1, 2), min_size=8, max_size=8),
)
def test_pchip_is_scipys(values: list[float], widths: list[float]) -> None:
    x = np.cumsum(widths[: len(values)])
    y = np.array(values)
    at = np.linspace(x[0], x[-1], 50)
    assert np.allclose(pchip(x, y, at), PchipInterpolator(x, y)(at), rtol=1e-9, atol=1e-9)


def curve(q: np.ndarray) -> list[float]:
    """A front that is run through unevenly: quarter circle, angle not linear in q."""
    angle = np.pi / 2 * (1 / (1 + np.exp(-4 * (q[0] - 0.3))))
    return [float(1 - np.sin(angle)), float(3 * (1 - np.cos(angle)))]


def unevenness(points: np.ndarray) -> float:
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    return float(steps.std() / steps.mean())


def test_even_calibration_spaces_points_evenly() -> None:
    calibration = measure_path(curve, 2, points=7, extrapolate=0)
    p = np.linspace(0, 1, 7)
    gates = np.array([calibration.position([w, 1 - w]) for w in p])
    assert np.all(np.diff(gates[:, 0]) > 0)
    scaled = scale_to_ranges(np.array([curve(q) for q in gates]))
    raw = scale_to_ranges(np.array([curve(np.array([w, 1 - w])) for w in p]))
    assert unevenness(scaled) < 0.03 < 0.2 < unevenness(raw)


def test_chebyshev_calibration_minimises_the_largest_weighted_loss() -> None:
    calibration = measure_path(curve, 2, "chebyshev", points=9, extrapolate=0.5)
    p = np.array([0.7, 0.3])
    q = np.array(calibration.position(p))
    t = np.linspace(calibration.positions[0, 0], calibration.positions[-1, 0], 501)
    losses = np.array([curve(np.array([v, 1 - v])) for v in t])
    low, width = losses.min(0), np.ptp(losses, axis=0)
    best = (p * (losses - low) / width).max(1).min()
    assert (p * (np.array(curve(q)) - low) / width).max() < best + 0.02


def test_extrapolation_stops_where_the_ends_own_loss_rises() -> None:
    def measure(q: np.ndarray) -> list[float]:
        return [float((q[0] - 1.3) ** 2), float(q[0] ** 2 + 1)]

    calibration = measure_path(measure, 2, points=5, extrapolate=2.0)
    assert calibration.positions[0, 0] == 0  # beyond, f2 rises again
    assert calibration.positions[-1, 0] == 1.25  # 1.5 is not better for f1
    assert measure_path(measure, 2, extrapolate=0).positions[-1, 0] == 1


def test_three_objectives_even_meaning_keeps_corners_and_centre() -> None:
    def sphere(q: np.ndarray) -> list[float]:
        return [float(((q - np.eye(3)[m]) ** 2).sum()) for m in range(3)]

    calibration = measure_path(sphere, 3, points=5)
    assert np.allclose(calibration.losses_at([0.2, 0.3, 0.5]), sphere(np.array([0.2, 0.3, 0.5])))
    for m in range(3):
        assert np.allclose(calibration.position(np.eye(3)[m]), np.eye(3)[m], atol=0.03)
    assert np.allclose(calibration.position([1 / 3] * 3), 1 / 3, atol=0.03)


@pytest.mark.parametrize("m", [3, 4])
def test_with_more_objectives_each_corner_goes_as_far_as_its_own_loss_falls(m: int) -> None:
    """Minima lie beyond the corners, at weight 1.5 of the first and 1.25 of the others."""
    far = np.array([1.5] + [1.25] * (m - 1))

    def measure(q: np.ndarray) -> list[float]:
        return [float(abs(q[i] - far[i])) for i in range(m)]

    calibration = measure_path(measure, m, points=5, extrapolate=2.0)
    assert np.allclose(calibration.positions.max(0), far)
    assert np.allclose(calibration.positions.sum(1), 1)
    for i in range(m):
        end = calibration.position(np.eye(m)[i])
        assert end[i] == pytest.approx(far[i], abs=0.05)
        assert np.ptp(np.delete(end, i)) < 0.05, "away from the centre: the others give alike"
    assert measure_path(measure, m, points=5, extrapolate=0.25).positions.max() == 1.25
    assert measure_path(measure, m, points=5, extrapolate=0).positions.min() == 0


def test_json_round_trip() -> None:
    calibration = measure_path(curve, 2)
    again = Calibration.from_json(calibration.to_json())
    assert again.position([0.4, 0.6]) == calibration.position([0.4, 0.6])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gate(1), "at least 2"),
        (lambda: Gate(2, "other"), "centred or objectives"),  # type: ignore[arg-type]
        (lambda: Gate(2).factors([0.5, 0.6]), "sum to 1"),
        (lambda: Gate(2).factors([0.5, 0.2, 0.3]), "each of 2"),
        (lambda: measure_path(curve, 2, points=1), "2 points"),
        (lambda: measure_path(curve, 2, extrapolate=float("nan")), "finite length"),
        (lambda: measure_path(lambda q: [1.0, float("nan")], 2), "finite losses"),
        (lambda: measure_path(curve, 2).position([-0.5, 1.5]), "at least 0"),
        (lambda: measure_path(curve, 2, "evn"), "even, chebyshev or none"),  # type: ignore[arg-type]
        (lambda: Calibration.from_json({"positions": []}), "not a calibration"),
    ],
)
def test_mistakes_are_one_sentence(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
