"""The augmented Lagrangian method against scipy, closed forms and its own symmetries."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize as scipy_minimize

from paretune.errors import InputError
from paretune.moo import (
    Problem,
    WCAugmented,
    WCPenalty,
    kkt_system,
    minimize,
    simplex_qp,
    test_problems,
)
from paretune.moo.numerics.lbfgs import LBFGS, DenseBFGS
from paretune.moo.solvers.multipliers import project_simplex

THIRDS = (1 / 3, 1 / 3, 1 / 3)
KNOWN = [
    (test_problems.toy, (0.25, 0.75)),
    (test_problems.toy, (0.75, 0.25)),
    (test_problems.toy, (0.96, 0.04)),
    (test_problems.toy, (0.01, 0.99)),
    (test_problems.sphere_arc, (0.5, 0.5)),
    (test_problems.sphere_arc, (0.7, 0.3)),
    (lambda: test_problems.sphere_arc(n=50, concave=True), (0.7, 0.3)),
    (test_problems.rank_deficient, (0.7, 0.3)),
    (test_problems.random_quadratics, THIRDS),
    (lambda: test_problems.random_quadratics(n=40, n_objectives=10, seed=1), (0.1,) * 10),
    (test_problems.fonseca_fleming, (0.3, 0.7)),
    (test_problems.zdt2_smooth, (0.3, 0.7)),
    (test_problems.sphere3, (0.2, 0.3, 0.5)),
]


def slsqp(problem, p, x0):
    """min ρ s.t. h = 0, p∘F <= ρ by SLSQP, with torch's gradients."""
    p = torch.tensor(p, dtype=torch.float64)

    def spare(v):
        return v[-1] - (p * problem.evaluate(torch.tensor(v[:-1]))).numpy()

    def equal(v):
        return problem.constrain(torch.tensor(v[:-1])).numpy()

    def slope(function, sign, last):
        def jacobian(v):
            z = torch.tensor(v[:-1])
            rows = sign * torch.autograd.functional.jacobian(function, z).numpy()
            return np.c_[rows, np.full(len(rows), last)]

        return jacobian

    start = np.r_[x0.numpy(), float((p * problem.evaluate(x0)).max())]
    constraints = [
        {
            "type": "ineq",
            "fun": spare,
            "jac": slope(lambda z: p * problem.evaluate(z), -1.0, 1.0),
        },
        {"type": "eq", "fun": equal, "jac": slope(problem.constrain, 1.0, 0.0)},
    ]
    found = scipy_minimize(
        lambda v: v[-1],
        start,
        jac=lambda v: np.eye(len(v))[-1],
        constraints=constraints,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return found.x[:-1]


@pytest.mark.parametrize("p", [(0.25, 0.75), (0.75, 0.25)])
def test_toy_agrees_with_an_independent_solver(p):
    toy = test_problems.toy()
    found = minimize(toy.problem, p, x0=toy.x0, tol=1e-7)
    np.testing.assert_allclose(found.x, slsqp(toy.problem, p, toy.x0), atol=1e-6)
    assert found.converged
    assert found.kkt_residual <= 1e-7
    assert found.n_gradient_evaluations <= 100


def wavy(seed: int) -> Problem:
    """Quadratics under ten quadratic constraints that are not positive definite."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    factors, centres = normal(3, 30, 30) / 30**0.5, normal(3, 30)
    linear, offset, bend = normal(10, 30) / 30**0.5, 0.3 * normal(10), normal(10, 30, 30) / 300
    hessians = factors @ factors.mT + 0.1 * torch.eye(30)

    def objectives(z):
        return 1 + 0.5 * torch.einsum("si,sij,sj->s", z - centres, hessians, z - centres)

    return Problem(objectives, constraints=lambda z: linear @ z - offset + (bend @ z) @ z)


@pytest.mark.parametrize("seed", range(3))
def test_thirty_variables_agree_with_an_independent_solver(seed):
    problem, x0 = wavy(seed), torch.zeros(30, dtype=torch.float64)
    found = minimize(problem, THIRDS, x0=x0, tol=1e-6)
    assert found.converged
    assert found.n_gradient_evaluations <= 240
    np.testing.assert_allclose(found.x, slsqp(problem, THIRDS, x0), atol=1e-4)


@pytest.mark.parametrize(("make", "p"), KNOWN)
def test_one_default_setting_reaches_the_known_solutions(make, p):
    known = make()
    found = minimize(known.problem, p, method="wc_augmented", x0=known.x0, tol=1e-7)
    assert found.converged
    np.testing.assert_allclose(found.objectives, known.chebyshev(p), rtol=1e-5, atol=1e-6)
    assert float(found.multipliers.sum()) == pytest.approx(1)
    assert float(found.multipliers.min()) >= 0


@pytest.mark.parametrize("number", [2, 4])
def test_eq_dtlz_ends_on_the_front(number):
    """Local minimisers along the circle are expected: the distance to the front counts."""
    known = test_problems.eq_dtlz(number)
    found = minimize(known.problem, (0.3, 0.3, 0.4), x0=known.x0, tol=1e-6)
    assert found.converged
    assert np.abs(known.front(20000) - found.objectives.numpy()).max(1).min() < 1e-3


@pytest.mark.slow
def test_far_fewer_evaluations_than_algorithm_1():
    """To ‖K‖ <= 1e-2; Algorithm 1 knows the floor in advance and gets a hundred times as many."""
    problem, x0 = wavy(2), torch.zeros(30, dtype=torch.float64)
    ours = minimize(problem, THIRDS, x0=x0, tol=1e-2)
    assert ours.converged
    penalty = 4 / 1e-2
    budget = 100 * ours.n_gradient_evaluations
    for eta in (1e-2 / penalty, 1e-1 / penalty, 3e-1 / penalty):
        method = WCPenalty(u=penalty, v=penalty, eta=eta)
        plain = minimize(problem, THIRDS, method, x0=x0, steps=budget, tol=1e-2)
        assert not plain.converged


@pytest.mark.parametrize("c", [(1.0, 10.0), (0.01, 1.0), (100.0, 3.0)])
def test_scaling_objectives_against_the_preference(c):
    """f_s c_s with preference p_s / c_s, renormalised, has the same solution."""
    toy = test_problems.toy()
    scale = torch.tensor(c, dtype=torch.float64)
    scaled = Problem(lambda z: toy.problem.evaluate(z) * scale, constraints=toy.problem.constraints)
    p = np.array([0.25, 0.75]) / np.array(c)
    found = minimize(scaled, p / p.sum(), x0=toy.x0, tol=1e-8)
    np.testing.assert_allclose(found.x, toy.solution((0.25, 0.75)), atol=1e-5)


def test_permuting_the_objectives_permutes_the_result():
    known = test_problems.random_quadratics(seed=5)
    order = [2, 0, 1]
    turned = Problem(
        lambda z: known.problem.evaluate(z)[order], constraints=known.problem.constraints
    )
    p = (0.5, 0.3, 0.2)
    here = minimize(known.problem, p, x0=known.x0, tol=1e-8)
    there = minimize(turned, [p[s] for s in order], x0=known.x0, tol=1e-8)
    np.testing.assert_allclose(there.x, here.x, atol=1e-6)
    np.testing.assert_allclose(there.multipliers, here.multipliers[order], atol=1e-6)


def test_active_bounds_against_scipy():
    """min (z1 − 2)² + 1 and its like on a box, where the solution lies on a face."""
    problem = Problem(
        lambda z: torch.stack([(z[0] - 2) ** 2 + z[1] ** 2, (z[0] - 2) ** 2 + (z[1] - 3) ** 2]) + 1,
        constraints=lambda z: (z[1] - z[2] ** 2)[None],
        bounds=(torch.tensor([-1.0, -4.0, 0.0]), torch.tensor([1.0, 4.0, 9.0])),
    )
    found = minimize(problem, (0.5, 0.5), x0=[0.0, 1.0, 2.0], tol=1e-8)
    np.testing.assert_allclose(found.x, [1.0, 1.5, math.sqrt(1.5)], atol=1e-6)
    assert found.converged
    assert found.rho == pytest.approx(0.5 * (1 + 1.5**2 + 1))


def test_shapes_dtypes_counts_and_history():
    calls = []

    def objectives(z):
        calls.append(z)
        return torch.stack([((z - 1) ** 2).sum(), ((z + 1) ** 2).sum()]) + 1

    problem = Problem(objectives, constraints=lambda z: z.sum(1) - 0.5)
    found = minimize(problem, (0.4, 0.6), x0=torch.zeros(2, 3), tol=1e-4)
    assert found.x.shape == (2, 3)
    assert found.x.dtype == torch.float32
    assert found.converged
    assert found.constraints.shape == found.constraint_multipliers.shape == (2,)
    assert found.n_function_evaluations == len(calls)
    assert found.kkt_residual == pytest.approx(math.hypot(*found.kkt_parts))
    rows = len(found.history.kkt_residual)
    assert found.history.objectives.shape == found.history.multipliers.shape == (rows, 2)
    assert found.history.feasibility.shape == (rows,)
    assert found.history.min_norm is None


def test_constraint_gradients_only_as_products():
    """Ten thousand constraints: one product for each combined gradient, and a few at the start."""
    products = []

    def vjp(z, d):
        products.append(d)
        return torch.stack([d, -d])

    target = torch.linspace(-1, 2, 10_000, dtype=torch.float64)
    problem = Problem(
        lambda z: torch.stack([((z - target) ** 2).sum(), ((z + 1) ** 2).sum()]) + 1,
        constraints=lambda z: z[0] - z[1],
        constraint_vjp=vjp,
    )
    x0 = torch.stack([target, target.cos()])
    found = minimize(problem, (0.5, 0.5), x0=x0, tol=1e-6)
    assert found.converged
    assert len(products) == found.n_gradient_evaluations - 2  # two at the start are of f alone
    certified = kkt_system(
        problem, found.x, found.rho, found.multipliers, found.constraint_multipliers, (0.5, 0.5)
    )
    assert certified.norm == pytest.approx(found.kkt_residual, rel=1e-6)


@pytest.mark.slow
def test_stops_at_rounding_with_a_sentence():
    toy = test_problems.toy()
    found = minimize(toy.problem, (0.25, 0.75), x0=toy.x0, tol=0.0, steps=5000)
    assert not found.converged
    assert found.kkt_residual < 1e-9
    assert found.message.startswith("Stopped after")


def test_no_solution_means_no_convergence():
    """h = z² + 1 has no zero: the multipliers stay finite and the residual says so."""
    problem = Problem(lambda z: (z - 1) ** 2 + 1, constraints=lambda z: z**2 + 1)
    found = minimize(problem, (1.0,), x0=[2.0], steps=300)
    assert not found.converged
    assert found.kkt_parts.feasibility >= 1
    assert bool(torch.isfinite(found.constraint_multipliers).all())


def test_simplex_projection_is_the_qp():
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 7):
        for _ in range(20):
            y = rng.normal(size=size) * rng.choice([0.1, 1.0, 100.0])
            expected = simplex_qp(np.eye(size), -2 * y).x
            np.testing.assert_allclose(project_simplex(y.tolist()), expected, atol=1e-9)


def test_lbfgs_is_the_two_loop_recursion():
    generator = torch.Generator().manual_seed(0)
    hessian = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    hessian = hessian @ hessian.T + torch.eye(8)
    fast, pairs = LBFGS(memory=4), []
    g = torch.randn(8, generator=generator, dtype=torch.float64)
    assert fast.solve(g) is None
    for _ in range(6):
        s = torch.randn(8, generator=generator, dtype=torch.float64)
        fast.add(s, hessian @ s)
        pairs = [*pairs, (s, hessian @ s)][-4:]
        for free in (None, torch.tensor([True] * 5 + [False] * 3)):
            mask = torch.ones(8) if free is None else free.double()
            kept = [(a * mask, b * mask) for a, b in pairs if (a * mask) @ (b * mask) > 0]
            q, steps = g * mask, []
            for a, b in reversed(kept):
                steps.append((a @ q) / (a @ b))
                q = q - steps[-1] * b
            q = q * (kept[-1][0] @ kept[-1][1]) / (kept[-1][1] @ kept[-1][1])
            for (a, b), step in zip(kept, reversed(steps), strict=True):
                q = q + a * (step - (b @ q) / (a @ b))
            assert torch.allclose(fast.solve(g, free), q)


def test_dense_bfgs_is_the_update_of_the_inverse():
    generator = torch.Generator().manual_seed(0)
    hessian = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    hessian = hessian @ hessian.T + torch.eye(6)
    dense, inverse = DenseBFGS(), None
    g = torch.randn(6, generator=generator, dtype=torch.float64)
    assert dense.solve(g) is None
    dense.add(g, -g)  # curved downwards: left out
    assert dense.solve(g) is None
    identity = torch.eye(6, dtype=torch.float64)
    for _ in range(9):
        s = torch.randn(6, generator=generator, dtype=torch.float64)
        y = hessian @ s
        dense.add(s, y)
        if inverse is None:
            inverse = identity * (s @ y) / (y @ y)
        left = identity - torch.outer(s, y) / (s @ y)
        inverse = left @ inverse @ left.T + torch.outer(s, s) / (s @ y)
        torch.testing.assert_close(dense.solve(g), inverse @ g)
        free = torch.tensor([True] * 4 + [False] * 2)
        part = torch.linalg.solve(torch.linalg.inv(inverse)[:4, :4], g[:4])
        torch.testing.assert_close(dense.solve(g, free), torch.cat([part, torch.zeros(2)]))


def good(z):
    return torch.stack([((z - 1) ** 2).sum(), ((z + 1) ** 2).sum()]) + 1


@pytest.mark.parametrize(
    ("changes", "p", "options", "message"),
    [
        ({}, (0.5, 0.5), {"x0": [math.nan]}, "x0 must be finite"),
        ({}, (1.5, -0.5), {}, "'f2' is -0.5"),
        ({}, (0.5, math.nan), {}, "'f2' is nan"),
        ({}, (0.2, 0.3, 0.5), {}, "2 objectives, the preference 3 weights"),
        ({"objectives": lambda z: good(z) / 0}, (0.5, 0.5), {}, "inf at the start point"),
        ({"constraints": lambda z: z.sum()}, (0.5, 0.5), {}, r"shape \(q,\), got \(\)"),
        ({"constraints": lambda z: 1.0}, (0.5, 0.5), {}, r"shape \(q,\), got float"),
        ({"constraints": lambda z: z / 0}, (0.5, 0.5), {}, "constraints are not finite at x0"),
        ({"constraints": lambda z: z.detach()}, (0.5, 0.5), {}, "constraints do not depend on z"),
        ({"constraint_vjp": lambda z, d: d.sum()}, (0.5, 0.5), {}, r"constraint_vjp\(z, d\)"),
        ({"bounds": (-1.0, 1.0)}, (0.5, 0.5), {}, r"x0\[0\] is 2, outside the bounds"),
        ({"bounds": (torch.zeros(3), 9.0)}, (0.5, 0.5), {}, "do not broadcast"),
        ({}, (0.5, 0.5), {"shift": [1.0]}, "shift has 1 values for 2"),
        ({}, (0.5, 0.5), {"shift": math.inf}, "shift must be finite"),
        ({}, (0.5, 0.5), {"lr": 0.1}, "has no lr"),
        ({}, (0.5, 0.5), {"mu": 0.1}, "has no mu"),
        ({}, (0.5, 0.5), {"method": "clamp"}, "neither constraints nor bounds"),
        ({}, (0.5, 0.5), {"method": "mgda"}, "neither constraints nor bounds"),
        ({}, (0.5, 0.5), {"method": WCAugmented(), "shift": 1.0}, "inside the method"),
    ],
)
def test_bad_input(changes, p, options, message):
    problem = Problem(**{"objectives": good, "constraints": lambda z: z - 0.5, **changes})
    with pytest.raises(InputError, match=message) as caught:
        minimize(problem, p, **{"x0": [2.0], **options})
    assert str(caught.value).count("\n") == 0


def test_bad_options():
    with pytest.raises(InputError, match="memory"):
        WCAugmented(memory=0)
    for bounds in ((1.0, -1.0), (0.0,), 3.0, (None, 1.0), ("low", 1.0), ([0.0, 1.0], [2.0] * 3)):
        with pytest.raises(InputError, match="bounds must"):
            Problem(good, bounds=bounds)
    with pytest.raises(InputError, match="needs constraints"):
        Problem(good, constraint_vjp=lambda z, d: z)


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_bounds_of_any_kind_of_array(kind):
    problem = Problem(lambda z: torch.stack([z[0], z[1]]), bounds=(kind([1, -2]), kind([3, 4])))
    assert minimize(problem, (1.0, 0.0), x0=[2.0, 3.0]).x[0] == 1
    assert minimize(problem, (0.0, 1.0), x0=[2.0, 3.0]).x[1] == -2


def test_shift_moves_the_solution_as_the_theory_says():
    """p∘(f + c): the shifted values are balanced, and objectives are reported without the shift."""
    toy = test_problems.toy()
    found = minimize(toy.problem, (0.5, 0.5), x0=toy.x0, shift=(3.0, 0.0), tol=1e-8)
    assert float(found.objectives[0]) + 3 == pytest.approx(float(found.objectives[1]), abs=1e-6)
    assert found.rho == pytest.approx(0.5 * float(found.objectives[1]), abs=1e-6)
