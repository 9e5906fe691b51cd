"""The constrained test problems: printed answers, and an independent solver."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize as scipy_minimize

from paretune.errors import InputError
from paretune.moo import best_multipliers, kkt_system, minimize, test_problems
from paretune.moo.indicators import hypervolume

PAIRS = {
    "toy": test_problems.toy,
    "sphere": test_problems.sphere_arc,
    "concave sphere": lambda: test_problems.sphere_arc(5, 1.2, 2.0, concave=True),
    "rank deficient": test_problems.rank_deficient,
}
EQ_DTLZ = [
    *[(number, 1, False) for number in (1, 2, 3, 4)],
    *[(1, 1, True), (2, 1, True), (2, 2, False), (2, 2, True)],
]


def slsqp(known, p, start, rows=None, bounds=None):
    """An independent answer: SLSQP on min ρ s.t. h = 0, p∘F <= ρ, from the given z.

    `rows` picks constraints, as SLSQP needs independent ones.
    """
    problem, p = known.problem, np.array(p)

    def part(function, v):
        return function(torch.tensor(v[:-1])).numpy()

    def slope(function, v):
        jacobian = torch.autograd.functional.jacobian(function, torch.tensor(v[:-1])).numpy()
        return np.c_[jacobian, np.zeros(len(jacobian))]

    def chosen(z):
        return problem.constraints(z)[rows] if rows is not None else problem.constraints(z)

    pieces = [
        {"type": "eq", "fun": lambda v: part(chosen, v), "jac": lambda v: slope(chosen, v)},
        {
            "type": "ineq",
            "fun": lambda v: v[-1] - p * part(problem.evaluate, v),
            "jac": lambda v: -p[:, None] * slope(problem.evaluate, v) + np.eye(len(v))[-1],
        },
    ]
    bounds = bounds or [(None, None)] * len(start)
    first = np.r_[start, float((p * problem.evaluate(torch.tensor(start)).numpy()).max())]
    found = scipy_minimize(
        lambda v: v[-1],
        first,
        jac=lambda v: np.eye(len(v))[-1],
        bounds=[*bounds, (None, None)],
        constraints=pieces,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 150},
    )
    return found.x[:-1], float(np.abs(part(problem.constraints, found.x)).max())


@pytest.mark.parametrize(
    ("make", "p", "z", "values"),
    [
        ("toy", (0.25, 0.75), (1.73701611, 0.76850806), (5.37964351, 1.79321450)),
        ("toy", (0.75, 0.25), (1.07984526, 0.43992263), (1.94019346, 5.82058039)),
        ("toy", (0.5, 0.5), (1.4, 0.6), (3.4, 3.4)),
        ("toy", (0.9, 0.1), (0.79037607, 0.29518803), (0.97323823, 8.75914407)),
        ("toy", (0.96, 0.04), (0.57665842, 0.18832921), (0.47440650, 11.38575604)),
        ("toy", (0.1, 0.9), (2.12941176, 0.96470588), (8.25702422, 1.13882353)),
        ("toy", (0.01, 0.99), (2.12941176, 0.96470588), (8.25702422, 1.13882353)),
        ("sphere", (0.5, 0.5), (np.cos(0.6), np.sin(0.6), 0.0), (0.77399316, 0.77399316)),
        (
            "sphere",
            (0.7, 0.3),
            (np.cos(0.404903898), np.sin(0.404903898), 0.0),
            (0.49257922, 1.14935152),
        ),
        ("rank deficient", (0.5, 0.5), (0.25, -0.5, 0.75), (3.475, 3.475)),
        ("rank deficient", (0.7, 0.3), None, (2.08968535, 4.87593249)),
        ("rank deficient", (0.3, 0.7), None, (5.45689088, 2.33866752)),
    ],
)
def test_printed_answers(make, p, z, values):
    known = PAIRS[make]()
    np.testing.assert_allclose(known.chebyshev(p), values, atol=1e-8)
    if z is not None:
        np.testing.assert_allclose(known.solution(p), z, atol=1e-8)


@pytest.mark.parametrize("p1", [0.04, 0.25, 0.5, 0.7, 0.96])
@pytest.mark.parametrize("make", PAIRS)
def test_pairs_against_slsqp(make, p1):
    known, p = PAIRS[make](), (p1, 1 - p1)
    found, violation = slsqp(
        known, p, known.x0.numpy(), rows=[0] if make == "rank deficient" else None
    )
    assert violation < 1e-10
    np.testing.assert_allclose(found, known.solution(p), atol=2e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("n", "n_objectives", "n_constraints"), [(30, 3, 10), (8, 4, 2)])
def test_random_quadratics_against_slsqp(n, n_objectives, n_constraints, seed):
    known = test_problems.random_quadratics(n, n_objectives, n_constraints, seed)
    p = (1 / n_objectives,) * n_objectives
    found, violation = slsqp(known, p, known.x0.numpy())
    assert violation < 1e-8
    np.testing.assert_allclose(found, known.solution(p), atol=1e-5)


def test_random_quadratics_solution_is_global():
    """No feasible point found by SLSQP from anywhere has a lower max p∘F."""
    p = (0.2, 0.3, 0.5)
    known = test_problems.random_quadratics(6, 3, 2, seed=4, preference=p)
    best = float((known.chebyshev(p) * p).max())
    np.testing.assert_allclose(known.chebyshev(p) * p, best)
    generator = np.random.default_rng(0)
    for _ in range(10):
        found, violation = slsqp(known, p, generator.normal(size=6) * 5)
        reached = float((known.problem.evaluate(torch.tensor(found)).numpy() * p).max())
        assert violation > 1e-6 or reached > best - 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(("number", "constraints", "inverted"), EQ_DTLZ)
def test_eq_dtlz_against_slsqp_from_many_starts(number, constraints, inverted):
    """SLSQP ends in local minimisers; the best of several starts is the stated solution.

    It is kept in the valley of d = 1/2, one of very many in DTLZ1 and DTLZ3.
    """
    known = test_problems.eq_dtlz(number, constraints, inverted)
    size, generator = known.n_objectives, np.random.default_rng(0)
    n_distance = len(known.x0) - size + 1
    starts = np.full((5, len(known.x0)), 0.5)
    starts[:, : size - 1] = generator.uniform(0.2, 0.8, (5, size - 1))
    starts[:, size - 1 :] += generator.uniform(-0.02, 0.02, (5, n_distance))
    valley = [(0.0, 1.0)] * (size - 1) + [(0.45, 0.55)] * n_distance
    p = tuple(np.arange(1, size + 1) / (size * (size + 1) / 2))
    best = float((known.chebyshev(p) * p).max())
    reached = []
    for start in starts:
        found, violation = slsqp(known, p, start, bounds=valley)
        if violation < 1e-8:
            reached.append(float((known.problem.evaluate(torch.tensor(found)).numpy() * p).max()))
    assert min(reached) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("constraints", [1, 2])
def test_eq_dtlz_front(number, constraints):
    """On the simplex or the unit sphere, positive, and mutually non-dominated."""
    front = test_problems.eq_dtlz(number, constraints).front(60)
    total = front.sum(1) if number == 1 else (front**2).sum(1)
    np.testing.assert_allclose(total, 0.5 if number == 1 else 1.0)
    assert front.min() >= 0
    if number != 4:  # its front all but shrinks to a point
        assert not (front[:, None] >= front[None] + 1e-9).all(-1).any()


@pytest.mark.parametrize(
    "make", [*PAIRS.values(), test_problems.eq_dtlz, lambda: test_problems.eq_dtlz(2, 2, True)]
)
def test_every_front_point_is_the_solution_of_its_own_preference(make):
    """For p ∝ 1/F a Pareto optimal point is the only minimiser of max p∘F, and it is feasible."""
    known = make()
    front = known.front(12)
    assert front.shape[1] == known.n_objectives
    for point in front:
        p = tuple(1 / point / (1 / point).sum())
        np.testing.assert_allclose(known.chebyshev(p), point, atol=1e-6)
        violation = known.problem.constraints(torch.tensor(known.solution(p)))
        assert float(violation.abs().max()) < 1e-12


CONSTRAINED = {
    **PAIRS,
    "quadratics": lambda: test_problems.random_quadratics(30, 3, 10),
    **{f"eq_dtlz {case}": lambda case=case: test_problems.eq_dtlz(*case) for case in EQ_DTLZ},
}


# The rank-deficient problem warns, as it should.
@pytest.mark.filterwarnings("ignore::paretune.moo.numerics.kkt.DegenerateConstraintsWarning")
@pytest.mark.parametrize("make", CONSTRAINED)
def test_kkt_system_is_zero_at_every_known_solution(make):
    known = CONSTRAINED[make]()
    size = known.n_objectives
    for p in [(1 / size,) * size, tuple(np.arange(1, size + 1) / (size * (size + 1) / 2))]:
        if make == "quadratics" and p[0] != p[-1]:
            continue  # its solution is known for the uniform preference alone
        z = known.solution(p)
        system = kkt_system(known.problem, z, *best_multipliers(known.problem, z, p), p)
        assert system.norm < 1e-6


@pytest.mark.parametrize(
    ("p", "omega", "nu"),
    [
        ((0.25, 0.75), (0.60444583, 0.39555417), 0.19836032),
        ((0.75, 0.25), (0.43140952, 0.56859048), 0.69519830),
    ],
)
def test_printed_multipliers_of_the_toy(p, omega, nu):
    known = test_problems.toy()
    found = best_multipliers(known.problem, known.solution(p), p)
    np.testing.assert_allclose(found.omega, omega, atol=1e-8)
    np.testing.assert_allclose(found.nu.abs(), [nu], atol=1e-8)


@pytest.mark.parametrize("p1", [0.3, 0.7, 0.9])
def test_dd1_two_solvers_agree(p1):
    """Nothing is known about it; SLSQP and wc_augmented at least end in the same point."""
    known, p = test_problems.dd1(), (p1, 1 - p1)
    side = float(known.problem.bounds[1])
    expected, violation = slsqp(known, p, known.x0.numpy(), bounds=[(-side, side)] * 5)
    found = minimize(known.problem, p, x0=known.x0, tol=1e-7)
    assert violation < 1e-8
    assert found.converged
    np.testing.assert_allclose(found.x, expected, atol=1e-4)


@pytest.mark.parametrize("make", [*PAIRS.values(), test_problems.dd1])
def test_given_derivatives_are_those_of_the_functions(make):
    problem, z = make().problem, make().x0
    gradients = torch.autograd.functional.jacobian(problem.evaluate, z)
    torch.testing.assert_close(problem.jacobian(z), gradients)
    rows = torch.autograd.functional.jacobian(problem.constraints, z)
    d = torch.arange(1.0, len(rows) + 1, dtype=torch.float64)
    torch.testing.assert_close(problem.constraint_vjp(z, d), d @ rows)


def test_exact_hypervolume_of_the_toy():
    front = test_problems.toy().front(20_000)
    assert hypervolume(front, (10.0, 20.0)).value == pytest.approx(164.204840, abs=2e-2)


def test_concave_front_lies_beyond_its_chord():
    front = test_problems.sphere_arc(3, 1.2, 2.0, concave=True).front(21)
    line = np.interp(front[:, 0], front[[0, -1], 0], front[[0, -1], 1])
    assert (front[1:-1, 1] > line[1:-1]).all()


def test_constraint_jacobian_of_the_rank_deficient_problem_has_rank_one():
    known = test_problems.rank_deficient()
    jacobian = torch.autograd.functional.jacobian(known.problem.constraints, known.x0)
    assert jacobian.shape == (2, 3)
    assert int(torch.linalg.matrix_rank(jacobian)) == 1


def test_dd1_is_positive_and_its_answers_are_said_to_be_unknown():
    known = test_problems.dd1()
    assert float(known.problem.evaluate(known.x0).min()) > 0
    with pytest.raises(InputError, match="front"):
        known.front(3)
    with pytest.raises(InputError, match="not known"):
        known.chebyshev((0.5, 0.5))


def test_bad_input():
    with pytest.raises(InputError, match="2 positive weights"):
        test_problems.toy().chebyshev((1.0, 0.0))
    with pytest.raises(InputError, match="for the preference"):
        test_problems.random_quadratics(6, 2, 1).chebyshev((0.3, 0.7))
    with pytest.raises(InputError, match="n_constraints < n"):
        test_problems.random_quadratics(6, 2, 6)
    with pytest.raises(InputError, match="radius"):
        test_problems.sphere_arc(radius=1.0)
    with pytest.raises(InputError, match="number"):
        test_problems.eq_dtlz(3, inverted=True)
