"""Algorithm 2: projection onto affine constraints, against closed forms and linear algebra."""

import numpy as np
import pytest
import torch

from paretune.errors import InputError
from paretune.moo import AffineConstraints, LinearScalarization, Problem, minimize, test_problems

THIRDS = (1 / 3, 1 / 3, 1 / 3)


@pytest.mark.parametrize(
    ("p", "x", "f"),
    [
        ((0.25, 0.75), (1.85423729, 0.82711864), (6.17469693, 1.46063775)),
        ((0.75, 0.25), (0.94146341, 0.37073171), (1.43612136, 7.13651398)),
    ],
)
def test_toy(p, x, f):
    toy = test_problems.toy()
    found = minimize(toy.problem, p, method="linear", x0=toy.x0, tol=1e-9)
    np.testing.assert_allclose(found.x, x, atol=1e-8)
    np.testing.assert_allclose(found.objectives, f, atol=1e-7)
    assert found.converged
    assert found.kkt_parts.feasibility < 1e-14


def random_problem(seed, rank):
    """Convex quadratics under A z = b, A of shape (4, 7) and the given rank."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    A = normal(4, rank) @ normal(rank, 7)
    affine = AffineConstraints(A, A @ normal(7))
    factors, centres = normal(3, 7, 7), normal(3, 7)
    hessians = factors @ factors.mT + torch.eye(7)

    def objectives(z):
        return torch.einsum("si,sij,sj->s", z - centres, hessians, z - centres) / 2

    return Problem(objectives, constraints=affine), affine, hessians, centres


@pytest.mark.parametrize("rank", [1, 3, 4])
@pytest.mark.parametrize("lr", [None, "1/L"])
def test_against_the_kkt_matrix(rank, lr):
    problem, affine, hessians, centres = random_problem(rank, rank)
    p = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    hessian = torch.einsum("s,sij->ij", p, hessians)
    pull = torch.einsum("s,sij,sj->i", p, hessians, centres)
    matrix = torch.zeros(11, 11, dtype=torch.float64)
    matrix[:7, :7], matrix[:7, 7:], matrix[7:, :7] = hessian, affine.A.T, affine.A
    expected = torch.linalg.pinv(matrix) @ torch.cat([pull, affine.b])
    step = None if lr is None else 1 / float(torch.linalg.eigvalsh(hessian)[-1])
    found = minimize(
        problem, p.tolist(), method="linear", x0=torch.zeros(7), steps=5000, lr=step, tol=1e-5
    )
    assert found.x.dtype == torch.float32
    double = torch.zeros(7, dtype=torch.float64)
    found = minimize(problem, p.tolist(), "linear", x0=double, steps=5000, lr=step, tol=1e-9)
    np.testing.assert_allclose(found.x, expected[:7], atol=1e-7)
    np.testing.assert_allclose(found.constraint_multipliers, expected[7:], atol=1e-6)
    assert affine.rank == rank
    if step is not None:  # Theorem 4: the value is within L ‖z0 − z*‖² / (2T) of its minimum.
        values = found.history.objectives @ p
        first = affine.project(double)
        bound = float((first - expected[:7]) @ (first - expected[:7])) / (2 * step)
        times = torch.arange(1, len(values), dtype=torch.float64)
        assert bool((values[1:] - values[-1] <= bound / times + 1e-9).all())


def test_the_residual_vanishes_where_the_papers_corollary_does_not():
    """‖∇Σ λ f‖, which the corollary to Theorem 4 bounds by 0 in the limit, stays at 2.48."""
    toy = test_problems.toy()
    found = minimize(toy.problem, (0.75, 0.25), "linear", x0=toy.x0, tol=1e-9)
    gradient = toy.problem.at(found.x).combine((0.75, 0.25))
    assert float(gradient.norm()) ** 2 == pytest.approx(2.484, abs=1e-2)
    assert found.kkt_residual < 1e-9


def test_projection_is_the_nearest_point():
    generator = torch.Generator().manual_seed(0)
    _, affine, _, _ = random_problem(1, 2)
    z = torch.randn(7, generator=generator, dtype=torch.float64)
    near = affine.project(z)
    assert float(affine(near).norm()) < 1e-12
    expected = z - torch.linalg.pinv(affine.A) @ (affine.A @ z - affine.b)
    assert torch.allclose(near, expected)
    assert torch.allclose(affine.project(z.reshape(7, 1)), near.reshape(7, 1))


def test_bounds_alone():
    problem = Problem(
        lambda z: torch.stack([((z - 2) ** 2).sum(), ((z + 1) ** 2).sum()]),
        bounds=(0.0, torch.tensor([1.0, 9.0])),
    )
    found = minimize(problem, (0.9, 0.1), "linear", x0=[0.5, 0.5])
    np.testing.assert_allclose(found.x, [1.0, 1.7], atol=1e-7)
    assert found.converged


def test_a_step_that_is_too_long_says_so():
    toy = test_problems.toy()
    found = minimize(toy.problem, (0.5, 0.5), "linear", x0=toy.x0, lr=10.0)
    assert not found.converged
    assert "no longer finite" in found.message
    assert bool(torch.isfinite(found.x).all())


@pytest.mark.parametrize(
    ("A", "b", "message"),
    [
        ([[1.0, 1.0], [1.0, 1.0]], [0.0, 1.0], "has no solution"),
        ([[1.0, 1.0]], [0.0, 1.0], r"shape \(q, n\)"),
        ([1.0, 1.0], [0.0], r"shape \(q, n\)"),
        ([[1.0, float("nan")]], [0.0], "finite"),
    ],
)
def test_bad_constraints(A, b, message):
    with pytest.raises(InputError, match=message):
        AffineConstraints(A, b)


def test_bad_input():
    curved = test_problems.sphere_arc()
    with pytest.raises(InputError, match="AffineConstraints"):
        minimize(curved.problem, (0.5, 0.5), "linear", x0=curved.x0)
    line = AffineConstraints([[1.0, 1.0]], [1.0])
    both = Problem(lambda z: z**2, constraints=line, bounds=(-1.0, 1.0))
    with pytest.raises(InputError, match="not both"):
        minimize(both, (0.5, 0.5), "linear", x0=[0.0, 0.0])
    with pytest.raises(InputError, match="2 columns, but z has 3"):
        minimize(Problem(lambda z: z**2, constraints=line), THIRDS, "linear", x0=[0.0] * 3)
    with pytest.raises(InputError, match="lr must be"):
        LinearScalarization(lr=0.0)
    toy = test_problems.toy()
    with pytest.raises(InputError, match="plain steps"):
        minimize(toy.problem, (0.5, 0.5), "linear", x0=toy.x0, optimizer="adam")
