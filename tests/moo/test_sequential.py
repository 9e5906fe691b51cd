"""Quadratic programmes, and the steps by them from a neighbour's solution."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize as scipy_minimize

from paretune.moo import Problem, explore, minimize, test_problems
from paretune.moo.numerics.convex_qp import convex_qp
from paretune.moo.solvers import wc_augmented
from paretune.moo.solvers.journal import read_result, write_result
from paretune.moo.test_problems import KnownProblem


@pytest.mark.parametrize("seed", range(12))
def test_a_quadratic_programme_agrees_with_scipy(seed: int) -> None:
    draws = np.random.default_rng(seed)
    n, equal = int(draws.integers(2, 9)), int(draws.integers(0, 2))
    root = draws.normal(size=(n, n))
    hessian, slope = root @ root.T + 0.1 * np.eye(n), 3 * draws.normal(size=n)
    rows = np.vstack([draws.normal(size=(equal + 3, n)), -np.eye(n), np.eye(n)])
    within = draws.uniform(-0.5, 0.5, size=n)
    limits = rows @ within + np.r_[np.zeros(equal), draws.uniform(0, 1, size=len(rows) - equal)]
    found = convex_qp(hessian, slope, rows, limits, equal)
    assert found is not None
    x, duals = found
    np.testing.assert_allclose(hessian @ x + slope + rows.T @ duals, 0, atol=1e-8)
    assert duals[equal:].min() >= -1e-12
    gaps = limits - rows @ x
    assert np.abs(gaps[:equal]).max(initial=0) < 1e-9
    assert gaps[equal:].min() > -1e-9
    assert np.abs(gaps * duals).max() < 1e-8
    other = scipy_minimize(
        lambda x: x @ hessian @ x / 2 + slope @ x,
        within,
        jac=lambda x: hessian @ x + slope,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
        constraints=[
            {"type": "eq", "fun": lambda x: (limits - rows @ x)[:equal]},
            {"type": "ineq", "fun": lambda x: (limits - rows @ x)[equal:]},
        ],
    )
    np.testing.assert_allclose(x, other.x, atol=1e-5)


def test_a_quadratic_programme_that_has_no_point_or_is_not_convex() -> None:
    rows, slope = np.array([[1.0, 0.0], [-1.0, 0.0]]), np.ones(2)
    assert convex_qp(np.eye(2), slope, rows, np.array([-1.0, -1.0]), 0) is None
    assert convex_qp(np.diag([1.0, -1.0]), slope, rows, np.ones(2), 0) is None
    free = convex_qp(np.eye(2), slope, np.zeros((0, 2)), np.zeros(0), 0)
    assert free is not None
    np.testing.assert_allclose(free[0], -slope)
    same = np.array([[1.0, 0.0], [1.0, 0.0]])
    found = convex_qp(np.eye(2), slope, same, np.array([0.5, 0.5]), 2)  # dependent, but agreeing
    assert found is not None
    np.testing.assert_allclose(found[0], [0.5, -1.0], atol=1e-10)


CASES = {
    "toy": (test_problems.toy(), (0.3, 0.7), (0.35, 0.65)),
    "bnh": (test_problems.bnh(), (0.4, 0.6), (0.45, 0.55)),
    "dtlz2": (test_problems.dtlz2(), (0.3, 0.3, 0.4), (0.33, 0.29, 0.38)),
    "zdt2": (test_problems.zdt2(), (0.5, 0.5), (0.55, 0.45)),
}


@pytest.mark.parametrize("name", CASES)
def test_from_a_neighbour_the_same_point_in_a_few_evaluations(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, first, second = CASES[name]
    near = minimize(known.problem, first, x0=known.x0, tol=1e-6)
    short = minimize(known.problem, second, x0=near, tol=1e-6)
    monkeypatch.setattr(wc_augmented, "_ROWS", 0)
    long = minimize(known.problem, second, x0=near, tol=1e-6)
    assert short.converged
    assert long.converged
    torch.testing.assert_close(short.objectives, long.objectives, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(short.multipliers, long.multipliers, rtol=1e-3, atol=1e-3)
    assert short.n_function_evaluations < 0.7 * long.n_function_evaluations


def test_every_evaluation_and_gradient_is_counted() -> None:
    known = test_problems.toy()
    calls: list[str] = []

    def counted(z: torch.Tensor) -> torch.Tensor:
        calls.append("F")
        return known.problem.evaluate(z)

    def product(z: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        calls.append("h")
        return d[0] * torch.tensor([0.5, -1.0], dtype=torch.float64)

    problem = Problem(counted, constraints=known.problem.constraints, constraint_vjp=product)
    near = minimize(problem, (0.3, 0.7), x0=known.x0)
    calls.clear()
    found = minimize(problem, (0.35, 0.65), x0=near)
    assert found.converged
    assert calls.count("F") == found.n_function_evaluations
    # A row of h is a gradient of its own; so is each of the two objectives.
    assert calls.count("h") < found.n_gradient_evaluations <= 3 * calls.count("h") + 1


def test_the_hessian_of_the_lagrangian_is_kept_to_the_last_bit() -> None:
    known = test_problems.bnh()
    near = minimize(known.problem, (0.4, 0.6), x0=known.x0)
    assert near.learnt is not None
    assert near.learnt.lagrangian is None
    found = minimize(known.problem, (0.45, 0.55), x0=near)
    assert found.learnt is not None
    assert found.learnt.lagrangian is not None
    again = read_result(write_result(found), found.x)
    assert again.learnt is not None
    np.testing.assert_array_equal(again.learnt.lagrangian, found.learnt.lagrangian)
    one, other = (minimize(known.problem, (0.5, 0.5), x0=start) for start in (found, again))
    assert torch.equal(one.x, other.x)


def test_where_steps_find_nothing_the_run_goes_on_as_without() -> None:
    """A start far away, whose first steps leave where the objectives are finite."""
    problem = Problem(
        lambda z: torch.stack([torch.exp(z[0] ** 2) + z[1] ** 2, (z[0] - 2) ** 2 + z[1] ** 4]),
        bounds=(-30.0, 30.0),
    )
    near = minimize(problem, (0.5, 0.5), x0=[1.0, 1.0], tol=1e-6)
    far = replace(near, x=torch.tensor([-4.0, 20.0], dtype=torch.float64))
    found = minimize(problem, (0.6, 0.4), x0=far, tol=1e-6)
    alone = minimize(problem, (0.6, 0.4), x0=[1.0, 1.0], tol=1e-6)
    assert found.converged
    torch.testing.assert_close(found.objectives, alone.objectives, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("known", "points", "most"),
    [
        (test_problems.dtlz2(), 91, 1300),
        (test_problems.osy(), 50, 1600),
        (test_problems.tnk(), 50, 1700),
        (test_problems.eq_dtlz(2), 91, 2000),
    ],
    ids=["dtlz2", "osy", "tnk", "eq_dtlz2"],
)
def test_hard_fronts_take_a_tenth_of_an_evolutionary_algorithms_evaluations(
    known: KnownProblem, points: int, most: int
) -> None:
    front = explore(known.problem, points, x0=known.x0)
    assert front.converged
    assert len(front.results) == points
    assert front.n_function_evaluations <= most
