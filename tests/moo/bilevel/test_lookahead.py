"""One-step lookahead against a step that is really taken, and what it finds."""

import pytest
import torch

from paretune.errors import InputError
from paretune.moo import minimize
from paretune.moo.bilevel.lookahead import Lookahead
from paretune.moo.bilevel.problem import BilevelProblem

TARGETS = torch.tensor([[1.0, 0.2], [-0.5, 1.0], [3.0, -4.0]], dtype=torch.float64)


def problem() -> BilevelProblem:
    """Three sets pull y to a target each; two objectives want to be at the first two targets."""
    return BilevelProblem(
        upper=[lambda x, y, s=s: (y - TARGETS[s]).square().sum() + 0.1 for s in (0, 1)],
        lower=lambda x, y: x.softmax(0) @ (y - TARGETS).square().sum(1) / 2,
    )


@pytest.mark.parametrize("weights", [(0.7, 0.3), (0.2, 0.8)])
def test_x_moves_against_the_derivative_of_the_step_taken(weights: tuple[float, float]) -> None:
    """Adam's first step has the signs of the gradient: here of finite differences through y's."""
    x0 = torch.tensor([0.1, -0.3, 0.2], dtype=torch.float64)
    y0, rate = torch.tensor([0.3, -2.0], dtype=torch.float64), 1e-3
    terms = problem()
    heights = [p * float(f(x0, y0)) for p, f in zip(weights, terms.upper, strict=True)]
    pushed = heights.index(max(heights))  # ω is all on the one furthest behind

    def after(x: torch.Tensor) -> float:
        h, held = (y0 - each.softmax(0) @ TARGETS for each in (x, x0))
        y = y0 - rate * h / (held.abs() + 1e-8)  # v̂ as it is after the step from x0
        return float(terms.upper[pushed](x, y))

    slopes = []
    for n in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[n] = 1e-5
        slopes.append((after(x0 + step) - after(x0 - step)) / 2e-5)
    run = minimize(terms, weights, Lookahead(lr=rate, x_lr=0.01), x0=(x0, y0), steps=1)
    moved = run.history.x[-1] - x0
    assert moved.sign().tolist() == [-1.0 if s > 0 else 1.0 for s in slopes]


@pytest.mark.parametrize("share", [0.8, 0.5, 0.2])
def test_a_set_that_is_nobodys_loses_weight(share: float) -> None:
    start = torch.zeros(3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    run = minimize(problem(), (share, 1 - share), "lookahead", x0=start, steps=150)
    assert float(run.x[0].softmax(0)[2]) < 0.05


def test_options_out_of_range_are_named() -> None:
    for options, expected in (({"lr": 0.0}, "lr"), ({"v": -1.0}, "v must"), ({"tau": 2.0}, "tau")):
        with pytest.raises(InputError, match=expected):
            Lookahead(**options)
