"""The bilevel solvers on problems with known answers: their own values, and re-solved ones."""

import math
from dataclasses import dataclass

import pytest
import torch

from paretune.errors import InputError
from paretune.moo import (
    BilevelProblem,
    StochasticBilevelProblem,
    WCAugmented,
    WCPenalty,
    minimize,
    polish_lower,
)
from paretune.moo.bilevel import (
    BilevelMethod,
    EqualityConstrained,
    Iterate,
    StochasticWCAugmented,
)
from paretune.moo.test_problems import data_weighting, quadratic_bilevel, rank_deficient_bilevel

CASES = [
    (rank_deficient_bilevel(), (0.5, 0.5)),
    (rank_deficient_bilevel(), (0.7, 0.3)),
    (weighting := data_weighting(), (1 / 3, 1 / 3, 1 / 3)),
    (weighting, (0.5, 0.25, 0.25)),
]


def height(objectives, p):
    return float((torch.tensor(p, dtype=torch.float64) * objectives).max())


@pytest.mark.slow
@pytest.mark.parametrize(("known", "p"), CASES)
def test_augmented_closes_the_true_gap(known, p):
    result = minimize(known.problem, p, x0=(known.x0, known.y0))
    assert result.converged
    assert result.kkt_residual <= 1e-8
    assert result.lower_gradient_norm <= 1e-8
    polished = polish_lower(known.problem, *result.x, tol=1e-10)
    best = known.optimum(p)
    assert abs(height(result.objectives, p) - best) < 1e-6
    assert abs(height(polished.objectives, p) - best) < 1e-6
    assert result.n_gradient_evaluations < 600


@pytest.mark.slow
@pytest.mark.parametrize(("known", "p"), CASES[::3])
def test_first_order_form_closes_the_true_gap(known, p):
    result = minimize(
        known.problem,
        p,
        method=StochasticWCAugmented(record_every=100),
        x0=(known.x0, known.y0),
        steps=1200,
        tol=1e-6,
    )
    polished = polish_lower(known.problem, *result.x, tol=1e-10)
    assert abs(height(polished.objectives, p) - known.optimum(p)) < 1e-4
    assert result.history.step.tolist()[-2:] != result.history.step.tolist()[-1:]


@pytest.mark.slow
@pytest.mark.parametrize("p", [(0.5, 0.25, 0.25)])
def test_plain_penalty_looks_better_than_the_optimum_and_is_worse(p):
    """With u = v = T^(1/4) its own value is below the optimum, its true one above."""
    known = weighting
    method = EqualityConstrained(WCPenalty(u=7.4, v=7.4, eta=0.03), record_every=300)
    result = minimize(known.problem, p, method=method, x0=(known.x0, known.y0), steps=600)
    best = known.optimum(p)
    assert height(result.objectives, p) < 0.98 * best
    assert result.lower_gradient_norm > 1e-2
    polished = polish_lower(known.problem, *result.x)
    assert polished.converged
    assert height(polished.objectives, p) > 1.01 * best
    assert result.history.step.tolist() == [0, 300, 600]
    # h, ∇F and two for a product in each step; the last point counts as well.
    assert result.history.n_gradients.tolist()[1:] == pytest.approx([1200, 2400], abs=2)


@pytest.mark.slow
def test_stochastic_penalty_and_augmented_go_towards_the_optimum():
    known = quadratic_bilevel()
    p = (0.3, 0.7)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(64, 5, generator=generator, dtype=torch.float64)
    noise -= noise.mean(0)

    def noisy(term):
        return lambda x, y, batch: term(x, y) + (noise[batch].mean(0) @ y)

    def draw(size, generator):
        return torch.randint(64, (size,), generator=generator)

    everything = torch.arange(64)
    problem = StochasticBilevelProblem(
        upper=[noisy(term) for term in known.problem.upper],
        lower=[noisy(term) for term in known.problem.lower],
        draw_upper=draw,
        draw_lower=draw,
        full_upper=everything,
        full_lower=everything,
    )
    start = (known.x0, known.y0)
    best = minimize(known.problem, p, x0=start)
    for method in (
        StochasticWCAugmented(batch=32, independent_batches=True, record_every=200),
        WCPenalty(u=10, v=10, eta=0.002, independent_batches=True, certify_every=200),
    ):
        result = minimize(problem, p, method=method, x0=start, steps=400)
        polished = polish_lower(problem, *result.x)
        gap = height(polished.objectives, p) - height(best.objectives, p)
        assert -1e-6 < gap < 0.15
        assert result.history.step.tolist() == [0, 200, 400]
    assert minimize(problem, p, x0=start, steps=3).message == "Stopped after all 3 steps."


@dataclass(frozen=True, kw_only=True)
class Downhill(BilevelMethod):
    """The simplest method there is: y goes down g, x stays."""

    rate: float = 0.5

    def iterate(self, oracle, lam, x, y):
        while True:
            slope = oracle.lower_y(x, y)
            y = y - self.rate * slope
            yield Iterate(x, y, residual=float(slope.norm()))


def test_what_the_loop_does_for_a_method():
    known = quadratic_bilevel()
    seen = []
    method = Downhill(record_every=3, on_record=seen.append)
    result = minimize(known.problem, (0.5, 0.5), method, x0=(known.x0, known.y0), steps=7, tol=0)
    assert [record.step for record in seen] == result.history.step.tolist() == [0, 3, 6, 7]
    assert result.history.n_gradients.tolist() == [0, 3, 6, 7]  # recording is not counted
    assert result.history.seconds.diff().min() > 0
    assert math.isfinite(result.kkt_residual)  # with the best multipliers
    assert result.kkt_parts.feasibility == pytest.approx(result.lower_gradient_norm)
    done = minimize(known.problem, (0.5, 0.5), Downhill(), x0=(known.x0, known.y0), tol=1e-6)
    assert done.converged
    torch.testing.assert_close(done.x[1], known.solve_lower(known.x0), rtol=0, atol=1e-5)
    wild = Downhill(rate=1e200)
    lost = minimize(known.problem, (0.5, 0.5), wild, x0=(known.x0, known.y0), steps=9)
    assert "no longer finite" in lost.message
    assert bool(lost.x[1].isfinite().all())


def test_multipliers_of_the_augmented_form_are_a_certificate():
    known = quadratic_bilevel(n_objectives=3)
    p = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    result = minimize(known.problem, p.tolist(), x0=(known.x0, known.y0))
    # The weighted hypergradients, in closed form, cancel.
    weighted = (result.multipliers * p) @ known.hypergradients(result.x[0])
    assert float(weighted.norm()) < 1e-6
    assert float((known.solve_lower(result.x[0]) - result.x[1]).norm()) < 1e-6


def test_user_mistakes():
    known = quadratic_bilevel()
    start = (known.x0, known.y0)

    def run(problem=known.problem, p=(0.5, 0.5), x0=start, **options):
        return minimize(problem, p, x0=x0, steps=3, **options)

    with pytest.raises(InputError, match="starts from a pair"):
        run(x0=known.x0)
    with pytest.raises(InputError, match="start's y must be finite"):
        run(x0=(known.x0, known.y0 * math.nan))
    with pytest.raises(InputError, match="2 objectives, the preference 3"):
        run(p=(0.2, 0.3, 0.5))
    with pytest.raises(InputError, match="weight of 'f2' is 0"):
        run(p=(1.0, 0.0))
    with pytest.raises(InputError, match="Unknown bilevel method 'adam'"):
        run(method="adam")
    with pytest.raises(InputError, match="no lr, mu"):
        run(lr=0.1)
    with pytest.raises(InputError, match="Give shift inside the method"):
        run(method=WCAugmented(), shift=1.0)
    broken = BilevelProblem(
        [known.problem.upper[0], lambda x, y: y.sum() * math.nan], lambda x, y: (y**2).sum()
    )
    with pytest.raises(InputError, match="Upper objective 1 is nan at the start"):
        run(broken)
    broken = BilevelProblem(known.problem.upper, lambda x, y: (y - y).sum().sqrt() / 0)
    with pytest.raises(InputError, match="lower level's gradient is not finite at the start"):
        run(broken)


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, StochasticWCAugmented()])
def test_objectives_of_any_sign(method):
    known = quadratic_bilevel()
    lowered = BilevelProblem(
        [lambda x, y, f=f: f(x, y) - 9 for f in known.problem.upper], known.problem.lower
    )
    found, raised = (
        minimize(problem, (0.5, 0.5), method or given, x0=(known.x0, known.y0), steps=500)
        for problem, given in ((known.problem, None), (lowered, None))
    )
    torch.testing.assert_close(raised.x[0], found.x[0], rtol=0, atol=1e-2)
