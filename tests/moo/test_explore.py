"""`explore` against exact fronts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.errors import InputError
from paretune.moo import (
    MGDA,
    Clamp,
    Descent,
    FrontWarning,
    Linear,
    Preference,
    Problem,
    WCAugmented,
    das_dennis,
    explore,
    minimize,
    test_problems,
)
from paretune.moo.indicators import hypervolume
from paretune.moo.ranking import Ranking
from paretune.moo.solvers.normalization import MARGIN

GRID = [(k / 22, 1 - k / 22) for k in range(1, 22)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        test_problems.toy,
        test_problems.rank_deficient,
        lambda: test_problems.sphere_arc(10),
        lambda: test_problems.sphere_arc(5, 1.2, 2.0, concave=True),
    ],
)
def test_every_point_is_the_chebyshev_point_of_its_preference(make):
    known = make()
    front = explore(known.problem, GRID, x0=known.x0, tol=1e-7)
    assert front.converged
    assert float(front.residuals.max()) <= 1e-7
    exact = [known.chebyshev(p) for p in GRID]
    np.testing.assert_allclose(front.objectives, exact, atol=1e-5)
    np.testing.assert_allclose(front.points, [known.solution(p) for p in GRID], atol=1e-5)


def test_coverage_of_a_concave_front():
    """At least 0.99 of the exact points' hypervolume, where weighted sums reach only the ends."""
    known = test_problems.sphere_arc(5, 1.2, 2.0, concave=True)
    reference = (1.1, 1.1)
    exact = hypervolume([known.chebyshev(p) for p in GRID], reference).value
    front = explore(known.problem, GRID, x0=known.x0)
    assert front.hypervolume(reference).value >= 0.99 * exact
    assert front.hypervolume(reference).reference == reference
    assert all(front.nondominated)
    sums = []
    for p in GRID[::4]:
        weights = torch.tensor(p, dtype=torch.float64)
        total = Problem(
            lambda z, w=weights: (w @ known.problem.evaluate(z)).reshape(1),
            constraints=known.problem.constraints,
        )
        found = minimize(total, [1.0], "wc_augmented", x0=known.x0, tol=1e-6)
        sums.append(known.problem.evaluate(found.x))
    sums = torch.stack(sums)
    assert hypervolume(sums.numpy(), reference).value < 0.7 * exact
    assert float(sums.min(dim=1).values.max()) < 0.05  # each at one of the two ends


def test_order_of_preferences_does_not_matter():
    known = test_problems.sphere_arc(4)
    shuffled = [GRID[n] for n in np.random.default_rng(0).permutation(len(GRID))]
    front = explore(known.problem, shuffled, x0=known.x0, tol=1e-8)
    assert [p.weights for p in front.preferences] == shuffled
    np.testing.assert_allclose(front.objectives, [known.chebyshev(p) for p in shuffled], atol=1e-6)


def test_warm_starts_save_evaluations_and_all_are_counted():
    known = test_problems.sphere_arc(4)
    warm = explore(known.problem, GRID, x0=known.x0)
    cold = explore(known.problem, GRID, x0=known.x0, warm_start=False)
    assert warm.converged
    assert cold.converged
    assert warm.n_gradient_evaluations < cold.n_gradient_evaluations
    assert cold.n_gradient_evaluations == sum(r.n_gradient_evaluations for r in cold.results)
    assert warm.n_function_evaluations >= sum(r.n_function_evaluations for r in warm.results)


def test_local_minima_are_left_by_way_of_other_points():
    """On a closed curve: all points on the front, and none improved by another one's point."""
    known = test_problems.eq_dtlz(2)
    preferences = [p for p in das_dennis(3, 5) if min(p) > 0]
    start = known.x0.clone()
    start[:2] = torch.tensor([0.8, 0.75])
    front = explore(known.problem, preferences, x0=start, tol=1e-7)
    assert front.converged
    curve = known.front(20_000)
    for p, values in zip(preferences, front.objectives.numpy(), strict=True):
        assert np.abs(curve - values).max(1).min() < 1e-3
        own = (p * values).max()
        assert own <= (front.objectives.numpy() * p).max(1).min() * (1 + 2e-6)


def test_restarts_find_the_global_solutions():
    known = test_problems.eq_dtlz(2)
    preferences = [p for p in das_dennis(3, 5) if min(p) > 0]
    starts = []
    for angle in (0.3, 2.4, 4.5):
        start = known.x0.clone()
        start[:2] += 0.3 * torch.tensor([np.cos(angle), np.sin(angle)])
        starts.append(start)
    front = explore(known.problem, preferences, x0=known.x0, restarts=starts, tol=1e-7)
    for p, values in zip(preferences, front.objectives.numpy(), strict=True):
        best = (known.chebyshev(p) * p).max()  # compared by level: mirror images tie
        assert (values * p).max() == pytest.approx(best, abs=1e-6)
    assert len(preferences) * 4 * 5 < front.n_gradient_evaluations  # all runs are counted


@pytest.mark.slow
def test_unconstrained_methods():
    known = test_problems.fonseca_fleming()
    grid = [(k / 10, 1 - k / 10) for k in range(1, 10)]
    clamp = explore(known.problem, grid, Descent(Clamp(mu=1.0), lr=0.3), x0=known.x0)
    np.testing.assert_allclose(clamp.objectives, [known.chebyshev(p) for p in grid], atol=1e-5)
    linear = explore(known.problem, grid, "linear", x0=known.x0, steps=2000)
    assert float(linear.objectives.amin(1).max()) < 5e-3
    for method in ("mgda", Descent(MGDA())):  # p has no say: all from x0, all alike
        mgda = explore(known.problem, grid[:2], method, x0=known.x0, steps=300)
        assert torch.equal(mgda.points[0], mgda.points[1])


def test_shift_counts_when_points_are_compared():
    known = test_problems.toy()
    problem = Problem(
        lambda z: known.problem.evaluate(z) - 30, constraints=known.problem.constraints
    )
    front = explore(problem, GRID[3:6], x0=known.x0, shift=30.0, tol=1e-7)
    np.testing.assert_allclose(
        front.objectives + 30, [known.chebyshev(p) for p in GRID[3:6]], atol=1e-5
    )


def test_bad_input():
    known = test_problems.toy()
    with pytest.raises(InputError, match="at least one preference"):
        explore(known.problem, [], x0=known.x0)
    with pytest.raises(InputError, match="as many weights"):
        explore(known.problem, [(0.5, 0.5), (0.2, 0.3, 0.5)], x0=known.x0)
    with pytest.raises(InputError, match="a whole number or a list"):
        explore(known.problem, 2.5, x0=known.x0)
    assert len(explore(known.problem, np.int64(2), x0=known.x0).results) == 2
    with pytest.raises(InputError, match="is 0"):
        explore(known.problem, [(1.0, 0.0)], "wc_penalty", x0=known.x0)


@pytest.mark.parametrize("units", [(1.0, 1.0), (0.01, 100.0)])
def test_normalised_the_units_of_the_objectives_do_not_matter(units):
    known = test_problems.toy()
    factors = torch.tensor(units, dtype=torch.float64)
    problem = Problem(
        lambda z: factors * known.problem.evaluate(z), constraints=known.problem.constraints
    )
    front = explore(problem, GRID, x0=known.x0, normalise=True)
    assert front.converged
    values = front.objectives / factors
    exact = known.front(2000)
    scale = front.normalization
    np.testing.assert_allclose(scale.ideal / units, exact.min(0), rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(scale.nadir / units, exact.max(0), rtol=0.1)
    ends = exact.min(0), exact.max(0)
    placed = (values.numpy() - ends[0]) / (ends[1] - ends[0])
    weighed = np.array(GRID) * (placed + MARGIN)
    assert np.abs(weighed[:, 0] / weighed[:, 1] - 1).max() < 0.25  # each on the ray of its p
    assert scale.runs[0].n_gradient_evaluations < front.n_gradient_evaluations


def test_normalising_needs_the_method_that_can():
    known = test_problems.toy()
    for method in ("wc_penalty", None):
        with pytest.raises(InputError, match="needs method 'wc_augmented', without a shift"):
            explore(known.problem, GRID, method, x0=known.x0, shift=1.0, normalise=True)


@pytest.mark.parametrize("method", [WCAugmented(shift=(0.5, 0.0, 1.0)), Descent(Linear()), None])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_the_best_of_many_runs_is_that_of_pairs_one_by_one(method, seed):
    """Also where values differ by less than the margin, and with weights of zero."""
    rng = np.random.default_rng(seed)
    known = test_problems.sphere_arc(3)
    start = minimize(known.problem, (0.5, 0.5), x0=known.x0, steps=0)
    points = rng.choice([1.0, 1 + 4.13e-7, 1 + 8.37e-7, 1 + 2.71e-6, 2.0], (12, 3)) * rng.choice(
        [1, -1]
    )
    runs = [
        replace(start, objectives=torch.tensor(f), converged=bool(rng.random() < 0.8))
        for f in points
    ]
    weights = rng.choice([0.0, 0.2, 0.3], (12, 3)) + np.array([0.1, 0.0, 0.0])
    weights /= weights.sum(1, keepdims=True)
    shift = [0.5, 0.0, 1.0] if isinstance(method, WCAugmented) else [0.0] * 3
    linear = isinstance(method, Descent)

    def value(p, f):
        terms = [w * (x + s) for w, x, s in zip(p, f, shift, strict=True) if linear or w > 0]
        return sum(terms) if linear else max(terms)

    expected = []
    for n, p in enumerate(weights):
        best = n
        for k, run in enumerate(runs):
            level = value(p, points[best])
            if run.converged and value(p, points[k]) < level - 1e-6 * abs(level):
                best = k
        expected.append(best)
    ranking = Ranking(WCAugmented() if method is None else method)
    preferences = [Preference.of(p) for p in weights]
    assert ranking.lowest(preferences, runs).tolist() == expected
    assert Ranking(Descent(MGDA())).lowest(preferences, runs).tolist() == list(range(12))


def test_what_the_ends_of_the_front_cost_is_said() -> None:
    known = test_problems.toy()
    with pytest.raises(InputError, match=r"No point .*, since finding the ends .*: \d+ eval"):
        explore(known.problem, 5, x0=known.x0, max_evaluations=20)


def test_the_advice_is_another_one_than_what_was_done() -> None:
    """Two objectives with one minimum: the front is a point."""
    problem = Problem(lambda x: torch.stack([(x**2).sum() + 1, 2 * (x**2).sum() + 1]))
    preferences = das_dennis(2, 8)
    with pytest.warns(FrontWarning, match=r"9 of 9 preferences .* a number of points in place"):
        explore(problem, preferences, x0=[0.5, -0.3])
    with pytest.warns(FrontWarning) as caught:
        explore(problem, 9, x0=[0.5, -0.3])
    assert not any("a number of points" in str(each.message) for each in caught)
