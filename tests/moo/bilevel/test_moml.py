import pytest
import torch

from paretune.moo.bilevel.moml import MOML, unrolled_rows
from paretune.moo.bilevel.oracle import Oracle
from paretune.moo.bilevel.problem import BilevelProblem
from paretune.moo.bilevel.unroll import inner_steps
from paretune.moo.preference import Preference
from paretune.moo.test_problems.bilevel import quadratic_bilevel

EVEN = Preference.of([0.5, 0.5])


def _nonlinear(q=4, p=2):
    """A lower level whose Hessian and coupling change with x and y."""
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(q, p, generator=generator, dtype=torch.float64)
    aims = torch.randn(3, q, generator=generator, dtype=torch.float64)

    def upper(x, y):
        return ((y - aims) ** 2).sum(1) / 2 + (x**2).sum() * aims[:, 0] ** 2

    def lower(x, y):
        return torch.cosh(y).sum() + ((y - mixing @ x) ** 2 * torch.exp(x[0])).sum() / 2

    start = torch.tensor([0.3, -0.7], dtype=torch.float64), torch.ones(q, dtype=torch.float64)
    return BilevelProblem(upper, lower), *start


@pytest.mark.parametrize("steps", [1, 6])
def test_rows_are_derivatives_of_the_losses_after_the_inner_steps(steps):
    problem, x, y = _nonlinear()
    oracle, beta = Oracle(problem), 0.05
    rows = unrolled_rows(oracle, x, inner_steps(oracle, x, y, steps, beta), beta)
    assert oracle.n_gradients == steps + 3 + 3 * steps * 2

    def after(moved):
        return oracle.values(moved, inner_steps(oracle, moved, y, steps, beta)[-1])

    size = 1e-5
    for i, unit in enumerate(torch.eye(2, dtype=torch.float64)):
        difference = (after(x + size * unit) - after(x - size * unit)) / (2 * size)
        torch.testing.assert_close(rows[:, i], difference, rtol=1e-7, atol=1e-8)


def test_rows_are_those_of_a_graph_through_the_inner_steps():
    problem, x, y = _nonlinear()
    oracle, beta = Oracle(problem), 0.05
    rows = unrolled_rows(oracle, x, inner_steps(oracle, x, y, 5, beta), beta)

    def through_graph(moved):
        end = y.clone().requires_grad_()
        for _ in range(5):
            (slope,) = torch.autograd.grad(problem.lower(moved, end), end, create_graph=True)
            end = end - beta * slope
        return problem.upper(moved, end)

    graph = torch.autograd.functional.jacobian(through_graph, x)
    torch.testing.assert_close(rows, graph, rtol=1e-12, atol=1e-12)


def test_with_many_inner_steps_rows_are_the_hypergradients():
    known = quadratic_bilevel(p=3, q=4, n_objectives=2)
    oracle = Oracle(known.problem)
    way = inner_steps(oracle, known.x0, known.y0, 80, 0.5)
    torch.testing.assert_close(way[-1], known.solve_lower(known.x0), rtol=0, atol=1e-8)
    rows = unrolled_rows(oracle, known.x0, way, 0.5)
    torch.testing.assert_close(rows, known.hypergradients(known.x0), rtol=0, atol=1e-6)


def test_a_step_is_along_the_shortest_combination():
    known = quadratic_bilevel(p=3, q=4, n_objectives=2)
    result = MOML(inner_steps=80, beta=0.5, alpha=0.01, optimizer=None).run(
        known.problem, EVEN, (known.x0, known.y0), 1, 0.0
    )
    first, second = known.hypergradients(known.x0)
    gap = second - first
    share = float((gap @ second / (gap @ gap)).clamp(0, 1))  # S = 2: the closed form
    expected = known.x0 - 0.01 * (share * first + (1 - share) * second)
    torch.testing.assert_close(result.x[0], expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(
        result.history.weights[-1], torch.tensor([share, 1 - share]).double()
    )
