"""The KKT system, and the multipliers that certify a point."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize as scipy_minimize

import paretune.moo.numerics.kkt as kkt
from paretune.errors import InputError
from paretune.moo import (
    AffineConstraints,
    DegenerateConstraintsWarning,
    Problem,
    best_multipliers,
    kkt_system,
    minimize,
    test_problems,
)
from paretune.moo.numerics.kkt import best_rho

KNOWN = [
    (test_problems.toy, (0.25, 0.75)),
    (test_problems.toy, (0.75, 0.25)),
    (test_problems.toy, (0.1, 0.9)),  # only the second objective is active
    (test_problems.sphere_arc, (0.7, 0.3)),
    (test_problems.fonseca_fleming, (0.4, 0.6)),
    (test_problems.sphere3, (0.2, 0.3, 0.5)),
    (test_problems.random_quadratics, (1 / 3, 1 / 3, 1 / 3)),
]


def test_toy_multipliers_in_closed_form():
    """ω* and ν* of the toy, from its 3 x 3 linear system by hand."""
    toy = test_problems.toy()
    for p, omega, nu, rho in [
        ((0.25, 0.75), (0.60444583, 0.39555417), 0.19836032, 1.34491088),
        ((0.75, 0.25), (0.43140952, 0.56859048), 0.69519830, 1.45514510),
    ]:
        x = toy.solution(p)
        assert kkt_system(toy.problem, x, rho, omega, [nu], p).norm < 1e-6
        found = best_multipliers(toy.problem, x, p)
        np.testing.assert_allclose(found.omega, omega, atol=1e-7)
        np.testing.assert_allclose(found.nu, nu, atol=1e-7)
        assert found.rho == pytest.approx(rho, abs=1e-7)


@pytest.mark.parametrize(("make", "p"), KNOWN)
def test_known_solutions_are_certified(make, p):
    known = make()
    x = known.solution(p)
    system = kkt_system(known.problem, x, *best_multipliers(known.problem, x, p), p)
    assert system.norm < 1e-6
    assert system.norm == pytest.approx(math.hypot(*system.parts))


def test_rank_deficient_solution_is_certified_with_a_warning():
    known = test_problems.rank_deficient()
    x = known.solution((0.7, 0.3))
    with pytest.warns(DegenerateConstraintsWarning, match="2 constraint gradients"):
        found = best_multipliers(known.problem, x, (0.7, 0.3))
    assert kkt_system(known.problem, x, *found, (0.7, 0.3)).norm < 1e-6
    assert float(found.nu[0]) == pytest.approx(float(found.nu[1]))  # least norm


def residual(problem, x, p, variables):
    size = len(p)
    return kkt_system(
        problem, x, variables[0], variables[1 : 1 + size], variables[1 + size :], p
    ).norm


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_no_other_multipliers_do_better(seed):
    """Nelder-Mead from the answer and from random starts, at a point that is no solution."""
    rng = np.random.default_rng(seed)
    known = test_problems.random_quadratics(n=6, n_objectives=2, n_constraints=1, seed=seed)
    p = (0.5, 0.5)
    x = torch.tensor(known.solution(p)) + 0.2 * torch.tensor(rng.normal(size=6))
    rho, omega, nu = best_multipliers(known.problem, x, p)
    ours = kkt_system(known.problem, x, rho, omega, nu, p).norm
    best = np.r_[rho, omega, nu]
    for start in (best, best + 0.3 * rng.normal(size=4), best + rng.normal(size=4)):
        found = scipy_minimize(
            lambda v: residual(known.problem, x, p, v),
            start,
            method="Nelder-Mead",
            options={"xatol": 1e-8, "fatol": 1e-10, "maxiter": 4000},
        )
        assert ours <= found.fun * (1 + 0.02)


def test_best_rho_against_a_grid():
    rng = np.random.default_rng(0)
    for _ in range(50):
        values, omega = rng.normal(size=4), rng.dirichlet(np.ones(4)) * rng.integers(0, 2, 4)
        grid = np.linspace(values.min() - 2, values.max() + 2, 4001)
        totals = (np.minimum(omega, grid[:, None] - values) ** 2).sum(1)
        rho = best_rho(values.tolist(), omega.tolist())
        assert (np.minimum(omega, rho - values) ** 2).sum() <= totals.min() + 1e-12


def first_counterexample() -> Problem:
    """f shifted by 5 to be positive; feasible for -1 <= z <= 1."""

    def constraints(z):
        return torch.relu(z.abs() - 1) ** 2

    return Problem(
        lambda z: torch.cat([-0.5 * z**2, -z]) + 5,
        constraints=constraints,
    )


def second_counterexample() -> Problem:
    return Problem(
        lambda z: torch.stack([z[0] + z[1], z[0] - z[1]]) + 5,
        constraints=lambda z: torch.stack([z[0] ** 2 + z[2] ** 2 - 1, z[2] - 1]),
    )


@pytest.mark.parametrize(
    ("problem", "x"),
    [(first_counterexample(), [1.0]), (second_counterexample(), [0.0, 0.0, 1.0])],
)
def test_counterexamples_are_optimal_but_not_kkt(problem, x):
    """Pareto-stationary points without multipliers: ∇h loses rank there, which is said."""
    p = (0.5, 0.5)
    with pytest.warns(DegenerateConstraintsWarning, match="LICQ fails"):
        found = best_multipliers(problem, x, p)
    system = kkt_system(problem, x, *found, p)
    assert system.parts.feasibility == 0
    # ∇F ω has first component -p (or p) whatever ω on the simplex, and ∇h ν cannot cancel it:
    # the best multiple t of it has (t − 1)² + (p t)² = p² / (1 + p²).
    assert system.norm == pytest.approx(0.5 / math.sqrt(1.25), rel=0.02)


@pytest.mark.parametrize(
    ("problem", "x0", "x"),
    [
        (first_counterexample(), [0.3], [1.0]),
        (second_counterexample(), [0.5, 0.7, 0.2], [0.0, 0.0, 1.0]),
    ],
)
def test_counterexamples_are_approached_with_growing_multipliers(problem, x0, x):
    """‖K‖ can be made small near such a point, but only with ν like 1 / √‖K‖."""
    sizes = []
    for tol in (1e-3, 1e-5):
        found = minimize(problem, (0.5, 0.5), x0=x0, tol=tol, shift=20.0)
        assert found.converged
        np.testing.assert_allclose(found.x, x, atol=2 * math.sqrt(tol))
        sizes.append(float(found.constraint_multipliers.norm()))
    assert sizes[1] > 3 * sizes[0]


def test_licq_in_rho_z_space():
    """Two active objectives with equal gradients: ω is not unique, which is said."""
    problem = Problem(
        lambda z: torch.stack([z[0], z[0]]) + 2, constraints=lambda z: (z[0] + z[1])[None]
    )
    with pytest.warns(DegenerateConstraintsWarning, match=r"\(ρ, z\)-space"):
        best_multipliers(problem, [0.0, 0.0], (0.5, 0.5))


def test_a_kkt_point_is_dependent_in_z_space_and_no_reason_to_warn(recwarn):
    """Three gradients in R²: the paper's LICQ fails at every solution of the toy."""
    toy = test_problems.toy()
    best_multipliers(toy.problem, toy.solution((0.25, 0.75)), (0.25, 0.75))
    assert not recwarn.list


def test_bounds_hold_back_the_gradient():
    problem = Problem(lambda z: ((z - 2) ** 2).sum()[None], bounds=(-1.0, 1.0))
    x = torch.tensor([1.0, 1.0])
    found = best_multipliers(problem, x, (1.0,))
    assert kkt_system(problem, x, *found, (1.0,)).norm < 1e-12
    inside = torch.tensor([1.0, 0.5])
    assert kkt_system(problem, inside, *found, (1.0,)).norm > 0.1


def test_products_alone_give_the_same_multipliers(monkeypatch):
    known = test_problems.random_quadratics(seed=3)
    p = (1 / 3, 1 / 3, 1 / 3)
    x = torch.tensor(known.solution(p)) + 0.01
    dense = best_multipliers(known.problem, x, p)
    monkeypatch.setattr(kkt, "_DENSE_ENTRIES", 0)
    products = best_multipliers(known.problem, x, p)
    np.testing.assert_allclose(products.omega, dense.omega, atol=1e-8)
    np.testing.assert_allclose(products.nu, dense.nu, atol=1e-8)


def test_any_shape_of_z():
    flat = test_problems.random_quadratics(n=6, n_objectives=2, n_constraints=2)
    shaped = Problem(
        lambda z: flat.problem.evaluate(z.flatten()),
        constraints=lambda z: flat.problem.constrain(z.flatten()),
    )
    p = (0.5, 0.5)
    here = kkt_system(flat.problem, flat.x0, 1.0, p, [0.1, 0.2], p)
    there = kkt_system(shaped, flat.x0.reshape(2, 3), 1.0, p, [0.1, 0.2], p)
    assert torch.allclose(here.stationarity, there.stationarity)


@pytest.mark.parametrize(
    ("omega", "nu", "p", "message"),
    [
        ([0.5], [0.0], (0.5, 0.5), "omega and nu must have shapes"),
        ([0.5, 0.5], None, (0.5, 0.5), "omega and nu must have shapes"),
        ([0.5, 0.5], [0.0], (1.0, 0.0), "'f2' is 0"),
        ([0.5, 0.5], [0.0], (0.2, 0.3, 0.5), "2 objectives, the preference 3"),
        ([0.5, 0.5], [0.0], (1.5, -0.5), "'f2' is -0.5"),
    ],
)
def test_bad_input(omega, nu, p, message):
    toy = test_problems.toy()
    with pytest.raises(InputError, match=message):
        kkt_system(toy.problem, toy.x0, 1.0, omega, nu, p)


def test_given_products_and_their_transpose():
    """constraint_vjp instead of autograd; its transpose comes from a difference of h."""
    A = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    objectives = Problem(lambda z: (z**2).sum()[None] + 1)
    automatic = Problem(objectives.objectives, constraints=AffineConstraints(A, [1.0, 2.0, 3.0]))
    given = Problem(
        objectives.objectives,
        constraints=AffineConstraints(A, [1.0, 2.0, 3.0]),
        constraint_vjp=lambda z, d: d @ A,
    )
    z = torch.linspace(-1, 1, 5, dtype=torch.float64)
    d, m = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), z.cos()
    for problem in (automatic, given):
        assert torch.allclose(problem.at(z).vjp(d), d @ A)
        assert torch.allclose(problem.at(z).jvp(m), A @ m)
