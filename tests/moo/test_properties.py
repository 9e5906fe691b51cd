"""Properties that every weighting and every bilevel method must have.

A new weighting is a line in WEIGHTINGS, a new bilevel method one in METHODS.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

import paretune.moo.bilevel as bilevel
import paretune.moo.weightings as weightings
from paretune.errors import InputError
from paretune.moo import (
    MGDA,
    RACO,
    BilevelProblem,
    Clamp,
    Linear,
    StochasticBilevelProblem,
    WCAugmented,
    WCPenalty,
    minimize,
    polish_lower,
)
from paretune.moo.bilevel import (
    FORUM,
    GMOBA,
    ITD,
    MOML,
    SOBA,
    WCSOBA,
    Lookahead,
    MoCo,
    StochasticWCAugmented,
)
from paretune.moo.bilevel.choice import choose_bilevel
from paretune.moo.test_problems.bilevel import quadratic_bilevel

# --- Weightings -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weighing:
    """A weighting under test.

    Attributes:
        weighting: with its options.
        twins: the preferences of two copies of an objective that change nothing: "each" copy the
            objective's own, or a "half" of it; None where a copy does count.
        descends: the d_m for which its direction is a descent direction of all d_m f_m: "f",
            "pf", or None for none in general.
    """

    weighting: Any
    twins: str | None
    descends: str | None = None


WEIGHTINGS = [
    Weighing(Clamp(mu=0.0), twins="each", descends="pf"),
    Weighing(Clamp(mu=1.0), twins="each"),
    Weighing(Clamp(mu=100.0), twins="each"),
    Weighing(MGDA(), twins="each", descends="f"),
    Weighing(Linear(), twins="half"),
    Weighing(RACO(), twins=None),  # each q_m is clipped by itself
    Weighing(RACO(clip=False), twins="half"),
]
every_weighting = pytest.mark.parametrize(
    "case", WEIGHTINGS, ids=[repr(case.weighting) for case in WEIGHTINGS]
)


def sample(size, seed=0, rows=12):
    """Gradients, losses and a preference; with few rows the gradients conflict."""
    rng = np.random.default_rng(seed)
    G = torch.tensor(rng.normal(size=(rows, size)))
    losses = torch.tensor(rng.uniform(0.2, 1.5, size))
    return G, losses, torch.tensor(rng.dirichlet(np.full(size, 3.0)))


def weigh(case, G, losses, p):
    return case.weighting(G.T @ G, losses, p)


def test_no_weighting_is_left_out():
    named = [vars(weightings)[name] for name in weightings.__all__]
    there = {one for one in named if isinstance(one, type) and "__call__" in vars(one)}
    assert {type(case.weighting) for case in WEIGHTINGS} == there - {weightings.Weighting}


@every_weighting
@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [2, 12])
def test_multipliers_are_on_the_simplex_and_the_certificate_is_true(case, size, rows):
    for seed in range(3):
        G, losses, p = sample(size, seed, rows)
        found = weigh(case, G, losses, p)
        assert float(found.lam.sum()) == pytest.approx(1)
        assert float(found.lam.min()) >= 0
        assert float(found.weights.min()) >= 0
        assert 0 <= found.gap <= 1e-6
        square = float((G @ found.weights).square().sum())
        assert found.mgda_term == pytest.approx(square, abs=1e-12)
        # No combination of that total weight is shorter than the shortest.
        shortest = float(found.weights.sum()) ** 2 * found.min_norm
        assert found.mgda_term >= shortest * (1 - 1e-6) - 1e-12


@every_weighting
def test_it_is_a_pure_function(case):
    inputs = sample(4)
    copies = [part.clone() for part in inputs]
    first, second = weigh(case, *inputs), weigh(case, *inputs)
    assert torch.equal(first.weights, second.weights)
    assert all(map(torch.equal, inputs, copies))


@every_weighting
def test_permuting_the_objectives_permutes_the_weights(case):
    for seed in range(3):
        G, losses, p = sample(5, seed)
        order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
        there = weigh(case, G, losses, p)
        permuted = weigh(case, G[:, order], losses[order], p[order])
        assert permuted.weights.tolist() == pytest.approx(there.weights[order].tolist(), abs=1e-9)


@every_weighting
@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_the_unit_of_the_parameters_does_not_matter(case, scale):
    """z in other units: gradients times c. CLAMP's μ is in units of gradient² / loss."""
    G, losses, p = sample(4, rows=3)
    here, there = weigh(case, G, losses, p), weigh(case, scale * G, scale**2 * losses, p)
    assert there.weights.tolist() == pytest.approx(here.weights.tolist(), abs=1e-6)


@every_weighting
def test_an_objective_of_preference_0_is_left_out(case):
    G, losses, p = sample(3)
    p = torch.tensor([p[0], 0.0, 1 - p[0]], dtype=torch.float64)
    kept = torch.tensor([0, 2])
    there, without = weigh(case, G, losses, p), weigh(case, G[:, kept], losses[kept], p[kept])
    assert there.weights[1] == there.lam[1] == 0
    assert torch.equal(there.weights[kept], without.weights)
    assert there.min_norm == without.min_norm


@every_weighting
def test_one_objective_is_gradient_descent(case):
    G, losses, _ = sample(2)
    found = weigh(case, G, losses, [0.0, 1.0])
    length = 1 + case.weighting.c if isinstance(case.weighting, RACO) else 1.0
    assert found.weights.tolist() == pytest.approx([0.0, length])
    assert found.vertex


@every_weighting
def test_a_copy_of_an_objective_does_not_change_the_direction(case):
    if case.twins is None:
        pytest.skip("here a copy counts")
    for seed in range(4):
        G, losses, p = sample(3, seed, rows=2)
        twice = torch.tensor([0, 1, 2, 1])
        doubled = p[twice].clone()
        if case.twins == "half":
            doubled[1] = doubled[3] = p[1] / 2
        here = G @ weigh(case, G, losses, p).weights
        there = G[:, twice] @ weigh(case, G[:, twice], losses[twice], doubled).weights
        torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-6)


@every_weighting
def test_gradients_without_conflict_give_a_common_descent_direction(case):
    for seed in range(4):
        G, losses, p = sample(4, seed)
        G = G.abs()
        assert float((G.T @ G @ weigh(case, G, losses, p).weights).min()) >= 0


@every_weighting
def test_gradients_in_conflict_give_a_common_descent_direction(case):
    if case.descends is None:
        pytest.skip("the preference may ask for an ascent")
    for seed in range(6):
        G, losses, p = sample(3, seed, rows=4)
        direction = G @ weigh(case, G, losses, p).weights
        slopes = G.T @ direction * (p if case.descends == "pf" else 1.0)
        assert bool((slopes >= direction @ direction - 1e-9).all())


@every_weighting
@pytest.mark.parametrize("seed", range(3))
def test_it_stands_still_at_a_stationary_point_that_the_preference_asks_for(case, seed):
    """G p = 0 and all p_m f_m equal: KKT for max p_m f_m, for Σ p_m f_m, and Pareto-stationary."""
    G, _, p = sample(3, seed, rows=4)
    G = G - torch.outer(G @ p, p) / (p @ p)
    found = weigh(case, G, 0.7 / p, p)
    assert float((G @ found.weights).norm()) < 1e-6
    assert found.complementarity < 1e-6
    assert found.min_norm < 1e-12


@every_weighting
@pytest.mark.parametrize(
    ("gramian", "losses", "preference", "message"),
    [
        ([[1.0, math.nan], [math.nan, 1.0]], [1.0, 1.0], [0.5, 0.5], r"gramian\[0, 1\] is nan"),
        ([[1.0, 0.0], [0.0, 1.0]], [1.0, math.inf], [0.5, 0.5], r"losses\[1\] is inf"),
        ([[1.0, 0.0], [0.0, 1.0]], [1.0, 1.0], [1.5, -0.5], r"preference\[1\] is -0.5"),
        ([[1.0, 0.0], [0.0, 1.0]], [1.0, 1.0], [0.0, 0.0], "positive preference"),
        ([[1.0, 0.0], [0.0, 1.0]], [1.0, 1.0], [1.0], "1 weights for 2 objectives"),
        ([[1.0, 0.0], [0.0, 1.0]], [1.0], [0.5, 0.5], r"losses must have shape \(2,\)"),
        ([[1.0, 3.0], [3.0, 1.0]], [1.0, 1.0], [0.5, 0.5], "gramian is not positive semi"),
    ],
)
def test_bad_input(case, gramian, losses, preference, message):
    with pytest.raises(InputError, match=message):
        case.weighting(torch.tensor(gramian), torch.tensor(losses), preference)


# --- Bilevel methods ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A bilevel method under test.

    Attributes:
        method: with options that suit the quadratic problem.
        cost: S -> gradient evaluations of a step; None where steps differ.
        sees: whether the preference decides where it ends.
        ends: the steps, and options if there are others, with which it reaches a stationary
            point, and the error that is left there; None where another line shows it.
        diverges: whether steps that are too long make it diverge; others have a safeguard.
        batch: the name of its batch size; None where it takes full batches only.
    """

    method: Any
    cost: Any
    sees: bool
    ends: tuple[int, float, dict[str, Any]] | None
    diverges: bool = True
    batch: str | None = "batch"


FEW = {"inner_steps": 4, "alpha": 0.05, "beta": 0.4, "optimizer": None}
MANY = {"inner_steps": 40, "alpha": 0.25, "beta": 0.5}
SERIES = {"inner_steps": 10, "neumann_terms": 20, "alpha": 0.2, "beta": 0.5, "tracking": 1.0}
VALUE = {"inner_steps": 15, "eta": 0.5, "rho": 2.0, "beta": 0.05}
METHODS = [
    Method(MOML(**FEW), lambda S: 4 + S + 2 * S * 4, False, ends=(60, 1e-4, MANY)),
    Method(MOML(alpha=0.05, beta=0.4), lambda S: 1 + S + 2 * S, False, ends=None),
    Method(
        MoCo(**FEW, neumann_terms=4, decay=0.0),
        lambda S: 4 + S + 2 * S * (4 + 1),
        False,
        ends=(60, 2e-3, SERIES),
    ),
    Method(FORUM(**FEW, eta=0.4), lambda S: 4 + 1 + S, False, ends=(160, 0.15, VALUE)),
    Method(FORUM(alpha=0.05, beta=0.05), lambda S: 5 + 1 + S, False, ends=None),
    Method(
        GMOBA(alpha=0.05, beta=0.4, eta=0.4),
        lambda S: 1 + S + 2 * 2 * S,
        False,
        ends=(300, 1e-5, {}),
    ),
    Method(ITD(**FEW), lambda S: 4 + 1 + 2 * 4, True, ends=(60, 1e-4, MANY)),
    Method(SOBA(alpha=0.05, beta=0.4, decay=0.0), lambda S: 4, True, ends=(400, 1e-3, {})),
    Method(WCSOBA(alpha=0.05, beta=0.4), lambda S: 4, True, ends=(400, 1e-3, {})),
    # Its y goes for g alone, one step at a time: it does not end where the bilevel problem does.
    Method(Lookahead(), lambda S: 4, True, ends=None, diverges=False),
    Method(StochasticWCAugmented(), lambda S: 4, True, ends=(600, 3e-3, {}), diverges=False),
    Method(
        WCPenalty(u=30.0, v=30.0, eta=0.005),
        lambda S: 4,
        True,
        ends=(800, 0.05, {}),
        diverges=False,
        batch="objective_batch",
    ),
    Method(WCAugmented(), None, True, ends=(100, 1e-6, {}), diverges=False, batch=None),
]
every_method = pytest.mark.parametrize(
    "case", METHODS, ids=[f"{type(case.method).__name__}{n}" for n, case in enumerate(METHODS)]
)


def solve(method, problem, weights, x, y, steps=5, tol=0.0):
    return minimize(problem, weights, method, x0=(x, y), steps=steps, tol=tol)


def test_no_bilevel_method_is_left_out():
    problem = quadratic_bilevel().problem
    chosen = [choose_bilevel(problem, name) for name in bilevel.METHODS]
    inner = {type(getattr(method, "method", method)) for method in chosen}
    assert {type(case.method) for case in METHODS} == inner | {StochasticWCAugmented}


@every_method
def test_permuting_the_objectives_permutes_the_run(case):
    known, weights, order = quadratic_bilevel(2, 3, 3), (0.5, 0.3, 0.2), [2, 0, 1]
    turned = replace(known.problem, upper=[known.problem.upper[s] for s in order])
    first = solve(case.method, known.problem, weights, known.x0, known.y0)
    second = solve(case.method, turned, [weights[s] for s in order], known.x0, known.y0)
    for a, b in zip(first.x, second.x, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(first.objectives[order], second.objectives)
    torch.testing.assert_close(first.multipliers[order], second.multipliers, rtol=1e-6, atol=1e-6)


@every_method
def test_shapes_and_one_function_for_all_objectives_do_not_matter(case):
    known, weights = quadratic_bilevel(2, 4, 2), (0.6, 0.4)
    terms, lower = known.problem.upper, known.problem.lower
    reshaped = BilevelProblem(
        upper=lambda x, y: torch.stack([f(x.flatten(), y.flatten()) for f in terms]),
        lower=lambda x, y: sum(g(x.flatten(), y.flatten()) for g in lower),
    )
    plain = solve(case.method, known.problem, weights, known.x0, known.y0)
    start = known.x0.reshape(2, 1), known.y0.reshape(2, 2)
    other = solve(case.method, reshaped, weights, *start)
    torch.testing.assert_close(other.x[0].flatten(), plain.x[0])
    torch.testing.assert_close(other.x[1].flatten(), plain.x[1])
    assert other.x[1].shape == (2, 2)
    assert other.n_gradient_evaluations == plain.n_gradient_evaluations


@every_method
def test_a_step_costs_what_the_documentation_says(case):
    if case.cost is None:
        pytest.skip("its steps differ")
    for S in (2, 3):
        known = quadratic_bilevel(2, 3, S)
        few, more = (
            solve(case.method, known.problem, [1 / S] * S, known.x0, known.y0, steps)
            for steps in (2, 5)
        )
        assert more.n_gradient_evaluations - few.n_gradient_evaluations == 3 * case.cost(S)
        counts = more.history.n_gradients
        assert counts[0] == 0
        assert bool((counts.diff() > 0).all())
        assert int(counts[-1]) <= more.n_gradient_evaluations


def noisy():
    """Means over batches of rows: f_s and g of least squares with noise."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(64, 3, generator=generator, dtype=torch.float64)
    targets = torch.randn(64, 4, generator=generator, dtype=torch.float64)

    def upper(s, x, y, rows):
        return ((inputs[rows] @ y - targets[rows, s]) ** 2).mean() + 0.1 * (x**2).sum()

    def lower(x, y, rows):
        aim = targets[rows, 2:] @ torch.softmax(x, 0)
        return ((inputs[rows] @ y - aim) ** 2).mean() / 2 + 0.05 * (y**2).sum()

    def draw(size, generator):
        return torch.randint(64, (size,), generator=generator)

    everything = torch.arange(64)
    return StochasticBilevelProblem(
        upper=[lambda x, y, rows, s=s: upper(s, x, y, rows) for s in range(2)],
        lower=lower,
        draw_upper=draw,
        draw_lower=draw,
        full_upper=everything,
        full_lower=everything,
    )


@every_method
def test_the_seed_decides_the_run(case):
    if case.batch is None:
        pytest.skip("it draws nothing")
    start = torch.zeros(2, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    first, again, other = (
        solve(replace(case.method, **{case.batch: 8}, seed=seed), noisy(), (0.5, 0.5), *start)
        for seed in (3, 3, 4)
    )
    assert torch.equal(first.x[0], again.x[0])
    assert torch.equal(first.x[1], again.x[1])
    assert not torch.equal(first.x[1], other.x[1])


@every_method
def test_finite_differences_give_nearly_the_same(case):
    known, weights = quadratic_bilevel(2, 3, 2), (0.6, 0.4)
    exact, found = (
        solve(case.method, replace(known.problem, hvp=hvp), weights, known.x0, known.y0)
        for hvp in ("double", "finite_difference")
    )
    torch.testing.assert_close(found.x[0], exact.x[0], rtol=0, atol=1e-5)


def resolved(problem, x, y):
    """F after the lower level has been solved again."""
    return polish_lower(problem, x, y, tol=1e-11).objectives


@pytest.mark.slow
@every_method
def test_it_ends_where_the_lower_level_is_solved_and_the_hypergradients_cancel(case):
    """Hypergradients as central differences of the losses after solving the lower level again."""
    if case.ends is None:
        pytest.skip("another line shows it")
    known, weights = quadratic_bilevel(2, 3, 2), torch.tensor([0.4, 0.6], dtype=torch.float64)
    steps, error, options = case.ends
    method, start = replace(case.method, **options), (known.x0, known.y0)
    found = solve(method, known.problem, weights.tolist(), *start, steps, tol=1e-7)
    x, y = found.x

    def resolved(x):
        return polish_lower(known.problem, x, y, tol=1e-11).objectives

    assert found.lower_gradient_norm < error
    assert float((resolved(x) - found.objectives).abs().max()) < error
    units = 1e-4 * torch.eye(2, dtype=torch.float64)
    rows = torch.stack([(resolved(x + unit) - resolved(x - unit)) / 2e-4 for unit in units]).T
    torch.testing.assert_close(rows, known.hypergradients(x), rtol=0, atol=1e-4)
    scaled = found.history.weights[-1] * weights
    assert float((scaled / scaled.sum() @ rows).norm()) < error


@pytest.mark.slow
@every_method
def test_whether_the_preference_decides_where_it_ends(case):
    known = quadratic_bilevel(p=2, q=3, n_objectives=5)
    middle = known.linear_solution(torch.full((5,), 0.2, dtype=torch.float64))
    start = middle + 0.1, known.solve_lower(middle + 0.1)
    first, second = (
        solve(case.method, known.problem, weights, *start, steps=10).x[0]
        for weights in ((0.96, 0.01, 0.01, 0.01, 0.01), (0.01, 0.01, 0.01, 0.01, 0.96))
    )
    assert torch.equal(first, second) is not case.sees


@every_method
def test_steps_that_are_too_long_end_the_run_at_the_last_finite_point(case):
    if not case.diverges:
        pytest.skip("it has a safeguard")
    known = quadratic_bilevel(2, 3, 2)
    fenced = replace(
        known.problem, lower=[*known.problem.lower, lambda x, y: -torch.sqrt(100 - y @ y)]
    )
    wild = replace(case.method, alpha=0.1, beta=30.0)
    found = solve(wild, fenced, (0.5, 0.5), known.x0, known.y0)
    assert not found.converged
    assert "no longer finite" in found.message
    assert all(bool(part.isfinite().all()) for part in found.x)
