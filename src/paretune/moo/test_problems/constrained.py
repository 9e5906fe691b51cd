"""Problems with equality constraints (ECMO), with their exact fronts and solutions."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.numerics.affine import AffineConstraints
from paretune.moo.problem import Problem
from paretune.moo.test_problems.reference import Array, KnownProblem, Weights, balance, positive


def toy() -> KnownProblem:
    """The WC-Penalty paper's example (Appendix D.1, Figure 10), z in R².

    f1 = z1² + 4 z2², f2 = 4 (z1 − 2)² + (z2 − 2)², h = z1/2 − z2 − 0.1. On the line h = 0,
    z = (t, t/2 − 0.1), f1 = 2t² − 0.4t + 0.04 and f2 = 4.25t² − 18.1t + 20.41; the Pareto set is
    0.1 <= t <= 18.1/8.5, a convex front.
    """

    scale = torch.tensor([[1.0, 4.0], [4.0, 1.0]], dtype=torch.float64)
    centres = torch.tensor([[0.0, 0.0], [2.0, 2.0]], dtype=torch.float64)
    line = AffineConstraints([[0.5, -1.0]], [0.1])

    def curve(t: Array | float) -> Array:
        t = np.asarray(t)
        return np.stack([2 * t**2 - 0.4 * t + 0.04, 4.25 * t**2 - 18.1 * t + 20.41], -1)

    def solution(p: Weights) -> Array:
        t = balance(curve, p, 0.1, 18.1 / 8.5)
        return np.array([t, t / 2 - 0.1])

    return KnownProblem(
        problem=Problem(
            lambda z: (scale.to(z) * (z - centres.to(z)) ** 2).sum(1),
            jacobian=lambda z: 2 * scale.to(z) * (z - centres.to(z)),
            constraints=line,
            constraint_vjp=line.vjp,
        ),
        n_objectives=2,
        x0=torch.tensor([0.0, 2.0], dtype=torch.float64),
        front=lambda count: curve(np.linspace(0.1, 18.1 / 8.5, count)),
        solution=solution,
    )


def sphere_arc(
    n: int = 3, radius: float = 1.5, angle: float = 1.2, concave: bool = False
) -> KnownProblem:
    """Squared distances to two points, on the unit sphere of R^n: a curved constraint.

    f = ‖z − a‖², or 1 − exp(−‖z − a‖²) when concave, with a1 and a2 at distance `radius` from the
    centre and `angle` (in radians, below π) apart; h = ‖z‖² − 1. The Pareto set is the shorter
    arc of the great circle from a1 to a2; at the angle θ from a1, ‖z − a1‖² = 1 + r² − 2r cos θ.
    """
    if n < 2 or not radius > 0 or not 0 < angle < math.pi or radius == 1:
        raise InputError(
            "sphere_arc needs n >= 2, a radius above 0 other than 1 and an angle between 0 and π."
        )
    ends = torch.zeros(2, n, dtype=torch.float64)
    ends[0, 0] = radius
    ends[1, :2] = radius * torch.tensor([math.cos(angle), math.sin(angle)])

    def objectives(z: Tensor) -> Tensor:
        squares = ((z - ends.to(z)) ** 2).sum(1)
        return -torch.expm1(-squares) if concave else squares

    def jacobian(z: Tensor) -> Tensor:
        away = z - ends.to(z)
        return 2 * away * torch.exp(-(away**2).sum(1, keepdim=True)) if concave else 2 * away

    def curve(theta: Array | float) -> Array:
        cosines = np.stack([np.cos(theta), np.cos(angle - np.asarray(theta))], -1)
        squares = 1 + radius**2 - 2 * radius * cosines
        return np.asarray(-np.expm1(-squares) if concave else squares)

    def solution(p: Weights) -> Array:
        theta = balance(curve, p, 0.0, angle)
        return np.array([math.cos(theta), math.sin(theta)] + [0.0] * (n - 2))

    return KnownProblem(
        problem=Problem(
            objectives,
            jacobian=jacobian,
            constraints=lambda z: (z**2).sum().reshape(1) - 1,
            constraint_vjp=lambda z, d: 2 * d * z,
        ),
        n_objectives=2,
        x0=torch.linspace(0.8, 0.4, n, dtype=torch.float64),
        front=lambda count: curve(np.linspace(0, angle, count)),
        solution=solution,
    )


def rank_deficient() -> KnownProblem:
    """A bilevel problem whose lower level is convex but not strongly: ∇h has rank 1, not 2.

    z = (x, y1, y2), lower level g = (y1 + y2 − x)²/2 in y, so that h = ∇_y g = (y1 + y2 − x)(1, 1)
    repeats itself: the paper's Assumption 2 and LICQ fail everywhere, while solutions and
    multipliers exist. f = ‖z − a‖² + 0.1, a1 = (1, 1, 0), a2 = (−1, −1, 2). The Pareto set is
    the segment from (1, 1, 0) to (−1/3, −5/3, 4/3), a convex front.
    """
    centres = torch.tensor([[1.0, 1.0, 0.0], [-1.0, -1.0, 2.0]], dtype=torch.float64)
    ends = np.array([[1.0, 1.0, 0.0], [-1 / 3, -5 / 3, 4 / 3]])
    twice = AffineConstraints([[-1.0, 1.0, 1.0]] * 2, [0.0, 0.0])

    def curve(s: Array | float) -> Array:
        s = np.asarray(s)
        return np.stack([0.1 + 96 / 9 * s**2, 0.1 + 4 / 3 + 96 / 9 * (1 - s) ** 2], -1)

    def solution(p: Weights) -> Array:
        s = balance(curve, p, 0.0, 1.0)
        return np.asarray((1 - s) * ends[0] + s * ends[1])

    return KnownProblem(
        problem=Problem(
            lambda z: ((z - centres.to(z)) ** 2).sum(1) + 0.1,
            jacobian=lambda z: 2 * (z - centres.to(z)),
            constraints=twice,
            constraint_vjp=twice.vjp,
        ),
        n_objectives=2,
        x0=torch.tensor([0.5, -1.0, 1.0], dtype=torch.float64),
        front=lambda count: curve(np.linspace(0, 1, count)),
        solution=solution,
    )


def dd1(shift: float = 20.0) -> KnownProblem:
    """Das and Dennis' five-variable problem; neither its front nor its solutions are known here.

    f1 = Σ z_i², f2 = 3 z1 + 2 z2 − z3/3 + 0.01 (z4 − z5)³ + shift;
    h1 = z1 + 2 z2 − z3 − z4/2 + z5 − 2, h2 = 4 z1 − 2 z2 + 0.8 z3 + 0.6 z4 + z5²/2.
    All as on the authors' page on the method (caam.rice.edu/~indra/NBIhomepage.html), shift aside.
    Their Σ z_i² <= 10 is replaced by the box around that ball, on which shift = 20 keeps f2
    positive; a solution with f1 > 10 is outside the original problem.
    Source: I. Das and J. E. Dennis, SIAM J. Optim. 8 (1998).
    """

    slope = torch.tensor([3.0, 2.0, -1 / 3, 0.0, 0.0], dtype=torch.float64)
    apart = torch.tensor([0.0, 0.0, 0.0, 1.0, -1.0], dtype=torch.float64)
    linear = torch.tensor([[1, 2, -1, -0.5, 1], [4, -2, 0.8, 0.6, 0]], dtype=torch.float64)
    bend = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 0, 0.5]], dtype=torch.float64)
    offset = torch.tensor([2.0, 0.0], dtype=torch.float64)

    def objectives(z: Tensor) -> Tensor:
        return torch.stack([z @ z, slope.to(z) @ z + 0.01 * (apart.to(z) @ z) ** 3 + shift])

    def jacobian(z: Tensor) -> Tensor:
        return torch.stack([2 * z, slope.to(z) + 0.03 * (apart.to(z) @ z) ** 2 * apart.to(z)])

    def constraints(z: Tensor) -> Tensor:
        return linear.to(z) @ z + bend.to(z) @ z**2 - offset.to(z)

    def vjp(z: Tensor, d: Tensor) -> Tensor:
        return d @ linear.to(z) + 2 * (d @ bend.to(z)) * z

    side = math.sqrt(10)
    return KnownProblem(
        problem=Problem(objectives, jacobian, constraints, vjp, bounds=(-side, side)),
        n_objectives=2,
        x0=torch.ones(5, dtype=torch.float64),
    )


def random_quadratics(
    n: int = 30,
    n_objectives: int = 3,
    n_constraints: int = 10,
    seed: int = 0,
    preference: Weights | None = None,
) -> KnownProblem:
    """Random quadratic objectives and constraints whose solution z* was chosen beforehand.

    With d = z − z*: f_s = c_s + g_s·d + d·Q_s d/2, Q_s = diag + five squares (eigenvalues
    from 0.5), and h_i = a_i·d + Σ_j b_ij d_j²/2. Random ω > 0 (sum 1) and ν are made multipliers of
    z* through g_S, all p_s f_s(z*) are made equal through c_s, and b is kept so small that the
    Lagrangian Σ ω_s p_s f_s + ν·h is convex: its minimum over all z is ρ*, so z* is a global
    solution.
    `solution` knows the answer for `preference` alone (uniform by default). f_s >= 1 everywhere.
    Time and memory for one evaluation are O(n (n_objectives + n_constraints)).
    """
    p = preference or (1 / n_objectives,) * n_objectives
    weights = torch.tensor(positive(p, n_objectives), dtype=torch.float64)
    if n_constraints >= n:
        raise InputError(f"random_quadratics needs n_constraints < n, got {n_constraints} and {n}.")
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    target = normal(n)
    omega = torch.softmax(normal(n_objectives), 0)
    nu = 0.3 * normal(n_constraints) / math.sqrt(max(n_constraints, 1))
    diagonal = 0.5 + 4 * torch.rand(n_objectives, n, generator=generator, dtype=torch.float64)
    factor = normal(n_objectives, 5, n) / math.sqrt(n)
    linear = normal(n_constraints, n) / math.sqrt(n)
    bend = normal(n_constraints, n)
    worst = float((nu @ bend).abs().max()) if n_constraints else 0.0
    bend *= min(1.0, 0.25 * float(omega @ weights) / worst) if worst > 0 else 1.0
    slopes = normal(n_objectives, n)
    rest = (omega * weights)[:-1] @ slopes[:-1] + nu @ linear
    slopes[-1] = -rest / (omega * weights)[-1]
    # f_s >= c_s − ‖g_s‖² / (2 · 0.5), the curvature being at least 0.5.
    level = float((weights * (1 + (slopes**2).sum(1))).max())
    heights = level / weights

    def objectives(z: Tensor) -> Tensor:
        d = z - target.to(z)
        bowl = diagonal.to(z) @ d**2 + ((factor.to(z) @ d) ** 2).sum(1)
        return heights.to(z) + slopes.to(z) @ d + bowl / 2

    def constraints(z: Tensor) -> Tensor:
        d = z - target.to(z)
        return linear.to(z) @ d + bend.to(z) @ d**2 / 2

    def solution(asked: Weights) -> Array:
        if not np.allclose(asked, p, rtol=0, atol=1e-12):
            raise InputError(f"This instance's solution is known for the preference {p} alone.")
        return target.numpy().copy()

    return KnownProblem(
        problem=Problem(objectives, constraints=constraints if n_constraints else None),
        n_objectives=n_objectives,
        x0=target + normal(n),
        solution=solution,
    )
