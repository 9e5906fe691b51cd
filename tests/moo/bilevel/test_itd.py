import pytest
import torch

from paretune.moo.bilevel.itd import ITD
from paretune.moo.bilevel.oracle import Oracle
from paretune.moo.bilevel.unroll import inner_steps
from paretune.moo.preference import Preference
from paretune.moo.test_problems.bilevel import quadratic_bilevel

WANTED = Preference.of([0.3, 0.7])


def test_a_step_follows_the_derivative_of_the_weighted_sum_after_the_inner_steps():
    known = quadratic_bilevel(p=2, q=3, n_objectives=2)
    method = ITD(inner_steps=3, alpha=1.0, beta=0.3, optimizer=None)
    result = method.run(known.problem, WANTED, (known.x0, known.y0), 1, 0.0)
    oracle, size = Oracle(known.problem), 1e-5
    lam = torch.tensor(WANTED.weights, dtype=torch.float64)

    def after(x):
        return lam @ oracle.values(x, inner_steps(oracle, x, known.y0, 3, 0.3)[-1])

    units = size * torch.eye(2, dtype=torch.float64)
    slope = torch.stack([(after(known.x0 + u) - after(known.x0 - u)) / (2 * size) for u in units])
    torch.testing.assert_close(known.x0 - result.x[0], slope, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        result.x[1], inner_steps(oracle, known.x0, known.y0, 3, 0.3)[-1], rtol=0, atol=1e-12
    )
    assert result.n_gradient_evaluations == 3 + 1 + 3 * 2


@pytest.mark.slow
def test_few_inner_steps_leave_a_bias():
    known = quadratic_bilevel(p=2, q=3, n_objectives=2)
    expected = known.linear_solution(torch.tensor(WANTED.weights, dtype=torch.float64))
    errors = []
    for count in (1, 4, 16):
        method = ITD(inner_steps=count, alpha=0.25, beta=0.5, optimizer=None)
        result = method.run(known.problem, WANTED, (known.x0, known.y0), 60, 1e-6)
        errors.append(float((result.x[0] - expected).norm()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_adam_takes_steps_of_its_own_length():
    known = quadratic_bilevel(p=2, q=3, n_objectives=2)
    result = ITD(alpha=0.01).run(known.problem, WANTED, (known.x0, known.y0), 1, 0.0)
    steps = (result.x[0] - known.x0).abs()
    torch.testing.assert_close(steps, torch.full_like(steps, 0.01), rtol=1e-5, atol=0)
