"""Inequalities g(z) <= 0 against scipy's SLSQP and by hand."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize as scipy_minimize
from scipy.optimize import nnls

from paretune.errors import InputError
from paretune.moo import Problem, best_multipliers, explore, kkt_system, minimize
from paretune.moo.indicators import nondominated
from paretune.moo.numerics.nnls import nonnegative_least_squares

CENTRES = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)


def pair(**limits):
    return Problem(lambda z: ((z - CENTRES) ** 2).sum(1) + 0.1, **limits)


def bnh():
    """Binh and Korn's problem: two circles, the first to stay in and the second to stay out of."""
    return Problem(
        lambda z: torch.stack([4 * z @ z, ((z - 5) ** 2).sum()]),
        inequalities=lambda z: torch.stack(
            [
                ((z[0] - 5) ** 2 + z[1] ** 2) / 25 - 1,
                1 - ((z[0] - 8) ** 2 + (z[1] + 3) ** 2) / 7.7,
            ]
        ),
        bounds=(torch.tensor([0.0, 0.0]), torch.tensor([5.0, 3.0])),
    )


def tnk():
    """Tanaka's problem: f = z, the feasible set with a wavy edge and holes."""

    def inequalities(z):
        wave = 0.1 * torch.cos(16 * torch.atan2(z[0], z[1]))
        return torch.stack([1 + wave - z @ z, ((z - 0.5) ** 2).sum() - 0.5])

    return Problem(lambda z: z * 1.0, inequalities=inequalities, bounds=(1e-6, torch.pi))


def osy():
    """Osyczka and Kundu's problem: f1 is between −274 and 0, six inequalities."""

    def objectives(z):
        first = -(25 * (z[0] - 2) ** 2 + (z[1] - 2) ** 2 + (z[2] - 1) ** 2)
        return torch.stack([first - (z[3] - 4) ** 2 - (z[4] - 1) ** 2, z @ z])

    def inequalities(z):
        return -torch.stack(
            [
                (z[0] + z[1] - 2) / 2,
                (6 - z[0] - z[1]) / 6,
                (2 - z[1] + z[0]) / 2,
                (2 - z[0] + 3 * z[1]) / 2,
                (4 - (z[2] - 3) ** 2 - z[3]) / 4,
                ((z[4] - 3) ** 2 + z[5] - 4) / 4,
            ]
        )

    lower = torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    upper = torch.tensor([10.0, 10.0, 5.0, 6.0, 5.0, 10.0])
    return Problem(objectives, inequalities=inequalities, bounds=(lower, upper))


def slsqp(problem, p, x0):
    """The least max p_s f_s that SLSQP finds."""
    p = torch.tensor(p, dtype=torch.float64)

    def values(function, sign):
        return lambda v: sign * function(torch.tensor(v[:-1])).numpy()

    bounds = None
    if problem.bounds is not None:
        bounds = [
            *zip(
                *(torch.as_tensor(b).expand(len(x0)).tolist() for b in problem.bounds), strict=True
            ),
            (None, None),
        ]
    found = scipy_minimize(
        lambda v: v[-1],
        np.r_[x0.numpy(), float((p * problem.evaluate(x0)).max())],
        constraints=[
            {
                "type": "ineq",
                "fun": lambda v: v[-1] - (p * problem.evaluate(torch.tensor(v[:-1]))).numpy(),
            },
            {"type": "ineq", "fun": values(problem.exceed, -1)},
            {"type": "eq", "fun": values(problem.constrain, 1)},
        ],
        bounds=bounds,
        method="SLSQP",
        options={"ftol": 1e-13, "maxiter": 500},
    )
    return found.fun


def test_an_inactive_inequality_changes_nothing():
    free = minimize(pair(), (0.5, 0.5), x0=[3.0, 3.0])
    found = minimize(pair(inequalities=lambda z: z[:1] - 50), (0.5, 0.5), x0=[3.0, 3.0])
    assert found.converged
    np.testing.assert_allclose(found.x, free.x, atol=1e-7)
    assert found.inequality_multipliers.tolist() == pytest.approx([0.0])
    assert found.inequalities[0] < 0


def test_an_active_inequality_is_an_equality():
    """z1 + z2 <= 1, where the centres lie beyond: on the line by hand and by `constraints`."""
    edge = pair(constraints=lambda z: z.sum().reshape(1) - 1)
    side = pair(inequalities=lambda z: z.sum().reshape(1) - 1)
    for p in ((0.5, 0.5), (0.8, 0.2)):
        on = minimize(edge, p, x0=[3.0, 3.0])
        found = minimize(side, p, x0=[3.0, 3.0])
        assert found.converged
        np.testing.assert_allclose(found.x, on.x, atol=1e-7)
        np.testing.assert_allclose(
            found.inequality_multipliers, on.constraint_multipliers, atol=1e-6
        )
        assert float(found.inequality_multipliers.min()) > 0
        assert found.kkt_residual <= 1e-8


def test_a_degenerate_inequality():
    """Active where its multiplier is 0: the free solution lies on it."""
    free = minimize(pair(), (0.5, 0.5), x0=[3.0, 3.0])
    level = float(free.x[0])
    found = minimize(
        pair(inequalities=lambda z: z[:1] - level), (0.5, 0.5), x0=[3.0, 3.0], tol=1e-7
    )
    assert found.converged
    np.testing.assert_allclose(found.x, free.x, atol=1e-4)
    assert float(found.inequality_multipliers) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_random_problems_agree_with_an_independent_solver(seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n, size = 2 + seed, 2 + seed % 3
    centres, rows, bends = normal(size, n), normal(3, n), normal(2, n)
    problem = Problem(
        lambda z: ((z - centres) ** 2).sum(1) + 0.1,
        constraints=lambda z: bends[:1] @ z - 0.1,
        inequalities=lambda z: torch.cat([rows @ z - 0.3, (z @ z - 4).reshape(1)]),
    )
    p, x0 = [1 / size] * size, torch.zeros(n, dtype=torch.float64)
    found = minimize(problem, p, x0=x0, tol=1e-7)
    assert found.converged
    assert float((torch.tensor(p) * found.objectives).max()) == pytest.approx(
        slsqp(problem, p, x0), abs=1e-6
    )
    multipliers = best_multipliers(problem, found.x, p)
    assert kkt_system(problem, found.x, *multipliers, p).norm < 1e-5
    own = torch.cat([found.constraint_multipliers, found.inequality_multipliers])
    certified = kkt_system(problem, found.x, found.rho, found.multipliers, own, p)
    assert certified.norm == pytest.approx(found.kkt_residual, rel=1e-6, abs=1e-12)
    assert certified.parts == pytest.approx(found.kkt_parts, abs=1e-12)


def test_bnh_agrees_with_an_independent_solver():
    x0 = torch.tensor([1.0, 1.0], dtype=torch.float64)
    preferences = [(k / 10, 1 - k / 10) for k in range(1, 10)]
    front = explore(bnh(), preferences, x0=x0)
    assert front.converged
    assert all(float(result.inequalities.max()) < 1e-5 for result in front.results)
    for p, values in zip(preferences, front.objectives, strict=True):
        level = float((torch.tensor(p) * values).max())
        assert level == pytest.approx(slsqp(bnh(), p, x0), rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_tnk_ends_without_an_exception():
    front = explore(
        tnk(),
        [(k / 8, 1 - k / 8) for k in range(1, 8)],
        x0=torch.tensor([0.6, 0.9], dtype=torch.float64),
    )
    feasible = [float(result.inequalities.max()) < 1e-4 for result in front.results]
    assert sum(feasible) >= 6
    assert front.hypervolume((1.2, 1.2)).value > 0.2


def test_osy_below_zero():
    x0 = torch.tensor([2.0, 2.0, 2.0, 2.0, 2.0, 2.0], dtype=torch.float64)
    front = explore(osy(), [(0.1, 0.9), (0.3, 0.7)], x0=x0, shift=(274.0, 0.0))
    assert front.converged
    assert all(float(result.inequalities.max()) < 1e-4 for result in front.results)
    assert float(front.objectives[:, 0].max()) < 0


def test_the_least_squares_are_scipys():
    rng = np.random.default_rng(0)
    for _ in range(40):
        A, b = rng.normal(size=(6, 4)), rng.normal(size=6)
        np.testing.assert_allclose(nonnegative_least_squares(A, b), nnls(A, b)[0], atol=1e-9)
    twice = np.repeat(rng.normal(size=(5, 2)), 2, axis=1)
    b = rng.normal(size=5)
    expected = np.linalg.norm(twice @ nnls(twice, b)[0] - b)
    assert np.linalg.norm(twice @ nonnegative_least_squares(twice, b) - b) == pytest.approx(
        expected
    )


@pytest.mark.parametrize("method", ["clamp", "mgda", "linear", "wc_penalty"])
def test_other_methods_refuse_them(method):
    with pytest.raises(InputError, match="handles no inequalities; use method='wc_augmented'"):
        minimize(pair(inequalities=lambda z: z[:1]), (0.5, 0.5), method, x0=[1.0, 1.0])


@pytest.mark.parametrize(
    ("inequalities", "message"),
    [
        (lambda z: z.sum(), r"inequalities\(z\) must be a tensor of shape \(r,\), got \(\)"),
        (lambda z: z.detach(), "inequalities do not depend on z"),
        (lambda z: z / 0, "inequalities are not finite at x0"),
    ],
)
def test_bad_inequalities(inequalities, message):
    with pytest.raises(InputError, match=message):
        minimize(pair(inequalities=inequalities), (0.5, 0.5), x0=[1.0, 1.0])


def test_an_equality_as_two_inequalities():
    """The slopes of g and −g cancel in their sum, which says nothing of their size."""

    def objectives(z):
        return torch.stack([(z - 1).square().sum(), (z + 1).square().sum() + z[0]])

    def circle(z):
        return z.square().sum().reshape(1) - 1

    problem = Problem(objectives, inequalities=lambda z: torch.cat([circle(z), -circle(z)]))
    angles = torch.linspace(0, 2 * np.pi, 20001, dtype=torch.float64)
    whole = torch.stack([objectives(z) for z in torch.stack([angles.cos(), angles.sin()], 1)])
    exact = whole[nondominated(whole.numpy())]
    for x0 in ([0.6, 0.8], [0.3, 0.8]):  # on the circle, and off it
        front = explore(problem, 8, x0=x0)
        assert front.converged
        assert len(front.results) == 8
        assert float(torch.cdist(front.objectives, exact).amin(1).max()) < 1e-3
        torch.testing.assert_close(front.objectives.amin(0), exact.amin(0), atol=1e-3, rtol=0)
