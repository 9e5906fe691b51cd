"""Where `wc_augmented` starts a bilevel problem: y near its solution, ν near the adjoint."""

import pytest
import torch

from paretune.moo import minimize
from paretune.moo.bilevel import EqualityConstrained
from paretune.moo.bilevel.oracle import NonConvexLowerLevelWarning, Oracle
from paretune.moo.bilevel.warm_start import warm_adjoint, warm_lower
from paretune.moo.solvers.wc_augmented import WCAugmented
from paretune.moo.test_problems import data_weighting, quadratic_bilevel


def test_both_parts_solve_a_quadratic_lower_level():
    known = quadratic_bilevel(q=8)
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    oracle = Oracle(known.problem)
    y = warm_lower(oracle, known.x0, known.y0, tol=1e-10)
    torch.testing.assert_close(y, known.solve_lower(known.x0), rtol=0, atol=1e-6)
    nu = warm_adjoint(oracle, known.x0, y, weights)
    wanted = -oracle.upper(known.x0, y, weights)[1]
    product = oracle.products(known.x0, y, nu)[1]
    assert float((product - wanted).norm()) <= 0.011 * float(wanted.norm())


def test_a_lower_level_that_curves_down_gets_no_multiplier():
    known = quadratic_bilevel(q=4)
    bent = Oracle(type(known.problem)(known.problem.upper, lambda x, y: -(y**2).sum()))
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)
    with pytest.warns(NonConvexLowerLevelWarning):
        assert not warm_adjoint(bent, known.x0, known.y0 + 1, weights).any()


def test_it_keeps_the_run_beside_the_feasible_set():
    known = data_weighting()
    p = (0.5, 0.25, 0.25)

    def furthest(warm: bool) -> float:
        method = EqualityConstrained(WCAugmented(scale_rows=False), warm_start=warm)
        result = minimize(known.problem, p, method=method, x0=(known.x0, known.y0 + 1), steps=40)
        late = result.history.n_gradients > 40
        return float(result.history.lower_gradient_norm[late].max())

    assert furthest(True) < 0.7 * furthest(False)
