import pytest
import torch

from paretune.moo.bilevel.oracle import Oracle
from paretune.moo.bilevel.soba import SOBA, directions
from paretune.moo.preference import Preference
from paretune.moo.test_problems.bilevel import quadratic_bilevel

WANTED = Preference.of([0.3, 0.7])


def test_the_directions_at_a_solved_lower_level_with_the_right_adjoint():
    known = quadratic_bilevel(p=2, q=3, n_objectives=2)
    lam = torch.tensor(WANTED.weights, dtype=torch.float64)
    x, y = known.x0, known.solve_lower(known.x0)
    v = torch.linalg.solve(known.hessian, lam @ (y - known.upper_y))
    down = directions(Oracle(known.problem), x, y, v, lam)
    torch.testing.assert_close(down.x, lam @ known.hypergradients(x))
    torch.testing.assert_close(down.y, torch.zeros_like(y), rtol=0, atol=1e-12)
    torch.testing.assert_close(down.v, torch.zeros_like(y), rtol=0, atol=1e-12)


def test_all_three_move_at_once_with_fading_steps():
    known = quadratic_bilevel(p=2, q=3, n_objectives=2)
    result = SOBA(alpha=0.05, beta=0.2).run(known.problem, WANTED, (known.x0, known.y0), 3, 0.0)
    lam = torch.tensor(WANTED.weights, dtype=torch.float64)
    x, y, v = known.x0, known.y0, torch.zeros_like(known.y0)
    for t in (1, 2, 3):
        dx = x - lam @ known.upper_x + known.coupling.T @ v
        dy = known.hessian @ y - known.coupling @ x
        dv = known.hessian @ v - (y - lam @ known.upper_y)
        x, y, v = x - 0.05 / t**0.5 * dx, y - 0.2 / t**0.5 * dy, v - 0.2 / t**0.5 * dv
    torch.testing.assert_close(result.x[0], x)
    torch.testing.assert_close(result.x[1], y)
    # ω is uniform: the multipliers that make the preference-weighted sum stationary.
    torch.testing.assert_close(result.adjoint, -v / 2)
    assert result.multipliers.tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.slow
def test_it_ends_where_the_weighted_sum_is_least():
    known = quadratic_bilevel(p=2, q=3, n_objectives=2)
    result = SOBA(alpha=0.05, beta=0.4, decay=0.0).run(
        known.problem, WANTED, (known.x0, known.y0), 1500, 1e-8
    )
    assert result.converged
    lam = torch.tensor(WANTED.weights, dtype=torch.float64)
    torch.testing.assert_close(result.x[0], known.linear_solution(lam), rtol=0, atol=1e-7)
    expected = torch.linalg.solve(known.hessian, result.x[1] - lam @ known.upper_y)
    torch.testing.assert_close(-2 * result.adjoint, expected, rtol=0, atol=1e-7)
    assert result.kkt_parts.stationarity < 1e-7
