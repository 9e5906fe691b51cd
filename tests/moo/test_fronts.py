"""Fronts by a number of points: even, whatever the units; kept, resumed, limited, drawn, chosen."""

import json
import math
import time

import matplotlib as mpl
import numpy as np
import pytest
import torch

from paretune.errors import InputError
from paretune.moo import Exploration, Problem, black_box, explore, minimize, test_problems
from paretune.moo.decision import closest, knee, pseudo_weights
from paretune.moo.indicators import hypervolume, unevenness
from paretune.moo.plot import plot_front
from paretune.moo.solvers.exploration import FrontWarning
from paretune.moo.solvers.rays import grid_rays, next_gaps


def relative_volume(front, known, reference=None):
    true = known.front(5000)
    low, high = true.min(0), true.max(0)
    corner = high + 0.1 * (high - low) if reference is None else reference
    found = hypervolume(front.objectives.numpy(), corner).value
    return found / hypervolume(true, corner).value


@pytest.mark.parametrize("units", [(1.0, 1.0), (0.01, 100.0)])
def test_a_number_of_points_is_an_even_front_in_any_units(units):
    known = test_problems.toy()
    factors = torch.tensor(units, dtype=torch.float64)
    problem = Problem(
        lambda z: factors * known.problem.evaluate(z), constraints=known.problem.constraints
    )
    front = explore(problem, 20, x0=known.x0)
    assert len(front.results) == 20
    assert front.converged
    assert all(front.nondominated)
    values = front.objectives / factors
    order = values[:, 0].argsort()
    assert unevenness(values[order].numpy()) < 0.5
    exact = known.front(4000)
    assert max(np.abs(exact - value.numpy()).max(1).min() for value in values) < 0.05
    np.testing.assert_allclose(values.amin(0), exact.min(0), atol=0.05)


def test_a_concave_front_with_saddles_at_its_ends():
    known = test_problems.zdt2()
    front = explore(known.problem, 20, x0=known.x0)
    assert front.converged
    assert relative_volume(front, known) > 0.94  # twenty even points have 0.95


@pytest.mark.parametrize("units", [(1.0, 1.0), (1e-3, 1e4)])
def test_an_objective_with_many_minima_has_the_right_corner(units):
    """f1 does not see z2 and z3, so that f2 can be anything where f1 is least."""
    factors = torch.tensor(units, dtype=torch.float64)
    problem = Problem(
        lambda z: (
            factors
            * torch.stack([(z[0] - 0.2) ** 2, (z - z.new_tensor([1, 1, -0.3])).square().sum()])
        )
    )
    front = explore(problem, 12, x0=[0.0, 5.0, 3.0])
    np.testing.assert_allclose(front.normalization.nadir / units, [0.64, 0.64], rtol=0.02)
    assert front.converged
    assert all(front.nondominated)
    values = (front.objectives / factors).clamp(min=0)
    np.testing.assert_allclose(values.sqrt().sum(1), 0.8, atol=2e-3)  # |0.2 − z1| + |z1 − 1|
    assert unevenness(values[values[:, 0].argsort()].numpy()) < 0.5


def test_a_front_in_pieces():
    known = test_problems.tnk()
    front = explore(known.problem, 20, x0=known.x0)
    assert front.converged
    assert max(float(result.inequalities.max()) for result in front.results) < 1e-5
    assert relative_volume(front, known) > 0.95


def test_objectives_that_agree_are_one_point():
    problem = Problem(lambda z: torch.stack([z[0] ** 2 + 1, 3 * z[0] ** 2 - 2]))
    with pytest.warns(FrontWarning):
        front = explore(problem, 9, x0=[0.3])
    np.testing.assert_allclose(front.objectives, [[1.0, -2.0]] * len(front.results), atol=1e-6)


def test_rays_are_the_grid_and_as_many_as_asked_for():
    assert len(grid_rays(91, 3)) == 91
    assert len(grid_rays(17, 3)) == 17
    assert grid_rays(1, 4).tolist() == [[0.25] * 4]
    np.testing.assert_allclose(grid_rays(17, 3).sum(1), 1)
    assert len(np.unique(grid_rays(17, 3).round(9), axis=0)) == 17
    placed = np.array([[0.0, 1.0], [1.0, 0.0], [0.1, 0.8], [0.5, 0.9]])  # the last is dominated
    assert next_gaps(placed, set(), 5) == [(2, 1)]
    assert next_gaps(placed, {(2, 1)}, 5) == [(0, 2)]


def front_of(**options):
    known = test_problems.toy()
    return explore(known.problem, 8, x0=known.x0, **options)


def same(first: Exploration, second: Exploration):
    assert torch.equal(first.points, second.points)
    assert torch.equal(first.objectives, second.objectives)
    assert first.preferences == second.preferences
    assert first.n_function_evaluations == second.n_function_evaluations
    assert [r.message for r in first.results] == [r.message for r in second.results]


def test_resumed_is_bit_for_bit_what_is_not_interrupted(tmp_path):
    whole, path = front_of(journal=tmp_path / "whole.jsonl"), tmp_path / "front.jsonl"
    same(whole, front_of())
    with pytest.warns(FrontWarning, match=r"3 of 8 points are solved: the callback ended it"):
        part = front_of(journal=path, callback=lambda solved: solved.done == 3)
    assert len(part.results) == 3
    lines = path.read_bytes()
    path.write_bytes(lines + b'{"key": "cut o')  # killed while writing
    same(whole, front_of(journal=path))
    calls = []
    known = test_problems.toy()
    counted = Problem(
        lambda z: calls.append(1) or known.problem.evaluate(z),
        constraints=known.problem.constraints,
    )
    same(whole, explore(counted, 8, x0=known.x0, journal=path))
    assert len(calls) < 5  # all runs came from the file
    with pytest.raises(InputError, match=r"is of another exploration \(x0, problem differ\)"):
        explore(known.problem, 8, x0=known.x0 + 1, journal=path)
    path.write_text('{"format": "other"}\n')
    with pytest.raises(InputError, match="is no journal of an exploration"):
        front_of(journal=path)


def test_a_journal_of_another_problem_is_refused(tmp_path):
    def problem(add=0.0, least=1.0, bound=3.0):
        return Problem(
            lambda z: torch.stack([((z - 1) ** 2).sum() + add * z[0] ** 2, (z + 1).square().sum()]),
            inequalities=lambda z: z[:1] - least,
            bounds=(-bound, bound),
        )

    options = {"x0": [0.0, 0.0], "journal": tmp_path / "front.jsonl"}
    first = explore(problem(), 5, **options)
    same(first, explore(problem(), 5, **options))
    for other in (problem(add=1.0), problem(least=0.5), problem(bound=2.0)):
        with pytest.raises(InputError, match=r"of another exploration \(problem differ\)"):
            explore(other, 5, **options)


@pytest.mark.parametrize("text", ["a note", "a note\nand more", '{"a": 1}\n{"b"', "[1]"])
def test_a_file_that_is_no_journal_stays_as_it_is(text, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(InputError, match="is no journal of an exploration: name another file"):
        front_of(journal=path)
    assert path.read_text() == text
    with pytest.raises(InputError, match="cannot be read"):
        front_of(journal=tmp_path)


def test_a_preference_list_is_resumed_too(tmp_path):
    known, path = test_problems.toy(), tmp_path / "front.jsonl"
    grid = [(k / 6, 1 - k / 6) for k in range(1, 6)]
    whole = explore(known.problem, grid, x0=known.x0)
    with pytest.warns(FrontWarning, match="2 of 5"):
        explore(known.problem, grid, x0=known.x0, journal=path, callback=lambda s: s.done == 2)
    same(whole, explore(known.problem, grid, x0=known.x0, journal=path))


def test_ctrl_c_keeps_what_is_there():
    known = test_problems.toy()

    def interrupt(solved):
        if solved.done == 4:
            raise KeyboardInterrupt

    with pytest.warns(FrontWarning, match="4 of 8 points are solved: interrupted"):
        front = explore(known.problem, 8, x0=known.x0, callback=interrupt)
    assert len(front.results) == 4
    assert front.converged


def test_limits_end_what_runs():
    known = test_problems.toy()
    with pytest.warns(FrontWarning, match="max_evaluations is 240"):
        front = explore(known.problem, 30, x0=known.x0, max_evaluations=240)
    assert front.n_function_evaluations < 290
    seen = []
    found = minimize(known.problem, (0.5, 0.5), x0=known.x0, max_evaluations=12)
    assert not found.converged
    assert "max_evaluations is 12" in found.message
    assert found.n_function_evaluations < 30
    slow = Problem(
        lambda z: time.sleep(0.01) or known.problem.evaluate(z),
        constraints=known.problem.constraints,
    )
    found = minimize(slow, (0.5, 0.5), x0=known.x0, max_seconds=0.05)
    assert "max_seconds is 0.05" in found.message
    for method in ("wc_augmented", "wc_penalty"):
        seen.clear()
        found = minimize(
            known.problem,
            (0.5, 0.5),
            method,
            x0=known.x0,
            callback=lambda now: seen.append(now) or now.steps == 5,
        )
        assert "the callback ended it" in found.message
        assert seen[-1].steps == 5
        assert seen[0].objectives.shape == (2,)
        assert seen[-1].n_function_evaluations > seen[0].n_function_evaluations
    with pytest.raises(InputError, match="max_seconds must be above 0"):
        minimize(known.problem, (0.5, 0.5), x0=known.x0, max_seconds=0)


def test_a_limit_stands_over_all_restarts():
    known = test_problems.toy()
    starts = [known.x0 + k for k in (1, 2, 3)]
    found = minimize(known.problem, (0.5, 0.5), x0=known.x0, restarts=starts, max_evaluations=60)
    assert found.n_function_evaluations < 100


@pytest.mark.parametrize("preferences", [9, [(k / 10, 1 - k / 10) for k in range(1, 10)]])
def test_workers_change_nothing(preferences):
    known = test_problems.toy()
    alone = explore(known.problem, preferences, x0=known.x0)
    same(alone, explore(known.problem, preferences, x0=known.x0, workers=4))


def test_workers_wait_together():
    known = test_problems.toy()
    problem = Problem(
        lambda z: time.sleep(0.005) or known.problem.evaluate(z),
        constraints=known.problem.constraints,
    )
    spent = []
    for workers in (1, 4):
        begun = time.monotonic()
        explore(problem, [(k / 13, 1 - k / 13) for k in range(1, 13)], x0=known.x0,
                warm_start=False, workers=workers)  # fmt: skip
        spent.append(time.monotonic() - begun)
    assert spent[1] < 0.7 * spent[0]


def test_saved_and_read_again(tmp_path):
    front = front_of()
    front.save(tmp_path / "front.json")
    again = Exploration.load(tmp_path / "front.json")
    same(front, again)
    np.testing.assert_array_equal(again.normalization.nadir, front.normalization.nadir)
    assert torch.equal(again.results[0].history.objectives, front.results[0].history.objectives)
    (tmp_path / "front.json").write_text(json.dumps({"format": "x"}))
    with pytest.raises(InputError, match=r"is not a front that Exploration\.save wrote"):
        Exploration.load(tmp_path / "front.json")


def test_a_result_is_a_start_with_its_multipliers():
    known = test_problems.toy()
    first = minimize(known.problem, (0.5, 0.5), x0=known.x0)
    again = minimize(known.problem, (0.5, 0.5), x0=first)
    assert again.converged
    assert again.n_gradient_evaluations < first.n_gradient_evaluations / 2
    cold = minimize(known.problem, (0.5, 0.5), x0=first.x)
    assert again.n_gradient_evaluations < cold.n_gradient_evaluations


def test_a_result_of_another_problem_is_a_start_like_any_other():
    def distances(*places):
        return lambda z: torch.stack([(z - place).square().sum() for place in places])

    two, three = Problem(distances(1.0, -1.0)), Problem(distances(1.0, -1.0, 3.0))
    for problem, other, weights, ray in (
        (three, two, (0.5, 0.25, 0.25), (0.5, 0.5)),
        (two, three, (0.8, 0.2), (0.2, 0.5, 0.3)),
    ):
        near = minimize(other, ray, x0=[0.3, 0.2])
        found = minimize(problem, weights, x0=near)
        again = minimize(problem, weights, x0=near.x)
        assert found.converged
        assert torch.equal(found.x, again.x)


def test_the_knee_and_the_closest_by_hand():
    angles = np.linspace(0, math.pi / 2, 31)
    convex = 1 - np.stack([np.sin(angles), np.cos(angles)], 1)
    assert knee(convex) == 15
    assert knee(convex * [1, 1000] + [5, -3]) == 15  # units do not matter
    assert knee(np.vstack([convex, [[-1, 50.0]]])) != 31
    points = np.vstack([convex, [[0.9, 0.9]]])  # one that is dominated
    assert closest(points, [0.9, 0.9]) == 15
    assert closest(points, [0.0, 1.0]) == 30
    np.testing.assert_allclose(pseudo_weights(convex)[[0, 15, 30]], [[0, 1], [0.5, 0.5], [1, 0]])
    with pytest.raises(InputError, match="needs 2 finite values"):
        closest(points, [0.0])
    front = front_of()
    assert 0 < front.objectives[:, 0].argsort().tolist().index(front.knee()) < 7
    assert front.closest(front.objectives[3].numpy()) == 3


@pytest.mark.parametrize("size", [2, 3, 5])
def test_pictures(size, tmp_path):
    mpl.use("Agg")
    points = np.random.default_rng(0).random((12, size))
    ax = plot_front(points, kept=[True] * 9 + [False] * 3)
    ax.figure.savefig(tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 5000
    drawn = len(ax.lines)
    assert drawn == (2 if size < 4 else 12)
    with pytest.raises(InputError, match="names for"):
        plot_front(points, names=["a"])


def test_a_front_draws_itself():
    mpl.use("Agg")
    ax = front_of().plot(names=["cost", "loss"])
    assert ax.get_xlabel() == "cost"
    mpl.pyplot.close("all")


class TestBlackBox:
    centres = np.array([[1.0, 0.0, 0.5], [-1.0, 0.5, 0.0]])

    def values(self, x):
        spheres = ((x[..., None, :] - self.centres) ** 2).sum(-1) + 0.1
        side = (x[..., :1] - 0.7) * 1.0
        return spheres, x[..., :1] - x[..., 1:2] - 0.2, side

    def torch_problem(self, **bounds):
        centres = torch.from_numpy(self.centres)
        return Problem(
            lambda z: ((z - centres) ** 2).sum(1) + 0.1,
            constraints=lambda z: z[:1] - z[1:2] - 0.2,
            inequalities=lambda z: z[:1] - 0.7,
            **bounds,
        )

    @pytest.mark.parametrize("vectorized", [False, True])
    @pytest.mark.parametrize("scheme", ["central", "forward"])
    def test_the_same_point_as_with_automatic_derivatives(self, scheme, vectorized):
        parts = ("objectives", "constraints", "inequalities")
        bounds = (-2.0, [2.0, 2.0, 0.1])
        problem = black_box(self.values, parts, bounds=bounds, scheme=scheme, vectorized=vectorized)
        x0 = [0.0, 1.0, 0.1]
        exact = self.torch_problem(bounds=(-2.0, torch.tensor([2.0, 2.0, 0.1])))
        for p in ((0.2, 0.8), (0.9, 0.1)):
            truth = minimize(exact, p, x0=x0)
            found = minimize(problem, p, x0=x0, tol=1e-6)
            assert found.converged
            np.testing.assert_allclose(found.x, truth.x, atol=2e-5)
        assert problem.objectives.calls > found.n_gradient_evaluations

    def test_gradients_against_automatic_ones(self):
        parts = ("objectives", "constraints", "inequalities")
        point = black_box(self.values, parts).at(torch.tensor([0.3, -0.2, 0.7]).double())
        exact = self.torch_problem().at(point.z)
        weights, one = torch.tensor([0.3, 0.7]), torch.tensor([2.0])
        np.testing.assert_allclose(
            point.combine(weights, one, -one), exact.combine(weights, one, -one), atol=1e-8
        )
        np.testing.assert_allclose(point.gradients(), exact.gradients(), atol=1e-8)
        moved = torch.tensor([1.0, 2.0, 3.0]).double()
        np.testing.assert_allclose(point.jvp(moved), exact.jvp(moved), atol=1e-8)

    def test_calls_are_counted_and_not_repeated(self):
        problem = black_box(lambda x: x**2 + 1)
        point = problem.at(torch.ones(4).double())
        point.gradients()
        point.combine([0.25] * 4)
        assert problem.objectives.calls == 1 + 2 * 4

    def test_a_given_jacobian_and_a_map(self):
        from concurrent.futures import ThreadPoolExecutor

        known = black_box(lambda x: x**2 + 1, jacobian=lambda x: np.diag(2 * x))
        z = torch.tensor([1.0, -2.0]).double()
        np.testing.assert_array_equal(known.at(z).gradients(), np.diag([2.0, -4.0]))
        assert known.objectives.calls == 1
        with ThreadPoolExecutor(2) as pool:
            mapped = black_box(lambda x: x**2 + 1, map=pool.map)
            np.testing.assert_allclose(mapped.at(z).gradients(), np.diag([2.0, -4.0]), atol=1e-8)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"returns": ("constraints",)}, "returns must name 'objectives'"),
            ({"scheme": "complex"}, "scheme must be"),
            ({"step": 0.0}, "step must be finite"),
        ],
    )
    def test_bad_options(self, options, message):
        with pytest.raises(InputError, match=message):
            black_box(lambda x: x, **options)

    @pytest.mark.parametrize("mapped", [None, lambda f, points: map(f, points)])
    def test_functions_that_change_x_or_return_one_array(self, mapped):
        kept, slopes = np.zeros(2), np.zeros((2, 3))

        def evaluate(x):
            x -= 1  # (x − 1)², then (x + 1)²
            kept[0] = (x**2).sum()
            x += 2
            kept[1] = (x**2).sum()
            return kept

        def jacobian(x):
            x *= 2
            slopes[0], slopes[1] = x - 2, x + 2
            return slopes

        wanted = (math.sqrt(0.3) - math.sqrt(0.7)) / (math.sqrt(0.3) + math.sqrt(0.7))
        for given in (None, jacobian):
            problem = black_box(evaluate, jacobian=given, map=mapped)
            found = minimize(problem, (0.3, 0.7), x0=[1.0, 2.0, 0.0])
            assert found.converged
            np.testing.assert_allclose(found.x, wanted, atol=1e-7)

    def test_bad_values(self):
        z = torch.ones(2).double()
        with pytest.raises(InputError, match=r"must return objectives of shape \(…,\), got \(\)"):
            black_box(lambda x: x.sum()).at(z)
        for values in [lambda x: (x,), lambda x: None, lambda x: 3.0, lambda x: (x, ["a"])]:
            with pytest.raises(InputError, match="must return 2 arrays"):
                black_box(values, ("objectives", "constraints")).at(z)
        with pytest.raises(InputError, match=r"of shape \(2, 2\), got \(1, 2\)"):
            black_box(lambda x: x, jacobian=lambda x: x[None]).at(z).gradients()
