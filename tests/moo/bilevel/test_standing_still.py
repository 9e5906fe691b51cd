"""Where methods of smallest norm stand still, and options out of range."""

import pytest
import torch

from paretune.errors import InputError
from paretune.moo.bilevel.forum import FORUM
from paretune.moo.bilevel.gmoba import GMOBA
from paretune.moo.bilevel.itd import ITD
from paretune.moo.bilevel.moco import MoCo
from paretune.moo.bilevel.moml import MOML
from paretune.moo.bilevel.soba import SOBA
from paretune.moo.bilevel.steps import min_norm_weights
from paretune.moo.preference import Preference
from paretune.moo.test_problems.bilevel import quadratic_bilevel


def _run(method, problem, weights, x, y, steps=5):
    return method.run(problem, Preference.of(weights), (x, y), steps, 0.0)


def _in_the_hull(known, x):
    """Whether 0 is a convex combination of the hypergradients."""
    rows = known.hypergradients(x)
    return float((min_norm_weights(rows) @ rows).norm()) < 1e-9 * float(rows.norm())


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [MOML(inner_steps=60, beta=0.5), MOML(inner_steps=60, beta=0.5, alpha=0.1, optimizer=None)],
)
def test_moml_stands_still_with_more_objectives_than_dimensions(method):
    known = quadratic_bilevel(p=2, q=3, n_objectives=5)
    middle = known.linear_solution(torch.full((5,), 0.2, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        x = middle + 0.2 * torch.randn(2, generator=generator, dtype=torch.float64)
        assert _in_the_hull(known, x)
        result = _run(method, known.problem, (0.6, 0.1, 0.1, 0.1, 0.1), x, known.solve_lower(x), 3)
        assert float((result.x[0] - x).norm()) < 1e-8


def test_gmoba_does_too_with_more_objectives_than_dimensions():
    known = quadratic_bilevel(p=2, q=3, n_objectives=5)
    x = known.linear_solution(torch.full((5,), 0.2, dtype=torch.float64)) + 0.1
    method = GMOBA(alpha=0.05, beta=0.4, eta=0.4)
    result = _run(
        method, known.problem, (0.96, 0.01, 0.01, 0.01, 0.01), x, known.solve_lower(x), 10
    )
    assert float((result.x[0] - x).norm()) < 1e-12


def test_stationary_points_fill_the_plane_only_with_more_objectives_than_dimensions():
    generator = torch.Generator().manual_seed(0)
    for count, dimensions, still in ((5, 2, True), (3, 2, True), (2, 2, False), (2, 3, False)):
        known = quadratic_bilevel(dimensions, 3, count)
        middle = known.linear_solution(torch.full((count,), 1 / count, dtype=torch.float64))
        near = 1e-3 * torch.randn(20, dimensions, generator=generator, dtype=torch.float64)
        assert all(_in_the_hull(known, middle + step) is still for step in near)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MOML(inner_steps=0), "inner_steps must be at least 1, got 0"),
        (lambda: MOML(optimizer="sgd"), "optimizer must be None or 'adam', got 'sgd'"),
        (lambda: ITD(beta=-1.0), "beta must be finite and above 0, got -1"),
        (lambda: FORUM(rho=0.0), "rho must be finite and above 0, got 0"),
        (lambda: MoCo(tracking=float("nan")), "tracking must be finite and above 0, got nan"),
        (lambda: GMOBA(eta=float("inf")), "eta must be finite and above 0, got inf"),
        (lambda: SOBA(alpha=0), "alpha must be finite and above 0, got 0"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(InputError, match=message):
        make()
