import numpy as np
import pytest
import torch

from paretune.moo.bilevel.moco import MoCo
from paretune.moo.bilevel.oracle import Oracle
from paretune.moo.preference import Preference
from paretune.moo.test_problems.bilevel import quadratic_bilevel

EVEN = Preference.of([0.5, 0.5])


@pytest.mark.parametrize("terms", [0, 1, 4])
def test_the_adjoints_are_the_truncated_series(terms):
    known = quadratic_bilevel(p=2, q=4, n_objectives=3)
    oracle, beta = Oracle(known.problem), 0.3
    rows, adjoints = MoCo(beta=beta, neumann_terms=terms).hypergradients(oracle, known.x0, known.y0)
    assert oracle.spent.n_products == 3 * (terms + 1)
    hessian, coupling = known.hessian.numpy(), -known.coupling.numpy()
    shrink = np.eye(4) - beta * hessian
    series = beta * sum(np.linalg.matrix_power(shrink, j) for j in range(terms + 1))
    slopes = (known.y0 - known.upper_y).numpy() @ series
    np.testing.assert_allclose(adjoints, slopes, rtol=1e-12)
    direct = (known.x0 - known.upper_x).numpy()
    np.testing.assert_allclose(rows, direct - slopes @ coupling, rtol=1e-10)


def test_with_many_terms_they_are_the_hypergradients():
    known = quadratic_bilevel(p=2, q=4, n_objectives=3)
    y = known.solve_lower(known.x0)
    method = MoCo(beta=0.5, neumann_terms=90)
    rows, _ = method.hypergradients(Oracle(known.problem), known.x0, y)
    torch.testing.assert_close(rows, known.hypergradients(known.x0), rtol=0, atol=1e-8)


def test_the_first_steps_by_hand():
    known = quadratic_bilevel(p=2, q=3, n_objectives=2)
    method = MoCo(
        inner_steps=2, neumann_terms=3, alpha=0.05, beta=0.3, tracking=0.4, gamma=0.02, rho=0.1
    )
    result = method.run(known.problem, EVEN, (known.x0, known.y0), 3, 0.0)
    hessian, coupling = known.hessian.numpy(), known.coupling.numpy()
    aims_x, aims_y = known.upper_x.numpy(), known.upper_y.numpy()
    x, y = known.x0.numpy().copy(), known.y0.numpy().copy()
    series = 0.3 * sum(np.linalg.matrix_power(np.eye(3) - 0.3 * hessian, j) for j in range(4))
    tracked, share = np.zeros((2, 2)), 0.5
    for k in (1, 2, 3):
        for _ in range(2):
            y = y - 0.3 * (hessian @ y - coupling @ x)
        h = x - aims_x + (y - aims_y) @ series @ coupling
        tracked += 0.4 / np.sqrt(k) * (h - tracked)
        w = np.array([share, 1 - share])
        w = w - 0.02 / np.sqrt(k) * ((tracked @ tracked.T + 0.1 * np.eye(2)) @ w)
        share = float(np.clip((1 + w[0] - w[1]) / 2, 0, 1))  # S = 2: the projection
        x = x - 0.05 * np.array([share, 1 - share]) @ tracked
    np.testing.assert_allclose(result.x[0], x, rtol=1e-10)
    np.testing.assert_allclose(result.x[1], y, rtol=1e-10)
    assert result.n_gradient_evaluations == 3 * (2 + 2 + 2 * 2 * 4)
