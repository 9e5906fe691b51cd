"""Starts from what has been solved: the order, mixtures of results, curvature that is kept."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from paretune.moo import Problem, das_dennis, explore, minimize, test_problems
from paretune.moo.solvers.journal import read_result, write_result
from paretune.moo.solvers.warm_start import mix, tour


@pytest.mark.parametrize(("size", "divisions"), [(2, 20), (3, 7), (4, 5)])
def test_a_tour_goes_outwards_and_mixes_places_of_those_before(size: int, divisions: int) -> None:
    places = np.array(das_dennis(size, divisions))
    stops = tour(places.tolist())
    assert sorted(stop.n for stop in stops) == list(range(len(places)))
    seen: set[int] = set()
    mixed = 0
    for stop in stops:
        assert seen.issuperset(stop.near)
        seen.add(stop.n)
        if stop.weights:
            mixed += 1
            weights = np.array(stop.weights)
            assert weights.sum() == pytest.approx(1)
            np.testing.assert_allclose(weights @ places[list(stop.near)], places[stop.n], atol=1e-9)
    assert mixed > 0.8 * len(places)
    distances = [float(np.linalg.norm(places[stop.n] - 1 / size)) for stop in stops]
    assert distances == pytest.approx(sorted(distances))


def test_a_tour_of_places_on_top_of_each_other_or_alone() -> None:
    assert [stop.n for stop in tour([(0.5, 0.5)])] == [0]
    stops = tour([(0.5, 0.5)] * 3)
    assert [stop.weights for stop in stops] == [()] * 3
    assert [stop.near for stop in stops] == [(), (0,), (0, 1)]


def test_a_mixture_is_affine_and_stays_off_the_bounds() -> None:
    known = test_problems.toy()
    first = minimize(known.problem, [0.3, 0.7], x0=known.x0)
    second = minimize(known.problem, [0.4, 0.6], x0=known.x0)
    there = mix([second, first], [2.0, -1.0], known.problem.project)
    torch.testing.assert_close(there.x, 2 * second.x - first.x)
    torch.testing.assert_close(
        there.constraint_multipliers,
        2 * second.constraint_multipliers - first.constraint_multipliers,
    )
    lower = (second.x + there.x) / 2  # half-way, which is beyond what each coordinate may fall to
    box = Problem(lambda z: z, bounds=(torch.minimum(lower, second.x), torch.tensor(9.0).double()))
    start, falls = mix([second, first], [2.0, -1.0], box.project), there.x < second.x
    assert bool(falls.any())
    expected = torch.where(falls, lower + 0.3 * (second.x - lower), there.x)
    torch.testing.assert_close(start.x, expected)


def test_beside_a_saddle_steps_grow() -> None:
    """x² − a y² + y⁴ has its minimum at y = √(a/2); from near y = 0 gradients are short."""
    a = 1e-3
    valley = Problem(lambda z: (1 + z[0] ** 2 - a * z[1] ** 2 + z[1] ** 4).reshape(1))
    result = minimize(valley, [1.0], x0=[0.5, 1e-3], tol=1e-9)
    assert result.converged
    assert abs(float(result.x[1])) == pytest.approx(math.sqrt(a / 2), rel=1e-4)
    assert result.n_function_evaluations < 60


def test_what_a_run_learnt_is_kept_to_the_last_bit_and_only_for_its_own_problem() -> None:
    known = test_problems.toy()
    run = minimize(known.problem, [0.5, 0.5], x0=known.x0, tol=1e-6)
    assert run.learnt is not None
    assert run.learnt.hessian is not None
    again = read_result(write_result(run), run.x)
    assert again.learnt is not None
    assert again.learnt.curvature == run.learnt.curvature
    np.testing.assert_array_equal(again.learnt.hessian, run.learnt.hessian)
    torch.testing.assert_close(again.learnt.bends, run.learnt.bends, rtol=0, atol=0)
    old = write_result(run)
    del old["learnt"]
    assert read_result(old).learnt is None, "of an older file"
    near, alone = (
        minimize(known.problem, [0.55, 0.45], x0=start, tol=1e-6)
        for start in (again, replace(run, learnt=None))
    )
    assert near.converged
    assert alone.converged
    torch.testing.assert_close(near.objectives, alone.objectives, rtol=1e-5, atol=1e-5)
    assert near.n_function_evaluations < alone.n_function_evaluations
    other = test_problems.zdt1(2).problem  # as many variables, no constraints
    assert minimize(other, [0.5, 0.5], x0=replace(run, x=torch.full((2,), 0.5).double())).converged


@pytest.mark.parametrize(
    ("name", "most"), [("zdt1", 800), ("zdt2", 1000), ("bnh", 1000), ("toy", 1300)]
)
def test_a_front_of_fifty_points_takes_few_evaluations(name: str, most: int) -> None:
    """A tenth of the 20,000 that an evolutionary algorithm is given is 2,000."""
    known = getattr(test_problems, name)()
    front = explore(known.problem, 50, x0=known.x0)
    assert front.converged
    assert len(front.results) == 50
    assert front.n_function_evaluations <= most
