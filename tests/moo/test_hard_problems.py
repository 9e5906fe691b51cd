"""Problems on which a local solver goes wrong in silence: ends of concave fronts that are saddles,
odd units and signs, constraints without a solution."""

import math

import numpy as np
import pytest
import torch

from paretune.errors import InputError
from paretune.moo import Problem, WCAugmented, das_dennis, explore, minimize, test_problems
from paretune.moo.numerics.curvature import most_negative_curvature
from paretune.moo.numerics.lbfgs import DenseBFGS
from paretune.moo.solvers.exploration import FrontWarning


def zdt2(n=30):
    """Zitzler, Deb and Thiele's second problem: f2 = 1 − f1², at z2 = … = 0."""

    def objectives(z):
        g = 1 + 9 * z[1:].sum() / (n - 1)
        return torch.stack([z[0], g * (1 - (z[0] / g) ** 2)])

    return Problem(objectives, bounds=(0.0, 1.0))


def dtlz2(n=12):
    """Deb, Thiele, Laumanns and Zitzler's second problem: an eighth of the unit sphere."""

    def objectives(z):
        a, b = z[0] * math.pi / 2, z[1] * math.pi / 2
        front = [a.cos() * b.cos(), a.cos() * b.sin(), a.sin()]
        return (1 + ((z[2:] - 0.5) ** 2).sum()) * torch.stack(front)

    return Problem(objectives, bounds=(0.0, 1.0))


def lowest_on_zdt2(p):
    """p1 f1 = p2 (1 − f1²)."""
    return p[0] * (-p[0] + math.sqrt(p[0] ** 2 + 4 * p[1] ** 2)) / (2 * p[1])


@pytest.mark.parametrize("start", [0.2, 0.5, 0.9])
def test_the_concave_front_of_zdt2(start):
    preferences = [(k / 10, 1 - k / 10) for k in range(1, 10)]
    x0 = torch.full((30,), start, dtype=torch.float64)
    front = explore(zdt2(), preferences, x0=x0, shift=1e-3)
    assert front.converged
    reached = (torch.tensor(preferences) * front.objectives).amax(1)
    np.testing.assert_allclose(reached, [lowest_on_zdt2(p) for p in preferences], atol=2e-3)


def test_a_saddle_on_a_bound_is_left():
    """At z = 0 every ∂f2 is 0 or held by its bound, and f1 does not count: K = 0."""
    p, x0 = (0.5, 0.5), torch.zeros(30, dtype=torch.float64)
    stays = minimize(zdt2(), p, WCAugmented(second_order=False), x0=x0)
    assert stays.converged
    assert torch.equal(stays.x, x0)
    leaves = minimize(zdt2(), p, WCAugmented(), x0=x0)
    assert leaves.converged
    assert float(leaves.objectives.max()) / 2 == pytest.approx(lowest_on_zdt2(p), abs=1e-6)


def test_the_sphere_of_dtlz2():
    preferences = [p for p in das_dennis(3, 6) if min(p) > 0]
    front = explore(dtlz2(), preferences, x0=torch.full((12,), 0.4, dtype=torch.float64))
    reached = (torch.tensor(preferences) * front.objectives).amax(1)
    lowest = (torch.tensor(preferences) ** -2.0).sum(1) ** -0.5  # all p_m f_m equal
    wrong = reached > 1.01 * lowest
    assert int(wrong.sum()) <= 1


@pytest.mark.parametrize("bounds", [None, (0.0, 3.0)])
def test_curvature_is_found_where_there_is_some(bounds):
    signs = torch.tensor([2.0, -1.0, 3.0, 5.0], dtype=torch.float64)
    problem = Problem(lambda z: (signs * z**2).sum().reshape(1), bounds=bounds)
    z = torch.zeros(4, dtype=torch.float64)

    def gradient_at(z, signs=signs):
        return 2 * signs * z

    bend = most_negative_curvature(problem, z, gradient_at(z), gradient_at)
    assert abs(float(bend[1])) == pytest.approx(1, abs=1e-4)
    convex = signs.abs()
    assert most_negative_curvature(problem, z, z, lambda z: 2 * convex * z) is None
    held = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64)  # a slope against the bound
    found = most_negative_curvature(problem, z, held, lambda z: gradient_at(z) + held)
    assert (found is None) is (bounds is not None)


def spheres(scale=1.0, dtype=torch.float64, constrained=True):
    centres = torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=dtype)

    def objectives(z):
        return scale * (((z - centres) ** 2).sum(1) + 0.1)

    return Problem(objectives, constraints=(lambda z: z[:1] - z[1:] - 0.2) if constrained else None)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("large", "small"), [(1e4, 1e-4), (1e3, 1e-3), (1.0, 1e-6)])
def test_variables_of_different_sizes_are_no_excuse(large: float, small: float, seed: int) -> None:
    """Where it says converged, it is at the minimum, which lies between the two targets."""
    sizes = torch.tensor([large, small], dtype=torch.float64)
    draw = torch.Generator().manual_seed(seed)
    targets = torch.randn(2, 2, generator=draw, dtype=torch.float64)
    problem = Problem(lambda z: ((z / sizes - targets) ** 2).sum(1))
    lam = torch.tensor([0.6, 0.4], dtype=torch.float64)
    found = minimize(problem, lam.tolist(), x0=sizes)
    # λ_1 d_1² = λ_2 d_2² with d_1 + d_2 = d.
    distance, (one, two) = (targets[0] - targets[1]).norm(), lam.sqrt()
    least = float((one * two * distance / (one + two)) ** 2)
    if large / small < 1e8:
        assert found.converged
    if found.converged:
        assert float((lam * found.objectives).max()) == pytest.approx(least, rel=1e-5)


@pytest.mark.parametrize("method", ["wc_augmented", "clamp"])
@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1e6])
def test_the_unit_of_the_objectives_does_not_matter(method, scale):
    constrained = method == "wc_augmented"
    options = {} if constrained else {"lr": 0.3 / scale, "mu": scale, "steps": 3000}
    x0, p = [0.0, 2.0], (0.3, 0.7)
    plain, scaled = (
        minimize(spheres(c, constrained=constrained), p, method, x0=x0, **each)
        for c, each in (
            (1.0, options | ({} if constrained else {"lr": 0.3, "mu": 1.0})),
            (scale, options),
        )
    )
    assert plain.converged
    assert scaled.converged
    np.testing.assert_allclose(scaled.x, plain.x, atol=1e-5)


@pytest.mark.parametrize("constrained", [False, True])
def test_float32_converges_by_default(constrained):
    problem = spheres(dtype=torch.float32, constrained=constrained)
    for method in ("wc_augmented",) if constrained else ("wc_augmented", "clamp"):
        found = minimize(problem, (0.3, 0.7), method, x0=torch.tensor([0.0, 2.0]))
        assert found.converged
        assert found.kkt_residual < 1e-3
    front = explore(problem, [(0.3, 0.7), (0.6, 0.4)], "wc_augmented", x0=torch.zeros(2))
    assert front.converged


def shifted(c):
    return Problem(
        lambda z: torch.stack([((z - 1) ** 2).sum(), ((z + 1) ** 2).sum()]) - c,
        constraints=lambda z: z[:1] - z[1:] - 0.2,
    )


@pytest.mark.parametrize("c", [0.0, 0.5, 3.0, 40.0])
def test_objectives_of_any_sign(c):
    """max λ_s f_s is as well defined below 0: against a fine grid along the constraint."""
    p = (0.3, 0.7)
    found = minimize(shifted(c), p, x0=[0.5, 2.0])
    assert found.converged
    t = np.linspace(-3, 3, 600_001)
    line = np.stack([t + 0.1, t - 0.1])
    values = np.stack([((line - 1) ** 2).sum(0), ((line + 1) ** 2).sum(0)]) - c
    lowest = (np.array(p)[:, None] * values).max(0).min()
    assert float((torch.tensor(p) * found.objectives).max()) == pytest.approx(lowest, abs=1e-4)


def test_an_objective_of_preference_0_is_left_out():
    found = minimize(shifted(5.0), (0.0, 1.0), x0=[0.5, 2.0])
    assert found.converged
    assert found.multipliers.tolist() == [0.0, 1.0]
    np.testing.assert_allclose(found.x, [-0.9, -1.1], atol=1e-7)


def test_explore_takes_a_whole_das_dennis_grid():
    known = test_problems.toy()
    front = explore(known.problem, das_dennis(2, 10), x0=known.x0)
    assert len(front.results) == 11
    assert front.converged
    assert all(front.nondominated)


def test_one_preference_that_fails_does_not_discard_the_others():
    asked = []

    def objectives(z):
        asked.append(z)
        value = (z[0] - 1) ** 2 + 1
        return torch.stack([value / (0.0 if len(asked) < 2 else 1.0), (z[0] + 1) ** 2 + 1])

    problem = Problem(objectives, constraints=lambda z: z[1:] - z[:1])
    with pytest.warns(FrontWarning, match=r"1 of 3 preferences are left out, such as \(0.5, 0.5\)"):
        front = explore(problem, [(0.3, 0.7), (0.5, 0.5), (0.7, 0.3)], x0=[0.0, 0.0])
    assert [p.weights for p in front.preferences] == [(0.3, 0.7), (0.7, 0.3)]
    assert front.converged


def test_many_preferences_at_one_point_are_told():
    problem = Problem(lambda z: torch.stack([z[0] ** 2 + 1, 2 * z[0] ** 2 + 3]))
    preferences = [(k / 10, 1 - k / 10) for k in range(1, 10)]
    with pytest.warns(FrontWarning, match="9 of 9 preferences end at the same point"):
        explore(problem, preferences, "wc_augmented", x0=[0.3])


def infeasible(seed):
    """Linear constraints that contradict each other, or quadratic ones without a root."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n = 2 + seed % 5
    rows, centres = normal(n + 1, n), normal(2, n)
    if seed % 2:
        constraints = lambda z: rows @ z - 1  # noqa: E731
    else:
        constraints = lambda z: (z @ z + 0.5 + 0 * rows[:, 0])[:1]  # noqa: E731
    return Problem(lambda z: ((z - centres) ** 2).sum(1) + 0.1, constraints=constraints), n


@pytest.mark.parametrize("seed", range(12))
def test_constraints_without_a_solution_are_named(seed):
    problem, n = infeasible(seed)
    found = minimize(problem, (0.4, 0.6), x0=torch.ones(n, dtype=torch.float64), steps=300)
    assert not found.converged
    assert "The constraints are not met" in found.message
    assert bool(found.x.isfinite().all())


def test_multipliers_that_explode_are_named():
    """The paper's Example 1 in small: h = z1² has no gradient where it is met."""
    problem = Problem(
        lambda z: torch.stack([(z[0] - 1) ** 2 + 1, (z[0] - 2) ** 2 + 1]),
        constraints=lambda z: z[:1] ** 2,
    )
    found = minimize(problem, (0.5, 0.5), x0=[0.5], tol=1e-5, steps=3000)
    if found.converged:
        assert "multipliers of the constraints are large" in found.message
    fine = minimize(spheres(), (0.3, 0.7), x0=[0.0, 2.0])
    assert fine.message.endswith("at most tol.")


def test_a_dense_matrix_that_rounding_has_spoiled_is_begun_anew():
    dense = DenseBFGS()
    one = torch.tensor([1.0, 0.0], dtype=torch.float64)
    dense.add(one, one)
    dense._hessian = np.array([[1.0, 2.0], [2.0, 1.0]])  # indefinite
    assert dense.solve(torch.tensor([1.0, -1.0], dtype=torch.float64)) is None
    assert dense.solve(one) is None
    dense._hessian = np.zeros((2, 2))
    assert dense.solve(one) is None
    dense._hessian = -np.eye(2)
    dense.add(one, one)
    assert dense.solve(one) is None


def test_objectives_without_a_least_value_are_told():
    problem = Problem(lambda z: torch.stack([z[0] + z[1], z[0] - z[1]]))
    found = minimize(problem, (0.5, 0.5), x0=[0.0, 0.0])
    assert not found.converged
    assert "the objectives may have no least value" in found.message
    with pytest.warns(FrontWarning) as told:
        explore(problem, 3, x0=[0.0, 0.0], steps=50)
    texts = [str(warning.message) for warning in told]
    assert [text.split(" was")[0] for text in texts[:2]] == [
        f"The least value of f{m}" for m in (1, 2)
    ]
    assert texts[2].startswith("2 of 2 points have not converged, such as that of (")


def test_points_that_have_not_converged_are_told():
    problem, x0 = zdt2(4), [0.5] * 4
    with pytest.warns(FrontWarning, match=r"2 of 2 points have not converged, .* all 2 steps"):
        front = explore(problem, [(0.4, 0.6), (0.6, 0.4)], x0=x0, steps=2)
    assert not front.converged
    front = explore(problem, [(0.4, 0.6), (0.6, 0.4)], x0=x0, shift=1e-3)  # no warning is left
    assert front.converged


def test_no_preference_that_works_is_an_error():
    problem = Problem(lambda z: torch.stack([z[0], z[0]]) / 0)
    with pytest.raises(InputError, match="Objective 0 is inf at the start point"):
        explore(problem, [(0.5, 0.5)], "wc_augmented", x0=[1.0])


def test_slopes_that_are_infinite_on_a_bound():
    """√z at 0: the first steps go there, and what is solved must not end there for it."""

    def zdt1(z):
        g = 1 + 9 * z[1:].mean()
        return torch.stack([z[0], g * (1 - (z[0] / g).sqrt())])

    front = explore(Problem(zdt1, bounds=(0.0, 1.0)), 12, x0=[0.5] * 4)
    first, second = front.objectives.T.numpy()
    assert front.converged
    np.testing.assert_allclose(second, 1 - np.sqrt(first), atol=1e-5)
    assert first.min() < 1e-3
    assert first.max() > 0.99


@pytest.mark.parametrize("first", [1.0, 0.9, 0.3])
def test_an_infinite_slope_holds_a_variable_at_its_bound(first):
    problem = Problem(
        lambda z: torch.stack([z[0].sqrt() + z[1] ** 2, (z - 1).square().sum()]), bounds=(0.0, 2.0)
    )
    weights = np.array([first, 1 - first])
    found = minimize(problem, weights, x0=[0.5, 0.5])
    assert found.converged
    a, b = np.meshgrid(np.linspace(0, 1, 1001) ** 2, np.linspace(0, 1, 1001))
    grid = np.maximum(weights[0] * (np.sqrt(a) + b**2), weights[1] * ((a - 1) ** 2 + (b - 1) ** 2))
    # The better of two local minima: in 0, and within.
    others = [minimize(problem, weights, x0=[0.5, 0.5], restarts=[[1e-6, 0.4]]), found]
    best = min(float((run.objectives.numpy() * weights).max()) for run in others)
    assert grid.min() - 2e-3 <= best <= grid.min() + 1e-8
