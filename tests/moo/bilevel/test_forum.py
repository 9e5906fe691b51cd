import numpy as np
import pytest
import torch
from scipy.optimize import minimize as scipy_minimize

from paretune.moo.bilevel.forum import FORUM, constrained_weights
from paretune.moo.bilevel.oracle import Oracle
from paretune.moo.bilevel.steps import min_norm_weights
from paretune.moo.preference import Preference
from paretune.moo.test_problems.bilevel import quadratic_bilevel

EVEN = Preference.of([0.5, 0.5])


def _weights(rows, gradient, rho):
    size = np.linalg.norm(gradient)
    along = rows @ gradient / size
    across = rows - np.outer(along, gradient / size)
    found = constrained_weights(
        torch.from_numpy(across @ across.T), torch.from_numpy(along), rho * size
    )
    return found.numpy()


def _direction(rows, gradient, rho, weights):
    """Σ λ_s ∇f_s + ν(λ) ∇q, as printed."""
    squared = gradient @ gradient
    nu = max(weights @ (rho - rows @ gradient / squared), 0.0)
    return weights @ rows + nu * gradient, nu


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_the_weights_solve_the_dual(seed, scale):
    random = np.random.default_rng(seed)
    rows, gradient = random.normal(size=(3, 5)), scale * random.normal(size=5)
    rows += seed % 3 * gradient / scale  # with seed 1, 2: ν = 0 may be right
    rho = 0.3
    weights = _weights(rows, gradient, rho)

    def dual(z):  # jointly in λ and ν, which must be at least 0
        d = z[:3] @ rows + z[3] * gradient
        return d @ d / 2 - z[3] * rho * gradient @ gradient

    found = scipy_minimize(
        dual,
        [1 / 3, 1 / 3, 1 / 3, 1.0 / scale],
        bounds=[(0, None)] * 4,
        constraints={"type": "eq", "fun": lambda z: z[:3].sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    direction, nu = _direction(rows, gradient, rho, weights)
    ours = dual(np.append(weights, nu))
    assert ours <= found.fun + 1e-9 * (1 + abs(found.fun))
    # No duality gap: -direction solves min max_s <∇f_s, d> + |d|²/2 s.t. <∇q, d> <= -ρ|∇q|².
    assert gradient @ direction >= rho * gradient @ gradient * (1 - 1e-9)
    primal = max(-(rows @ direction)) + direction @ direction / 2
    assert primal == pytest.approx(-ours, rel=1e-8, abs=1e-8)


def test_both_cases_occur():
    rows, gradient = np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([1.0, 0.0])
    assert _direction(rows, gradient, 0.5, _weights(rows, gradient, 0.5))[1] == 0
    assert _direction(-rows, gradient, 0.5, _weights(-rows, gradient, 0.5))[1] > 0


def test_gradients_parallel_to_that_of_the_constraint():
    gradient = np.array([3.0, 4.0])
    rows = np.outer([1.0, -2.0, 0.5], gradient)
    weights = _weights(rows, gradient, 0.1)
    direction, nu = _direction(rows, gradient, 0.1, weights)
    assert weights.sum() == pytest.approx(1)
    assert nu > 0
    np.testing.assert_allclose(direction, 0.1 * gradient)


def test_without_a_constraint_they_are_those_of_mgda():
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = constrained_weights(rows @ rows.T, torch.zeros(3, dtype=torch.float64), 0.0)
    torch.testing.assert_close(found, min_norm_weights(rows))


def test_the_first_step_by_hand():
    known = quadratic_bilevel(p=2, q=3, n_objectives=2)
    method = FORUM(inner_steps=3, eta=0.2, rho=0.4, alpha=0.1, beta=0.05, optimizer=None)
    result = method.run(known.problem, EVEN, (known.x0, known.y0), 1, 0.0)
    x, y = known.x0.numpy(), known.y0.numpy()
    hessian, coupling = known.hessian.numpy(), known.coupling.numpy()
    end = y
    for _ in range(3):
        end = end - 0.2 * (hessian @ end - coupling @ x)
    gradient = np.concatenate([coupling.T @ (end - y), hessian @ y - coupling @ x])
    rows = np.hstack([x - known.upper_x.numpy(), y - known.upper_y.numpy()])
    direction, _ = _direction(rows, gradient, 0.4, _weights(rows, gradient, 0.4))
    np.testing.assert_allclose(result.x[0], x - 0.1 * direction[:2], rtol=1e-10)
    np.testing.assert_allclose(result.x[1], y - 0.05 * direction[2:], rtol=1e-10)
    assert result.n_gradient_evaluations == 3 + 1 + 2


def test_it_asks_for_no_second_derivatives():
    known = quadratic_bilevel(p=2, q=3, n_objectives=2)
    oracle = Oracle(known.problem)
    moves = FORUM(inner_steps=7).iterate(oracle, (0.5, 0.5), known.x0, known.y0)
    for _ in range(3):
        next(moves)
    assert oracle.spent.n_products == 0
    assert oracle.n_gradients == 3 * (7 + 1 + 2)
