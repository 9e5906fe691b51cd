"""The loop of all iterative methods, driven by a method that follows a script."""

import math

import pytest
import torch

from paretune.errors import InputError
from paretune.moo import Problem
from paretune.moo.numerics.kkt import KKTParts
from paretune.moo.solvers.loop import CountedProblem, Solver, Visit


class Scripted(Solver):
    """Visits the points 0, 1, 2, … with the residuals that are given; "" stands for no step."""

    def __init__(self, residuals, reports_best=False, **changes):
        problem = Problem(lambda z: torch.stack([z[0] ** 2 + 1, z[0] ** 2 + 1]))
        super().__init__(CountedProblem(problem))
        self.script, self.reports_best, self.changes = list(residuals), reports_best, changes
        self.number = -1

    def start(self):
        return self.step()

    def step(self):
        self.number += 1
        if self.script[self.number] == "":
            return "no step was found."
        point = self.problem.at(torch.full((1,), float(self.number), dtype=torch.float64))
        self.problem.gradient(point, [0.5, 0.5])
        parts = KKTParts(0.0, self.script[self.number], 0.0, 0.0)
        visit = Visit(
            point.z, point.objectives, torch.zeros(0), 1.0, [0.5, 0.5], torch.zeros(0), parts
        )
        return visit._replace(**{name: of[self.number] for name, of in self.changes.items()})


@pytest.mark.parametrize(
    ("residuals", "end", "message"),
    [
        ([3, 2, 0.5], 2, "Converged after 2 steps: the residual is at most tol."),
        ([0.5], 0, "Converged after 0 steps: the residual is at most tol."),
        ([9, 8, 7, 6, 5], 4, "Stopped after all 4 steps."),
        ([3, 2, ""], 1, "Stopped after 1 steps: no step was found."),
        (
            [3, 2, math.nan],
            1,
            "Stopped at step 2: values were no longer finite; try a smaller lr. x is the last "
            "finite point.",
        ),
    ],
)
def test_how_a_run_ends(residuals, end, message):
    solver = Scripted(residuals)
    found = solver.solve(steps=4, tol=1.0)
    assert found.message == message
    assert found.x.tolist() == [end]
    assert found.objectives.tolist() == [end**2 + 1] * 2
    assert found.converged is message.startswith("Converged")
    assert found.history.kkt_residual.tolist() == residuals[: end + 1]
    seen = len([residual for residual in residuals if residual != ""])
    assert found.n_gradient_evaluations == found.n_function_evaluations == seen


def test_a_start_that_is_not_finite_is_refused():
    with pytest.raises(InputError, match="not finite at x0"):
        Scripted([math.inf]).solve(steps=1, tol=0.0)


def test_a_visit_may_cost_no_step_or_several():
    found = Scripted([4, 3, 2, 1], steps=[0, 0, 5, 0]).solve(steps=5, tol=0.0)
    assert found.message == "Stopped after all 5 steps."
    assert found.x.tolist() == [2]


def test_a_row_of_the_history_shows_the_last_visit_before_the_next_row():
    found = Scripted([5, 4, 3, 2, 1], opens=[True, False, True, False, False]).solve(4, 0.0)
    assert found.history.kkt_residual.tolist() == [4, 1]


def test_the_best_point_is_a_late_one():
    """A start that is feasible, with good multipliers, has a small residual and poor objectives."""
    found = Scripted([0.1 + k for k in range(8)], reports_best=True).solve(steps=7, tol=0.0)
    assert found.x.tolist() == [3.0]  # visited fourth of eight: windows 4-7 and 8
