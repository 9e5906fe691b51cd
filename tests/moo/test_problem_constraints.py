"""Problems with constraints and bounds: evaluation, products, and which method is chosen."""

import numpy as np
import pytest
import torch

from paretune.moo import Problem, StochasticProblem, minimize, test_problems


def test_combined_gradient_is_the_sum_of_single_ones():
    known = test_problems.random_quadratics(n=8, n_objectives=3, n_constraints=2)
    point = known.problem.at(known.x0)
    w, d = torch.tensor([0.2, 0.3, 0.5]).double(), torch.tensor([1.0, -2.0]).double()
    single = torch.autograd.functional.jacobian(known.problem.evaluate, known.x0)
    constraints = torch.autograd.functional.jacobian(known.problem.constrain, known.x0)
    assert torch.allclose(point.combine(w, d), w @ single + d @ constraints)
    assert torch.allclose(point.gradients(), single)
    assert torch.allclose(point.vjp(d), d @ constraints)
    moved = torch.ones(8, dtype=torch.float64)
    assert torch.allclose(point.jvp(moved), constraints @ moved)


@pytest.mark.parametrize("given", [(True, False), (False, True), (True, True)])
def test_given_derivatives_equal_automatic_ones(given):
    def objectives(z):
        return torch.stack([(z**2).sum(), ((z - 1) ** 2).sum()])

    def constraints(z):
        return (z**2).sum(1) - 1

    problem = Problem(
        objectives,
        jacobian=(lambda z: torch.stack([2 * z, 2 * (z - 1)])) if given[0] else None,
        constraints=constraints,
        constraint_vjp=(lambda z, d: 2 * z * d[:, None]) if given[1] else None,
    )
    z = torch.arange(6.0).reshape(2, 3)
    automatic = Problem(objectives, constraints=constraints).at(z)
    w, d = [0.3, 0.7], torch.tensor([0.5, 2.0])
    assert torch.allclose(problem.at(z).combine(w, d), automatic.combine(w, d))
    assert torch.allclose(problem.at(z).jvp(z.flatten()), automatic.jvp(z.flatten()), rtol=1e-3)


def test_one_forward_and_one_backward_whatever_the_number_of_functions():
    """A combined gradient costs one backward pass: no loop over objectives or constraints."""
    for count in (1, 10, 1000):
        passes = []

        class Watched(torch.autograd.Function):
            @staticmethod
            def forward(ctx, z):
                return z.clone()

            @staticmethod
            def backward(ctx, gradient):
                passes.append(1)  # noqa: B023
                return gradient

        def objectives(z, watched=Watched, count=count):
            return watched.apply(z).sum() * torch.ones(count)

        problem = Problem(objectives, constraints=lambda z: z.expand(1000))
        problem.at(torch.zeros(1)).combine([1.0] * count, torch.ones(1000))
        assert len(passes) == 1


def test_projection():
    problem = Problem(lambda z: z, bounds=(torch.tensor([0.0, -float("inf")]), 1.0))
    assert problem.project(torch.tensor([-3.0, -3.0])).tolist() == [0.0, -3.0]
    free = Problem(lambda z: z)
    assert free.project(torch.tensor([5.0])).tolist() == [5.0]
    assert free.constrain(torch.zeros(2)).shape == (0,)


def test_method_none_chooses():
    """wc_augmented alone takes objectives below 0 and ends where all its λ_s f_s are the same."""

    def negative(z):
        return torch.stack([(z**2).sum(), ((z - 1) ** 2).sum()]) - 10

    for options in ({}, {"constraints": lambda z: z - 0.5}, {"bounds": (-1.0, 1.0)}):
        found = minimize(Problem(negative, **options), (0.5, 0.5), x0=[0.0])
        assert found.converged
        assert found.history.feasibility is not None
        np.testing.assert_allclose(found.x, [0.5], atol=1e-7)


def test_stochastic_problem_with_its_batch_held_fixed():
    problem = StochasticProblem(
        objectives=lambda z, batch: (z - batch) ** 2 + 1,
        draw=lambda size, generator: torch.randn(size, generator=generator).mean(),
        full=torch.tensor(0.0),
        constraints=lambda z, batch: z - batch,
        bounds=(-9.0, 9.0),
    )
    z = torch.tensor([2.0])
    fixed = problem.on(torch.tensor(1.0), torch.tensor(3.0))
    np.testing.assert_allclose(fixed.evaluate(z), [2.0])
    np.testing.assert_allclose(fixed.constrain(z), [-1.0])
    np.testing.assert_allclose(problem.on(torch.tensor(1.0)).constrain(z), [1.0])
    assert fixed.bounds == (-9.0, 9.0)
