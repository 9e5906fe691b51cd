import numpy as np
import pytest
import torch
from scipy.optimize import minimize as scipy_minimize

from paretune.errors import InputError
from paretune.moo.bilevel.wc_soba import WCSOBA
from paretune.moo.preference import Preference
from paretune.moo.test_problems.bilevel import data_weighting, quadratic_bilevel


def _chebyshev(known, lam):
    """The least max λ_s f_s(x, y*(x)), by SLSQP on its epigraph."""

    def losses(x):
        x = torch.from_numpy(x)
        y = known.solve_lower(x)
        return lam * np.array([float(f(x, y)) for f in known.problem.upper])

    def slopes(x):
        rows = lam[:, None] * known.hypergradients(torch.from_numpy(x)).numpy()
        return np.hstack([-rows, np.ones((len(rows), 1))])

    start = known.x0.numpy()
    found = scipy_minimize(
        lambda z: z[-1],
        np.append(start, losses(start).max()),
        jac=lambda z: np.eye(len(z))[-1],
        constraints={
            "type": "ineq",
            "fun": lambda z: z[-1] - losses(z[:-1]),
            "jac": lambda z: slopes(z[:-1]),
        },
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert found.success
    return found.x[:-1], found.fun


@pytest.mark.slow
@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.3, 0.7), (0.95, 0.05)])
def test_it_ends_at_the_solution_the_preference_asks_for(weights):
    known = quadratic_bilevel(p=2, q=3, n_objectives=2)
    result = WCSOBA(alpha=0.05, beta=0.4, record_every=1000).run(
        known.problem, Preference.of(weights), (known.x0, known.y0), 1000, 1e-7
    )
    assert result.converged
    x, height = _chebyshev(known, np.array(weights))
    np.testing.assert_allclose(result.x[0], x, atol=1e-5)
    assert max(np.array(weights) * result.objectives.numpy()) == pytest.approx(height, abs=1e-6)
    assert result.kkt_residual < 1e-5
    assert result.multipliers.sum() == pytest.approx(1)


@pytest.mark.slow
def test_with_more_objectives_than_dimensions_it_still_goes_there():
    known = quadratic_bilevel(p=2, q=3, n_objectives=5)
    weights = (0.4, 0.15, 0.15, 0.15, 0.15)
    result = WCSOBA(alpha=0.05, beta=0.4, record_every=1000).run(
        known.problem, Preference.of(weights), (known.x0, known.y0), 1000, 1e-7
    )
    x, _ = _chebyshev(known, np.array(weights))
    np.testing.assert_allclose(result.x[0], x, atol=1e-4)


@pytest.mark.slow
def test_a_singular_lower_level():
    known = data_weighting()
    weights = (1 / 3, 1 / 3, 1 / 3)
    result = WCSOBA(alpha=1.0, beta=2.0, v=3.0, record_every=1000).run(
        known.problem, Preference.of(weights), (known.x0, known.y0), 500, 0.0
    )
    height = float(result.objectives.max()) / 3
    assert result.lower_gradient_norm < 1e-4
    assert height == pytest.approx(known.optimum(weights), abs=1e-4)


def test_tau_is_a_part():
    with pytest.raises(InputError, match="tau must be at most 1, got 2"):
        WCSOBA(tau=2)
